package qga

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Time limits of commands. An agent executes one command at a time, and a query returns
// at once unless the guest is overloaded.
const (
	pingTimeout   = 5 * time.Second
	queryTimeout  = 10 * time.Second
	freezeTimeout = 30 * time.Second
	trimTimeout   = 5 * time.Minute
)

// Limits of lists from a guest. Elements beyond them are dropped.
const (
	maxInterfaces  = 256
	maxAddresses   = 64 // of an interface
	maxFilesystems = 1024
	maxDisks       = 64 // of a file system
)

// Info is the version and the commands of an agent.
type Info struct {
	Version  string
	Commands map[string]bool // by name; true if the command is enabled
}

// OS describes the operating system of a guest.
type OS struct {
	ID, Name, Version, Kernel, Machine string
}

// Interface is a network interface of a guest.
type Interface struct {
	Name      string
	MAC       string // in the format of net.HardwareAddr, or empty
	Addresses []netip.Prefix
}

// Filesystem is a mounted file system of a guest.
type Filesystem struct {
	MountPoint, Type      string
	Device                string // its block device in the guest, such as sda1
	UsedBytes, TotalBytes int64  // 0 if not known
	Disks                 []Disk // that it is on, through partitions and volumes
}

// Disk is a disk of a guest with its address. A part that the agent does not know is 0 or
// empty.
type Disk struct {
	Serial            string
	BusType           string  // such as scsi
	PCI               Address // of the controller
	Bus, Target, Unit int     // of the disk at the controller
}

// Address is the address of a PCI function.
type Address struct {
	Domain   int `json:"domain"`
	Bus      int `json:"bus"`
	Slot     int `json:"slot"`
	Function int `json:"function"`
}

// Ping returns nil if the agent answers.
func (c *Client) Ping(ctx context.Context) error {
	return c.call(ctx, pingTimeout, maxLine, "guest-ping", nil, nil)
}

// Info returns the version and the commands of the agent.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var r struct {
		Version  string `json:"version"`
		Commands []struct {
			Name    string `json:"name"`
			Enabled bool   `json:"enabled"`
		} `json:"supported_commands"`
	}
	if err := c.call(ctx, queryTimeout, maxLine, "guest-info", nil, &r); err != nil {
		return Info{}, err
	}
	info := Info{Version: clean(r.Version, maxText), Commands: make(map[string]bool)}
	for _, command := range r.Commands {
		if name := clean(command.Name, maxText); name != "" {
			info.Commands[name] = command.Enabled
		}
	}
	return info, nil
}

// Hostname returns the host name of the guest.
func (c *Client) Hostname(ctx context.Context) (string, error) {
	var r struct {
		Name string `json:"host-name"`
	}
	err := c.call(ctx, queryTimeout, maxLine, "guest-get-host-name", nil, &r)
	return clean(r.Name, maxText), err
}

// OS returns the operating system of the guest.
func (c *Client) OS(ctx context.Context) (OS, error) {
	var r struct {
		ID         string `json:"id"`
		Name       string `json:"name"`
		PrettyName string `json:"pretty-name"`
		Version    string `json:"version"`
		VersionID  string `json:"version-id"`
		Kernel     string `json:"kernel-release"`
		Machine    string `json:"machine"`
	}
	if err := c.call(ctx, queryTimeout, maxLine, "guest-get-osinfo", nil, &r); err != nil {
		return OS{}, err
	}
	first := func(a, b string) string {
		if a = clean(a, maxText); a != "" {
			return a
		}
		return clean(b, maxText)
	}
	return OS{
		ID:      clean(r.ID, maxText),
		Name:    first(r.Name, r.PrettyName),
		Version: first(r.Version, r.VersionID),
		Kernel:  clean(r.Kernel, maxText),
		Machine: clean(r.Machine, maxText),
	}, nil
}

// Interfaces returns the network interfaces of the guest. It drops invalid addresses.
func (c *Client) Interfaces(ctx context.Context) ([]Interface, error) {
	var r []struct {
		Name      string `json:"name"`
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			IP     string `json:"ip-address"`
			Prefix int    `json:"prefix"`
		} `json:"ip-addresses"`
	}
	if err := c.call(ctx, queryTimeout, maxLine, "guest-network-get-interfaces", nil, &r); err != nil {
		return nil, err
	}
	var all []Interface
	for _, i := range r[:min(len(r), maxInterfaces)] {
		n := Interface{Name: clean(i.Name, maxText)}
		if mac, err := net.ParseMAC(i.MAC); err == nil {
			n.MAC = mac.String()
		}
		for _, a := range i.Addresses[:min(len(i.Addresses), maxAddresses)] {
			ip, err := netip.ParseAddr(a.IP)
			if err == nil && a.Prefix >= 0 && a.Prefix <= ip.BitLen() {
				n.Addresses = append(n.Addresses, netip.PrefixFrom(ip.WithZone(""), a.Prefix))
			}
		}
		if n.Name != "" {
			all = append(all, n)
		}
	}
	return all, nil
}

// Time returns the time of the guest's clock.
func (c *Client) Time(ctx context.Context) (time.Time, error) {
	var ns int64
	if err := c.call(ctx, queryTimeout, maxLine, "guest-get-time", nil, &ns); err != nil {
		return time.Time{}, err
	}
	return time.Unix(0, ns).UTC(), nil
}

// SetTime sets the guest's clock, and then its hardware clock. An agent of QEMU 7.2 does
// nothing if the guest has no program hwclock, and reports an error after it has set the
// clock if that program fails.
func (c *Client) SetTime(ctx context.Context, t time.Time) error {
	args := map[string]int64{"time": t.UnixNano()}
	return c.call(ctx, queryTimeout, maxLine, "guest-set-time", args, nil)
}

// Filesystems returns the mounted file systems of the guest.
func (c *Client) Filesystems(ctx context.Context) ([]Filesystem, error) {
	var r []struct {
		Name       string `json:"name"`
		MountPoint string `json:"mountpoint"`
		Type       string `json:"type"`
		Used       size   `json:"used-bytes"`
		Total      size   `json:"total-bytes"`
		Disks      []struct {
			Serial  string  `json:"serial"`
			BusType string  `json:"bus-type"`
			PCI     Address `json:"pci-controller"`
			Bus     int     `json:"bus"`
			Target  int     `json:"target"`
			Unit    int     `json:"unit"`
		} `json:"disk"`
	}
	if err := c.call(ctx, queryTimeout, maxLine, "guest-get-fsinfo", nil, &r); err != nil {
		return nil, err
	}
	var all []Filesystem
	for _, f := range r[:min(len(r), maxFilesystems)] {
		n := Filesystem{
			MountPoint: clean(f.MountPoint, maxPath),
			Type:       clean(f.Type, maxText),
			Device:     clean(f.Name, maxText),
			UsedBytes:  int64(f.Used),
			TotalBytes: int64(f.Total),
		}
		for _, d := range f.Disks[:min(len(f.Disks), maxDisks)] {
			n.Disks = append(n.Disks, Disk{
				Serial:  clean(d.Serial, maxText),
				BusType: clean(d.BusType, maxText),
				PCI:     d.PCI,
				Bus:     d.Bus,
				Target:  d.Target,
				Unit:    d.Unit,
			})
		}
		all = append(all, n)
	}
	return all, nil
}

// SetPassword sets the password of a user of the guest.
func (c *Client) SetPassword(ctx context.Context, user, password string) error {
	args := struct {
		User     string `json:"username"`
		Password []byte `json:"password"` // base64
		Crypted  bool   `json:"crypted"`
	}{user, []byte(password), false}
	return c.call(ctx, queryTimeout, maxLine, "guest-set-user-password", args, nil)
}

// Trim makes the guest discard the unused blocks of its file systems. It fails only if
// no file system can be trimmed.
func (c *Client) Trim(ctx context.Context) error {
	const command = "guest-fstrim"
	var r struct {
		Paths []struct {
			Path  string  `json:"path"`
			Error *string `json:"error"`
		} `json:"paths"`
	}
	if err := c.call(ctx, trimTimeout, maxLine, command, nil, &r); err != nil {
		return err
	}
	var failures []string
	for _, p := range r.Paths {
		if p.Error == nil {
			return nil
		}
		failures = append(failures, p.Path+": "+*p.Error)
	}
	if len(failures) == 0 {
		return nil
	}
	desc := clean(strings.Join(failures, "; "), maxDesc)
	return &Error{Command: command, Class: "GenericError", Desc: desc}
}

// Freeze freezes the file systems of the guest at the mount points, or all without mount
// points, and returns their number.
func (c *Client) Freeze(ctx context.Context, mountPoints ...string) (int, error) {
	if len(mountPoints) == 0 {
		return c.count(ctx, "guest-fsfreeze-freeze", nil)
	}
	args := map[string][]string{"mountpoints": mountPoints}
	return c.count(ctx, "guest-fsfreeze-freeze-list", args)
}

// Thaw thaws the file systems of the guest and returns their number.
func (c *Client) Thaw(ctx context.Context) (int, error) {
	return c.count(ctx, "guest-fsfreeze-thaw", nil)
}

// count runs a command that returns a number of file systems.
func (c *Client) count(ctx context.Context, command string, args any) (int, error) {
	var n int
	err := c.call(ctx, freezeTimeout, maxLine, command, args, &n)
	if err == nil && (n < 0 || n > 1<<20) {
		n, err = 0, fmt.Errorf("%w: %s of %d file systems", ErrGarbage, command, n)
	}
	return n, err
}

// Frozen reports whether the file systems of the guest are frozen.
func (c *Client) Frozen(ctx context.Context) (bool, error) {
	var status string
	err := c.call(ctx, queryTimeout, maxLine, "guest-fsfreeze-status", nil, &status)
	return status == "frozen", err
}
