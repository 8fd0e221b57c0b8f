package qemu

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vmand/qemu/qmp/qmptest"
	"vmand/vm"
)

// conversation scripts and records the QMP commands about a NIC, each as one text, of
// a QEMU that has half a NIC left of an interrupted attempt.
type conversation struct {
	mu       sync.Mutex
	commands []string
	plugged  bool
	status   vm.RunStatus
	refuse   string // the command that is refused
	silent   string // the command that gets no answer
	deleted  int    // the device_del after which the guest releases the NIC; 0 for never
	server   *qmptest.Server
}

func (c *conversation) answer(command string, args qmptest.Args) (any, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	word := strings.TrimSpace(command + " " + args.String("fdname") + args.String("id") + args.String("name"))
	c.commands = append(c.commands, word)
	switch command {
	case c.refuse:
		return nil, qmptest.Refuse("GenericError", "no")
	case c.silent:
		return nil, qmptest.ErrSilent
	case "device_add":
		c.plugged = true
	case "device_del":
		if !c.plugged {
			return nil, qmptest.Refuse("DeviceNotFound", "Device 'nic-1' not found")
		}
		if c.deleted--; c.deleted == 0 {
			c.plugged = false
			c.server.Event("DEVICE_DELETED", map[string]string{"path": "/machine/peripheral/nic-1/virtio-backend"})
			c.server.Event("DEVICE_DELETED", map[string]string{"device": "nic-1", "path": "/machine/peripheral/nic-1"})
		}
	}
	return nil, nil
}

// newConversation returns the host of VM web with the monitor c.
func newConversation(t *testing.T, c *conversation) *fakeHost {
	answers := map[string]qmptest.Handler{
		"query-status": func(string, qmptest.Args) (any, error) { return map[string]vm.RunStatus{"status": c.status}, nil },
		"qom-list": func(string, qmptest.Args) (any, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			names := []map[string]string{{"name": "type"}, {"name": "nic-x"}, {"name": "port-1"}, {"name": "disk-data"}}
			if c.plugged {
				names = append(names, map[string]string{"name": "nic-1"})
			}
			return names, nil
		},
	}
	for _, command := range []string{"getfd", "closefd", "netdev_add", "netdev_del", "device_add", "device_del", "set_link"} {
		answers[command] = c.answer
	}
	if c.status == "" {
		c.status = vm.StatusRunning
	}
	f := newFakeHost(t, fakeQEMU(answers))
	c.mu.Lock()
	c.server = f.server
	c.mu.Unlock()
	f.awaitStatus("web", c.status)
	return f
}

func (c *conversation) was() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.commands)
}

func TestANICIsPluggedStepByStep(t *testing.T) {
	t.Parallel()
	remove := []string{"netdev_del net-1", "closefd net-1-file", "closefd net-1-vhost"}
	begin := slices.Concat(remove, []string{"getfd net-1-file", "getfd net-1-vhost", "netdev_add net-1"})
	whole := slices.Concat(begin, []string{"device_add nic-1"})
	for name, c := range map[string]*struct {
		conversation
		down bool
		want vm.Code
		sent []string
	}{
		"all is well": {sent: whole},
		"the link is down": {
			down: true,
			sent: slices.Concat(begin, []string{"set_link net-1", "device_add nic-1", "set_link net-1"}),
		},
		"the NIC is plugged already": {conversation: conversation{plugged: true}},
		"the guest has not begun to run": {
			conversation: conversation{status: vm.StatusPrelaunch},
			want:         vm.CodeUnavailable,
		},
		"QEMU refuses a file": {
			conversation: conversation{refuse: "getfd"},
			want:         vm.CodeOperationFailed,
			sent:         slices.Concat(begin[:4], remove),
		},
		"QEMU refuses the netdev": {
			conversation: conversation{refuse: "netdev_add"},
			want:         vm.CodeOperationFailed,
			sent:         slices.Concat(begin, remove),
		},
		"QEMU refuses the card": {
			conversation: conversation{refuse: "device_add"},
			want:         vm.CodeOperationFailed,
			sent:         slices.Concat(whole, remove),
		},
		"QEMU does not answer about the card": {
			conversation: conversation{silent: "device_add"},
			want:         vm.CodeQEMUUnresponsive,
			sent:         whole,
		},
		"QEMU refuses to remove an old netdev": {
			conversation: conversation{refuse: "netdev_del"},
			want:         vm.CodeOperationFailed,
			sent:         begin[:1],
		},
		"QEMU does not answer about an old netdev": {
			conversation: conversation{silent: "netdev_del"},
			want:         vm.CodeQEMUUnresponsive,
			sent:         begin[:1],
		},
		"the guest is paused": {conversation: conversation{status: vm.StatusPaused}, sent: whole},
	} {
		t.Run(name, func(t *testing.T) {
			f := newConversation(t, &c.conversation)
			null, err := os.Open(os.DevNull)
			must(t, err)
			p := testPort(1, vm.PortTap)
			p.Files, p.VHost, p.LinkDown = []*os.File{null}, null, c.down
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if c.silent != "" {
				ctx, cancel = context.WithTimeout(t.Context(), time.Second)
			}
			defer cancel()
			mustFail(t, f.AttachNIC(ctx, "web", p), c.want)
			if got := c.was(); !slices.Equal(got, c.sent) {
				t.Errorf("the commands are %q\nwant %q", got, c.sent)
			}
			null.Close()
		})
	}
}

func TestANICIsUnpluggedStepByStep(t *testing.T) {
	t.Parallel()
	remove := []string{"netdev_del net-1", "closefd net-1-file", "closefd net-1-vhost"}
	for name, c := range map[string]*struct {
		conversation
		want vm.Code
		sent []string
	}{
		"the guest releases it": {
			conversation: conversation{plugged: true, deleted: 1},
			sent:         slices.Concat([]string{"device_del nic-1"}, remove),
		},
		"the guest releases it at the second request": {
			conversation: conversation{plugged: true, deleted: 2},
			sent:         slices.Concat([]string{"device_del nic-1", "device_del nic-1"}, remove),
		},
		"the NIC is missing": {sent: slices.Concat([]string{"device_del nic-1"}, remove)},
		"the guest has not begun to run": {
			conversation: conversation{plugged: true, status: vm.StatusPrelaunch},
			want:         vm.CodeUnavailable,
		},
		"the guest is paused": {
			conversation: conversation{plugged: true, status: vm.StatusPaused},
			want:         vm.CodeUnavailable,
			sent:         []string{"device_del nic-1"},
		},
		"the guest has panicked": {
			conversation: conversation{plugged: true, status: "guest-panicked"},
			want:         vm.CodeUnavailable,
			sent:         []string{"device_del nic-1"},
		},
		"QEMU is mute": {
			conversation: conversation{plugged: true, silent: "device_del"},
			want:         vm.CodeQEMUUnresponsive,
			sent:         []string{"device_del nic-1"},
		},
		"QEMU refuses to remove the netdev": {
			conversation: conversation{refuse: "netdev_del"},
			want:         vm.CodeOperationFailed,
			sent:         []string{"device_del nic-1", "netdev_del net-1"},
		},
		"the guest ignores it": {
			conversation: conversation{plugged: true},
			want:         vm.CodeUnavailable,
			sent:         []string{"device_del nic-1", "device_del nic-1"},
		},
		"QEMU says that it is being removed": {
			conversation: conversation{plugged: true, refuse: "device_del"},
			want:         vm.CodeUnavailable,
			sent:         []string{"device_del nic-1", "device_del nic-1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newConversation(t, &c.conversation)
			ctx, cancel := context.WithTimeout(t.Context(), lookInterval*3/2)
			defer cancel()
			mustFail(t, f.DetachNIC(ctx, "web", 1), c.want)
			if got := c.was(); !slices.Equal(got, c.sent) {
				t.Errorf("the commands are %q\nwant %q", got, c.sent)
			}
		})
	}
}

func TestOneQueryListsAllPluggedDevices(t *testing.T) {
	c := conversation{plugged: true}
	f := newConversation(t, &c)
	before := len(f.server.Commands())
	o := f.Observe(t.Context(), "web")
	if !slices.Equal(o.NICs, []int{1}) || !slices.Equal(o.Plugged, []string{"data"}) {
		t.Errorf("Observe returns %+v", o)
	}
	if asked := f.server.Commands()[before:]; !slices.Equal(asked, []string{"query-status", "qom-list"}) {
		t.Errorf("the commands are %q", asked)
	}
}

func TestQEMUsErrorsAboutForwardsHaveCodes(t *testing.T) {
	for said, want := range map[string]vm.Code{
		"": "",
		"Could not set up host forwarding rule 'tcp:127.0.0.1:80-:80'\r\n": vm.CodeInUse,
		"could not set up host forwarding rule 'tcp:127.0.0.1:80-:80'\r\n": vm.CodeInUse,
		"unrecognized netdev id 'net-0'\r\n":                               vm.CodeOperationFailed,
	} {
		f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{"human-monitor-command": func(_ string, args qmptest.Args) (any, error) {
			if args.String("command-line") == "info usernet" {
				return "Hub -1 (net-0):\r\n", nil
			}
			return said, nil
		}}))
		mustFail(t, f.SetForwards(t.Context(), "web", 0, nil, []vm.PortForward{forwardTo(80, 80)}), want)
	}
}
