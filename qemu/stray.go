package qemu

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmand/host"
	"vmand/vm"
)

// A stray is a QEMU process of a VM that no pidfile in the runtime directory shows: the
// directory was cleaned while the VM ran, or it is another one now.
type stray struct {
	id  string
	pid int
	run string // the runtime directory of its start
}

// strays returns the strays among the processes of QEMU's user. A process whose pid is
// in known is none. The command line names the VM; the process must also have the VM's
// root disk open, because a process can change its own command line.
func (d *Driver) strays(known map[int]bool) []stray {
	byVM := map[string][]stray{}
	for _, pid := range host.ProcessesOf(d.account.UID) {
		if known[pid] {
			continue
		}
		if s, ok := d.strayOf(pid); ok {
			byVM[s.id] = append(byVM[s.id], s)
		}
	}
	var found []stray
	for id, claims := range byVM {
		if len(claims) > 1 {
			d.log.Warn("several processes claim to be the QEMU of the VM; none is adopted", "vm", id, "count", len(claims))
			continue
		}
		found = append(found, claims[0])
	}
	return found
}

// strayOf returns the stray that a process is.
func (d *Driver) strayOf(pid int) (stray, bool) {
	words := host.Arguments(pid)
	id, ok := strings.CutPrefix(host.ArgumentAfter(words, "-name"), "guest=")
	id, _, _ = strings.Cut(id, ",")
	pidfile := host.ArgumentAfter(words, "-pidfile")
	if !ok || !vm.ValidName(id) || filepath.Base(pidfile) != id+pidSuffix {
		return stray{}, false
	}
	disk := d.layout.inState(vmRootDisk(id))
	quoted, err := json.Marshal(disk)
	isOurs := func(word string) bool { return strings.Contains(word, string(quoted)) }
	if err != nil || !slices.ContainsFunc(words, isOurs) || !d.hasOpen(pid, id, disk) {
		return stray{}, false
	}
	return stray{id: id, pid: pid, run: filepath.Dir(pidfile)}, true
}

// hasOpen reports whether a process has the root disk of a VM open. If the process may
// not be examined, it reports whether any process uses the disk.
func (d *Driver) hasOpen(pid int, id, disk string) bool {
	files, err := host.OpenFiles(pid)
	if errors.Is(err, fs.ErrPermission) {
		return d.checkUnused(vmRootDisk(id)) != nil
	}
	return slices.Contains(files, disk) || slices.Contains(files, disk+" (deleted)")
}

// adoptStrays opens a session for every stray. d.mu must not be held.
func (d *Driver) adoptStrays() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return
	}
	known := map[int]bool{}
	for _, s := range d.sessions {
		known[s.proc.PID] = true
	}
	for _, found := range d.strays(known) {
		if s := d.sessions[found.id]; s != nil && !s.proc.Exited() {
			continue // the VM has another process
		}
		p, err := host.OpenProcess(found.pid)
		if err != nil {
			continue // it has ended
		}
		if again, ok := d.strayOf(found.pid); !ok || again != found { // its pid is another process's by now
			p.Release()
			continue
		}
		d.log.Warn("QEMU process found without its files in the runtime directory: stop the VM, with force if its "+
			"monitor does not answer, and start it", "vm", found.id, "pid", found.pid, "path", d.layout.run)
		l := d.layout
		l.run = found.run
		d.openSessionIn(l, found.id, p, false)
	}
}

// lostFiles are the suffixes of the files without which the next vmand could not
// control a VM.
var lostFiles = []string{pidSuffix, qmpSuffix}

// lost returns the reason for which the next vmand could not control the VM, or "": its
// files in the runtime directory are missing.
func (s *session) lost() string {
	var missing []string
	for _, suffix := range lostFiles {
		if _, err := os.Lstat(s.layout.inRun(s.id, suffix)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, s.layout.inRun(s.id, suffix))
		}
	}
	if missing == nil || s.proc.Exited() {
		return ""
	}
	return strings.Join(missing, " and ")
}
