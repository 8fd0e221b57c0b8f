package manager

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"vmand/failpoint"
	"vmand/vm"
)

// CloudInits keeps the cloud-init data of VMs.
type CloudInits struct {
	*Engine
	asked map[string]time.Time // when a guest was last asked for its progress, by VM id; mu of the engine guards it
}

// A VM that runs keeps the seed it was started with until the new one is recorded.
var cloudInitSet = verb{
	kind: vm.CloudInitSet, timeout: deviceTimeout, preemptible: true, edit: true,
	cleanup: reapplyRecord, reached: recordedOnly, answer: vm.AnswerTarget,
	points: []string{"seed.written", "cdrom.node-added", "cdrom.device-added"},
}

// Get returns the cloud-init data of a VM, and the report of the guest if its agent answers.
// It fails with [vm.ErrNotFound] if the VM has no cloud-init data.
func (s *CloudInits) Get(ctx context.Context, id string) (vm.CloudInitView, error) {
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return vm.CloudInitView{}, err
	}
	seed, err := s.store.Seed(ctx, id)
	if err != nil {
		return vm.CloudInitView{}, err
	}
	networks, err := s.Networks.of(ctx, v)
	if err != nil {
		return vm.CloudInitView{}, err
	}
	view := vm.CloudInitView{
		InstanceID: seed.InstanceID(v),
		Spec:       seed.CloudInit,
		Attached:   v.HasSeed(),
		Files:      map[string]string{},
		Version:    v.Version(),
	}
	for name, content := range vm.SeedFiles(v, seed, networks) {
		view.Files[name] = string(content)
	}
	if v.State == vm.Running {
		if status, err := s.status(ctx, id); err == nil && status.Status != "" {
			view.Guest = &status
		}
	}
	return view, nil
}

// Set replaces the cloud-init data of a VM. The guest gets it at the next start of the VM.
// With reprovision cloud-init applies all of it, as at the first boot; otherwise only the
// parts for every boot. An ejected seed is inserted again.
func (s *CloudInits) Set(
	ctx context.Context, vmID string, c vm.CloudInit, reprovision bool, match vm.Match,
) (vm.CloudInitView, error) {
	if err := c.Check(""); err != nil {
		return vm.CloudInitView{}, err
	}
	change := &seedReplacement{s: s, next: vm.Seed{VMID: vmID, CloudInit: c}, reprovision: reprovision}
	edit := &liveEdit{id: vmID, match: match, late: true, change: change}
	if err := s.VMs.liveEdit(ctx, &cloudInitSet, edit); err != nil {
		return vm.CloudInitView{}, err
	}
	return s.Get(ctx, vmID)
}

// A seedReplacement is one [CloudInits.Set].
type seedReplacement struct {
	s           *CloudInits
	next        vm.Seed
	reprovision bool
}

func (x *seedReplacement) seed() *vm.Seed { return &x.next }

func (x *seedReplacement) edit(ctx context.Context, _ *run, v *vm.VM) (vm.Target, error) {
	had, err := x.s.store.Seed(ctx, v.ID)
	switch {
	case errors.Is(err, vm.ErrNotFound):
	case err != nil:
		return vm.Target{}, err
	default:
		x.next.Instance = had.Instance
		if x.reprovision {
			x.next.Instance++
		}
	}
	if !v.HasSeed() {
		v.CDROMs = append(slices.Clone(v.CDROMs), vm.CDROM{ID: vm.SeedCDROM})
		slices.SortFunc(v.CDROMs, vm.CompareCDROMs)
	}
	return vm.Target{CDROM: vm.SeedCDROM}, nil
}

func (x *seedReplacement) apply(ctx context.Context, v vm.VM) error {
	networks, err := x.s.Networks.of(ctx, v)
	if err != nil {
		return err
	}
	if err := x.s.write(ctx, v, x.next, networks); err != nil {
		return err
	}
	return x.s.CDROMs.plug(ctx, v)
}

// writeSeed writes the seed of a VM that is about to start, if the VM has a drive for it.
func (s *CloudInits) writeSeed(ctx context.Context, v vm.VM, networks map[string]vm.Network) error {
	if !v.HasSeed() {
		return nil
	}
	seed, err := s.store.Seed(ctx, v.ID)
	if err != nil {
		return err
	}
	return s.write(ctx, v, seed, networks)
}

func (s *CloudInits) write(ctx context.Context, v vm.VM, seed vm.Seed, networks map[string]vm.Network) error {
	if err := s.driver.WriteSeed(ctx, v.ID, vm.SeedFiles(v, seed, networks)); err != nil {
		return err
	}
	failpoint.Hit("seed.written")
	return nil
}

const (
	// cloudInitTimeout is how long a guest may take to report the progress of cloud-init.
	cloudInitTimeout = 15 * time.Second
	// cloudInitInterval is how often a guest is asked for it.
	cloudInitInterval = 10 * time.Second
	// maxGuestErrors is how many errors of a guest are shown.
	maxGuestErrors = 20
)

// cloudInitScript prints the state of cloud-init in a word, and then what cloud-init has
// written about it. It reads the files that cloud-init keeps for that (cloudinit/cmd/main.py
// and tools/ds-identify in its source). The command "cloud-init status" reads the same, but
// is a Python program that takes seconds of a guest's only processor while the guest boots.
const cloudInitScript = `d=/run/cloud-init
if [ -e $d/result.json ]; then echo result; exec cat $d/result.json
elif [ -e $d/status.json ]; then echo running; exec cat $d/status.json
elif [ -e $d/disabled ]; then echo disabled
elif command -v cloud-init >/dev/null; then echo not run
else echo absent; fi`

// status asks a guest, through its agent, for the progress of cloud-init. The status of a
// guest that does not answer is empty. It fails with [vm.CodeGuestRefused] if the guest does
// not allow the question.
func (s *CloudInits) status(ctx context.Context, id string) (vm.CloudInitStatus, error) {
	if s.driver.Agent(id).State != vm.AgentConnected {
		return vm.CloudInitStatus{}, nil
	}
	ctx, stop := context.WithTimeout(ctx, cloudInitTimeout)
	defer stop()
	r, err := s.driver.Exec(ctx, id, vm.GuestCommand{
		Path: "/bin/sh", Args: []string{"-c", cloudInitScript}, Timeout: cloudInitTimeout,
	})
	switch {
	case vm.HasCode(err, vm.CodeGuestRefused):
		return vm.CloudInitStatus{}, err // a rule of the guest's, which does not change
	case err != nil, !r.Exited, r.ExitCode != 0:
		return vm.CloudInitStatus{}, nil
	}
	return parseCloudInitStatus(r.Stdout), nil
}

// parseCloudInitStatus parses the output of cloudInitScript. The status of output that cannot
// be parsed is empty: the file may be half written.
func parseCloudInitStatus(text []byte) vm.CloudInitStatus {
	word, rest, _ := strings.Cut(string(text), "\n")
	switch word {
	case "disabled", "not run", vm.CloudInitAbsent:
		return vm.CloudInitStatus{Status: word}
	case "running", "result":
	default:
		return vm.CloudInitStatus{}
	}
	var file struct {
		V1 *struct {
			Stage      string   `json:"stage"`
			DataSource string   `json:"datasource"`
			Errors     []string `json:"errors"`
		} `json:"v1"`
	}
	if json.Unmarshal([]byte(rest), &file) != nil || file.V1 == nil {
		return vm.CloudInitStatus{}
	}
	if word == "running" {
		return vm.CloudInitStatus{Status: "running", Detail: vm.Printable(file.V1.Stage)}
	}
	status := vm.CloudInitStatus{Status: "done", Detail: vm.Printable(file.V1.DataSource)}
	for _, e := range file.V1.Errors[:min(len(file.V1.Errors), maxGuestErrors)] {
		status.Status = "error"
		status.Errors = append(status.Errors, vm.Printable(e))
	}
	return status
}

// done reports whether cloud-init in a guest is done, and marks that in the boot times. If
// cloud-init has failed, done marks that and returns its error. It returns false for a guest
// that does not answer.
func (s *CloudInits) done(ctx context.Context, id string) (bool, error) {
	status, err := s.status(ctx, id)
	if err != nil {
		return false, err
	}
	done, err := status.Finished(id)
	switch {
	case done:
		s.Guests.Mark(id, vm.BootCloudInit, now())
	case err != nil:
		s.Guests.Mark(id, vm.BootCloudInitFailed, now())
	}
	return done, err
}

// ask asks the guests with a seed for the progress of their cloud-init until it is over, so
// that the times of a boot are known although no request waits for it. It does not wait.
func (s *CloudInits) ask(vms []vm.VM) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := make(map[string]time.Time, len(s.asked))
	for _, v := range vms {
		over := !v.Boot.CloudInit.IsZero() || !v.Boot.CloudInitFailed.IsZero()
		if !v.HasSeed() || over || s.driver.Agent(v.ID).State != vm.AgentConnected {
			continue
		}
		asked[v.ID] = s.asked[v.ID]
		if time.Since(asked[v.ID]) >= cloudInitInterval {
			asked[v.ID] = time.Now()
			s.background(func() {
				if _, err := s.done(context.Background(), v.ID); err != nil {
					s.log.Info("cloud-init of a guest reports a failure", "vm", v.ID, "err", err)
				}
			})
		}
	}
	s.asked = asked // without deleted VMs
}
