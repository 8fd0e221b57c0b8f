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

// Get returns what is recorded of a VM's cloud-init data, with what the guest
// says where it can be asked. It fails with [ErrNotFound] if nothing is recorded.
func (c *CloudInits) Get(ctx context.Context, id string) (vm.CloudInitView, error) {
	v, err := c.store.VM(ctx, id)
	if err != nil {
		return vm.CloudInitView{}, err
	}
	s, err := c.store.Seed(ctx, id)
	if err != nil {
		return vm.CloudInitView{}, err
	}
	networks, err := c.Networks.of(ctx, v)
	if err != nil {
		return vm.CloudInitView{}, err
	}
	view := vm.CloudInitView{InstanceID: s.InstanceID(v), Spec: s.Masked(), Files: map[string]string{}, Version: v.Version(), Attached: v.HasSeed()}
	for name, content := range vm.SeedFiles(v, s, networks) {
		view.Files[name] = vm.MaskSeedFile(name, content)
	}
	if v.State == vm.Running {
		if says, err := c.status(ctx, id); err == nil && says.Status != "" {
			view.Guest = &says
		}
	}
	return view, nil
}

// Set replaces a VM's cloud-init data. The guest gets them at the VM's next
// start, and takes all of them on anew if it is to be reprovisioned; otherwise
// cloud-init does what it does at every boot. A seed that was ejected is put in again.
func (c *CloudInits) Set(ctx context.Context, vmID string, spec vm.CloudInit, reprovision bool, match vm.Match) (vm.CloudInitView, error) {
	if err := spec.Check(""); err != nil {
		return vm.CloudInitView{}, err
	}
	s := vm.Seed{VMID: vmID, CloudInit: spec}
	err := c.VMs.liveEdit(ctx, tuning{kind: vm.CloudInitSet, vmID: vmID, match: match, late: true, seed: &s, edit: func(ctx context.Context, v *vm.VM) error {
		had, err := c.store.Seed(ctx, vmID)
		switch {
		case errors.Is(err, vm.ErrNotFound):
		case err != nil:
			return err
		default:
			s.Instance = had.Instance
			if reprovision {
				s.Instance++
			}
		}
		if !v.HasSeed() {
			v.CDROMs = append(slices.Clone(v.CDROMs), vm.CDROM{ID: vm.SeedCDROM})
			slices.SortFunc(v.CDROMs, vm.OrderCDROMs)
		}
		return nil
	}, apply: func(ctx context.Context, v vm.VM) error {
		networks, err := c.Networks.of(ctx, v)
		if err == nil {
			err = c.makeSeed(ctx, v, s, networks)
		}
		if err != nil {
			return err
		}
		return c.CDROMs.plug(ctx, v)
	}})
	if err != nil {
		return vm.CloudInitView{}, err
	}
	return c.Get(ctx, vmID)
}

// writeSeed makes the seed of a VM that is about to start, if it has a drive for it.
func (c *CloudInits) writeSeed(ctx context.Context, v vm.VM, networks map[string]vm.Network) error {
	if !v.HasSeed() {
		return nil
	}
	s, err := c.store.Seed(ctx, v.ID)
	if err != nil {
		return err
	}
	return c.makeSeed(ctx, v, s, networks)
}

func (c *CloudInits) makeSeed(ctx context.Context, v vm.VM, s vm.Seed, networks map[string]vm.Network) error {
	if err := c.driver.WriteSeed(ctx, v.ID, vm.SeedFiles(v, s, networks)); err != nil {
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

// status asks a guest, through the agent, how far cloud-init is. A guest
// that does not answer has an empty status. It fails with [CodeGuestRefused] if it can
// never be asked.
func (c *CloudInits) status(ctx context.Context, id string) (vm.CloudInitStatus, error) {
	if c.driver.Agent(id).State != vm.AgentConnected {
		return vm.CloudInitStatus{}, nil
	}
	ctx, stop := context.WithTimeout(ctx, cloudInitTimeout)
	defer stop()
	r, err := c.driver.Exec(ctx, id, vm.GuestCommand{Path: "/bin/sh", Args: []string{"-c", cloudInitScript}, Timeout: cloudInitTimeout})
	var f *vm.Fault
	switch {
	case errors.As(err, &f) && f.Code == vm.CodeGuestRefused:
		return vm.CloudInitStatus{}, err // by its rules, which do not change
	case err != nil, !r.Exited, r.ExitCode != 0:
		return vm.CloudInitStatus{}, nil
	}
	return cloudInitSays(r.Stdout), nil
}

// maxGuestErrors is how many errors of a guest are told.
const maxGuestErrors = 20

// cloudInitSays reads what cloudInitScript has written. What cannot be read, because
// it is just being written, may be better the next time.
func cloudInitSays(text []byte) vm.CloudInitStatus {
	word, rest, _ := strings.Cut(string(text), "\n")
	switch word {
	case "disabled", "not run", vm.CloudInitAbsent:
		return vm.CloudInitStatus{Status: word}
	case "running", "result":
	default:
		return vm.CloudInitStatus{}
	}
	var says struct {
		V1 *struct {
			Stage      string   `json:"stage"`
			DataSource string   `json:"datasource"`
			Errors     []string `json:"errors"`
		} `json:"v1"`
	}
	if json.Unmarshal([]byte(rest), &says) != nil || says.V1 == nil {
		return vm.CloudInitStatus{}
	}
	s := vm.CloudInitStatus{Status: "running", Detail: vm.Printable(says.V1.Stage)}
	if word == "running" {
		return s
	}
	s.Status, s.Detail = "done", vm.Printable(says.V1.DataSource)
	for _, e := range says.V1.Errors[:min(len(says.V1.Errors), maxGuestErrors)] {
		s.Status = "error"
		s.Errors = append(s.Errors, vm.Printable(e))
	}
	return s
}

// done asks cloud-init in a guest whether it is done, and notes that it
// is, or that it has failed, which is an error in its own words. A guest that does
// not answer is not done.
func (c *CloudInits) done(ctx context.Context, id string) (bool, error) {
	s, err := c.status(ctx, id)
	if err != nil {
		return false, err
	}
	done, err := s.Over(id)
	switch {
	case done:
		c.Guests.Mark(id, vm.BootCloudInit, now())
	case err != nil:
		c.Guests.Mark(id, vm.BootCloudInitFailed, now())
	}
	return done, err
}

// ask asks the guests that have a seed how far their cloud-init is, until
// it is over, so that the times of a boot are known although nobody waits. It does
// not wait.
func (c *CloudInits) ask(vms []vm.VM) {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := make(map[string]time.Time, len(c.booting))
	for _, v := range vms {
		over := !v.Boot.CloudInit.IsZero() || !v.Boot.CloudInitFailed.IsZero()
		if !v.HasSeed() || over || c.driver.Agent(v.ID).State != vm.AgentConnected {
			continue
		}
		asked[v.ID] = c.booting[v.ID]
		if !c.closing && time.Since(asked[v.ID]) >= bootInterval {
			asked[v.ID] = time.Now()
			c.wg.Go(func() {
				if _, err := c.done(context.Background(), v.ID); err != nil {
					c.log.Info("cloud-init of a guest is not well", "vm_id", v.ID, "err", err)
				}
			})
		}
	}
	c.booting = asked // and those that are gone are forgotten
}

// bootInterval is how often the cloud-init of a guest is asked how far it is.
const bootInterval = 10 * time.Second
