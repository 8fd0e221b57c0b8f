package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmand/host"
	"vmand/vm"
)

const (
	maxSerial  = 8 << 10 // bytes of the guest's console output in a recording
	maxCrashes = 5       // recordings kept of a VM
)

// Flight implements [vm.Host]. The recordings of crashes survive vmand.
func (d *Driver) Flight(_ context.Context, id string) (vm.Flight, error) {
	if !vm.ValidName(id) {
		return vm.Flight{}, nil
	}
	s, err := d.session(id)
	if err != nil {
		return vm.Flight{}, fault(vm.CodeOperationFailed, err, "look for the QEMU process of VM %s", id)
	}
	f := vm.Flight{Now: d.recording(id, s)}
	names, err := d.crashFiles(id)
	if err != nil {
		return vm.Flight{}, fileFault(err, "look for recordings of VM %s", id)
	}
	for _, name := range names {
		crash, err := d.readCrash(name)
		if err != nil {
			d.log.Warn("cannot read the recording of a crash", "vm", id, "err", err)
			continue
		}
		f.Crashes = append(f.Crashes, crash)
	}
	return f, nil
}

// recording returns the present recording of a VM. s is nil if it has no process.
func (d *Driver) recording(id string, s *session) vm.Recording {
	r := vm.Recording{Serial: d.endOf(vmSerialLog(id), maxSerial), Stderr: d.endOf(vmQEMULog(id), maxStderr)}
	if s == nil {
		return r
	}
	r.PID, r.Messages = s.proc.PID, s.recorder.recording()
	if n := len(r.Messages); n > 0 {
		r.At = r.Messages[n-1].At
	}
	return r
}

// crashRecord is the content of a crash file: a [vm.Recording].
type crashRecord struct {
	At       time.Time    `json:"at"`
	PID      int          `json:"pid"`
	Exit     string       `json:"exit"`
	Messages []vm.Message `json:"messages"`
	Serial   string       `json:"serial"`
	Stderr   string       `json:"stderr"`
}

// recordCrash writes the recording of a process that ended without a request, and
// removes the oldest ones: maxCrashes stay.
func (d *Driver) recordCrash(s *session) {
	r := d.recording(s.id, s)
	r.At, r.Exit = time.Now().UTC(), s.proc.State()
	err := d.writeCrash(s.id, r)
	if err == nil {
		err = d.removeOldCrashes(s.id)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the VM was just deleted
		s.log.Warn("cannot keep the recording of a crash", "err", err)
	}
}

// writeCrash writes the recording of a crash. The temporary file has the same name
// for every crash, so that removeTemps finds it without reading the directory.
func (d *Driver) writeCrash(id string, r vm.Recording) error {
	b, err := json.Marshal(crashRecord(r))
	if err != nil {
		return fmt.Errorf("encode recording: %w", err)
	}
	temp := vmCrashTemp(id)
	f, err := host.CreateTemp(d.state, temp, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return errors.Join(err, d.state.Remove(temp))
	}
	return host.Publish(d.state, f, temp, vmCrash(id, r.At))
}

func (d *Driver) removeOldCrashes(id string) error {
	names, err := d.crashFiles(id)
	if err != nil {
		return err
	}
	for _, name := range names[min(maxCrashes, len(names)):] {
		if err := d.state.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// crashFiles returns the names of a VM's recordings, newest first.
func (d *Driver) crashFiles(id string) ([]string, error) {
	entries, err := readDir(d.state, vmDir(id))
	if err != nil {
		return nil, err
	}
	var times []int64
	for _, e := range entries {
		if at, ok := crashTime(e.Name()); ok {
			times = append(times, at)
		}
	}
	slices.Sort(times)
	slices.Reverse(times)
	names := make([]string, len(times))
	for i, at := range times {
		names[i] = vmCrash(id, time.UnixMilli(at))
	}
	return names, nil
}

// crashTime returns the time, in milliseconds of the Unix epoch, in the name of
// a recording's file.
func crashTime(name string) (int64, bool) {
	rest, ok := strings.CutPrefix(name, crashPrefix)
	number, suffixed := strings.CutSuffix(rest, crashSuffix)
	at, err := strconv.ParseInt(number, 10, 64)
	return at, ok && suffixed && err == nil
}

func (d *Driver) readCrash(name string) (vm.Recording, error) {
	b, err := d.state.ReadFile(name)
	if err != nil {
		return vm.Recording{}, err
	}
	var c crashRecord
	if err := json.Unmarshal(b, &c); err != nil {
		return vm.Recording{}, fmt.Errorf("%s: %w", name, err)
	}
	return vm.Recording(c), nil
}
