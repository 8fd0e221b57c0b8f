package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"vmand/failpoint"
)

// A CloudInitView is what a guest gets of cloud-init data, with its secrets
// masked, and what cloud-init in the guest says.
type CloudInitView struct {
	InstanceID string
	Spec       CloudInit
	Attached   bool              // the drive with the seed is there
	Files      map[string]string // of the seed, by name, as they are made at the next start
	// Guest is what cloud-init in the guest says; nil if it cannot be asked.
	Guest   *CloudInitStatus
	Version Version // of the VM
}

// A CloudInitStatus is what cloud-init in a guest says of itself.
type CloudInitStatus struct {
	Status string // "done", "running", "error", "disabled" and others; [CloudInitAbsent] if there is none
	Detail string
	Errors []string
}

// CloudInitAbsent is the status of a guest that has no cloud-init.
const CloudInitAbsent = "absent"

// CloudInit returns what is recorded of a VM's cloud-init data, with what the guest
// says where it can be asked. It fails with [ErrNotFound] if nothing is recorded.
func (m *Manager) CloudInit(ctx context.Context, id string) (CloudInitView, error) {
	v, err := m.store.VM(ctx, id)
	if err != nil {
		return CloudInitView{}, err
	}
	s, err := m.store.Seed(ctx, id)
	if err != nil {
		return CloudInitView{}, err
	}
	networks, err := m.networksOf(ctx, v)
	if err != nil {
		return CloudInitView{}, err
	}
	view := CloudInitView{InstanceID: s.InstanceID(v), Spec: s.masked(), Files: map[string]string{}, Version: Version{v.Seq, v.Revision}, Attached: v.hasSeed()}
	for name, content := range seedFiles(v, s, networks) {
		view.Files[name] = maskSeedFile(name, content)
	}
	if v.State == Running {
		if says, err := m.cloudInitStatus(ctx, id); err == nil && says.Status != "" {
			view.Guest = &says
		}
	}
	return view, nil
}

// SetCloudInit replaces a VM's cloud-init data. The guest gets them at the VM's next
// start, and takes all of them on anew if it is to be reprovisioned; otherwise
// cloud-init does what it does at every boot. A seed that was ejected is put in again.
func (m *Manager) SetCloudInit(ctx context.Context, vmID string, c CloudInit, reprovision bool, match Match) (CloudInitView, error) {
	if err := c.check(""); err != nil {
		return CloudInitView{}, err
	}
	s := Seed{VMID: vmID, CloudInit: c}
	err := m.tune(ctx, tuning{kind: CloudInitSet, vmID: vmID, match: match, late: true, seed: &s, edit: func(ctx context.Context, v *VM) error {
		had, err := m.store.Seed(ctx, vmID)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return err
		default:
			s.Instance = had.Instance
			if reprovision {
				s.Instance++
			}
		}
		if !v.hasSeed() {
			v.CDROMs = append(slices.Clone(v.CDROMs), CDROM{ID: SeedCDROM})
			slices.SortFunc(v.CDROMs, orderCDROMs)
		}
		return nil
	}, apply: func(ctx context.Context, v VM) error {
		networks, err := m.networksOf(ctx, v)
		if err == nil {
			err = m.makeSeed(ctx, v, s, networks)
		}
		if err != nil {
			return err
		}
		return m.setCDROMs(ctx, v)
	}})
	if err != nil {
		return CloudInitView{}, err
	}
	return m.CloudInit(ctx, vmID)
}

// writeSeed makes the seed of a VM that is about to start, if it has a drive for it.
func (m *Manager) writeSeed(ctx context.Context, v VM, networks map[string]Network) error {
	if !v.hasSeed() {
		return nil
	}
	s, err := m.store.Seed(ctx, v.ID)
	if err != nil {
		return err
	}
	return m.makeSeed(ctx, v, s, networks)
}

func (m *Manager) makeSeed(ctx context.Context, v VM, s Seed, networks map[string]Network) error {
	if err := m.driver.WriteSeed(ctx, v.ID, seedFiles(v, s, networks)); err != nil {
		return err
	}
	failpoint.Hit("seed.written")
	return nil
}

// cloudInitTimeout is how long a guest may take to say how far cloud-init is.
const cloudInitTimeout = 15 * time.Second

// cloudInitScript tells in a word how far cloud-init is, and then what it has written
// about that. It looks at the files that cloud-init keeps for others to look at
// (cloudinit/cmd/main.py and tools/ds-identify in its source): cloud-init status reads
// the same, and is a program in Python that takes a guest seconds of its one processor
// while it boots.
const cloudInitScript = `d=/run/cloud-init
if [ -e $d/result.json ]; then echo result; exec cat $d/result.json
elif [ -e $d/status.json ]; then echo running; exec cat $d/status.json
elif [ -e $d/disabled ]; then echo disabled
elif command -v cloud-init >/dev/null; then echo not run
else echo absent; fi`

// cloudInitStatus asks a guest, through the agent, how far cloud-init is. A guest
// that does not answer has an empty status. It fails with [CodeGuestRefused] if it can
// never be asked.
func (m *Manager) cloudInitStatus(ctx context.Context, id string) (CloudInitStatus, error) {
	if m.driver.Agent(id).State != AgentConnected {
		return CloudInitStatus{}, nil
	}
	ctx, stop := context.WithTimeout(ctx, cloudInitTimeout)
	defer stop()
	r, err := m.driver.Exec(ctx, id, GuestCommand{Path: "/bin/sh", Args: []string{"-c", cloudInitScript}, Timeout: cloudInitTimeout})
	var f *Fault
	switch {
	case errors.As(err, &f) && f.Code == CodeGuestRefused:
		return CloudInitStatus{}, err // by its rules, which do not change
	case err != nil, !r.Exited, r.ExitCode != 0:
		return CloudInitStatus{}, nil
	}
	return cloudInitSays(r.Stdout), nil
}

// maxGuestErrors is how many errors of a guest are told.
const maxGuestErrors = 20

// cloudInitSays reads what cloudInitScript has written. What cannot be read, because
// it is just being written, may be better the next time.
func cloudInitSays(text []byte) CloudInitStatus {
	word, rest, _ := strings.Cut(string(text), "\n")
	switch word {
	case "disabled", "not run", CloudInitAbsent:
		return CloudInitStatus{Status: word}
	case "running", "result":
	default:
		return CloudInitStatus{}
	}
	var says struct {
		V1 *struct {
			Stage      string   `json:"stage"`
			DataSource string   `json:"datasource"`
			Errors     []string `json:"errors"`
		} `json:"v1"`
	}
	if json.Unmarshal([]byte(rest), &says) != nil || says.V1 == nil {
		return CloudInitStatus{}
	}
	s := CloudInitStatus{Status: "running", Detail: printable(says.V1.Stage)}
	if word == "running" {
		return s
	}
	s.Status, s.Detail = "done", printable(says.V1.DataSource)
	for _, e := range says.V1.Errors[:min(len(says.V1.Errors), maxGuestErrors)] {
		s.Status = "error"
		s.Errors = append(s.Errors, printable(e))
	}
	return s
}

// over reports whether cloud-init has nothing more to do, and how it has failed.
func (s CloudInitStatus) over(id string) (bool, error) {
	switch s.Status {
	case "done", "disabled", CloudInitAbsent:
		return true, nil
	case "error":
		return false, &Fault{Code: CodeGuestRefused, Detail: fmt.Sprintf("cloud-init of VM %s has failed: %s", id, printable(strings.Join(s.Errors, "; "))),
			Hint: "see /var/log/cloud-init.log in the guest"}
	}
	return false, nil
}

// cloudInitDone asks cloud-init in a guest whether it is done, and notes that it
// is, or that it has failed, which is an error in its own words. A guest that does
// not answer is not done.
func (m *Manager) cloudInitDone(ctx context.Context, id string) (bool, error) {
	s, err := m.cloudInitStatus(ctx, id)
	if err != nil {
		return false, err
	}
	done, err := s.over(id)
	switch {
	case done:
		m.Mark(id, BootCloudInit, now())
	case err != nil:
		m.Mark(id, BootCloudInitFailed, now())
	}
	return done, err
}

// askCloudInits asks the guests that have a seed how far their cloud-init is, until
// it is over, so that the times of a boot are known although nobody waits. It does
// not wait.
func (m *Manager) askCloudInits(vms []VM) {
	m.mu.Lock()
	defer m.mu.Unlock()
	asked := make(map[string]time.Time, len(m.booting))
	for _, v := range vms {
		over := !v.Boot.CloudInit.IsZero() || !v.Boot.CloudInitFailed.IsZero()
		if !v.hasSeed() || over || m.driver.Agent(v.ID).State != AgentConnected {
			continue
		}
		asked[v.ID] = m.booting[v.ID]
		if !m.closing && time.Since(asked[v.ID]) >= bootInterval {
			asked[v.ID] = time.Now()
			m.wg.Go(func() {
				if _, err := m.cloudInitDone(context.Background(), v.ID); err != nil {
					m.log.Info("cloud-init of a guest is not well", "vm_id", v.ID, "err", err)
				}
			})
		}
	}
	m.booting = asked // and those that are gone are forgotten
}

// bootInterval is how often the cloud-init of a guest is asked how far it is.
const bootInterval = 10 * time.Second
