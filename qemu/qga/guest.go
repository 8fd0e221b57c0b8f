package qga

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// How long an agent may take. It does one thing at a time, and what only asks is
// done at once unless the guest is overloaded.
const (
	pingTimeout   = 5 * time.Second
	askTimeout    = 10 * time.Second
	freezeTimeout = 30 * time.Second
	trimTimeout   = 5 * time.Minute
)

// Limits of lists from a guest. What is beyond them is left out.
const (
	maxInterfaces  = 256
	maxAddresses   = 64 // of an interface
	maxFilesystems = 1024
	maxDisks       = 64 // of a file system
)

// Info is what an agent says of itself.
type Info struct {
	Version  string
	Commands map[string]bool // those it has; true if it may be asked for it
}

// OS is what a guest says of its operating system.
type OS struct {
	ID, Name, Version, Kernel, Machine string
}

// Interface is a network interface of a guest.
type Interface struct {
	Name      string
	MAC       string // as net.HardwareAddr writes it, or empty
	Addresses []netip.Prefix
}

// Filesystem is a mounted file system of a guest.
type Filesystem struct {
	MountPoint, Type      string
	UsedBytes, TotalBytes int64 // 0 when unknown
	Disks                 []string
}

// Ping returns nil if the agent answers.
func (c *Client) Ping(ctx context.Context) error {
	return c.call(ctx, pingTimeout, maxLine, "guest-ping", nil, nil)
}

// Info asks for the agent's version and commands.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var r struct {
		Version  string `json:"version"`
		Commands []struct {
			Name    string `json:"name"`
			Enabled bool   `json:"enabled"`
		} `json:"supported_commands"`
	}
	if err := c.call(ctx, askTimeout, maxLine, "guest-info", nil, &r); err != nil {
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

// Hostname asks for the guest's name.
func (c *Client) Hostname(ctx context.Context) (string, error) {
	var r struct {
		Name string `json:"host-name"`
	}
	err := c.call(ctx, askTimeout, maxLine, "guest-get-host-name", nil, &r)
	return clean(r.Name, maxText), err
}

// OS asks what the guest runs.
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
	if err := c.call(ctx, askTimeout, maxLine, "guest-get-osinfo", nil, &r); err != nil {
		return OS{}, err
	}
	first := func(a, b string) string {
		if a = clean(a, maxText); a != "" {
			return a
		}
		return clean(b, maxText)
	}
	return OS{
		ID: clean(r.ID, maxText), Name: first(r.Name, r.PrettyName), Version: first(r.Version, r.VersionID),
		Kernel: clean(r.Kernel, maxText), Machine: clean(r.Machine, maxText),
	}, nil
}

// Interfaces asks for the guest's network interfaces, with their addresses that
// are some.
func (c *Client) Interfaces(ctx context.Context) ([]Interface, error) {
	var r []struct {
		Name      string `json:"name"`
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			IP     string `json:"ip-address"`
			Prefix int    `json:"prefix"`
		} `json:"ip-addresses"`
	}
	if err := c.call(ctx, askTimeout, maxLine, "guest-network-get-interfaces", nil, &r); err != nil {
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

// Filesystems asks for the guest's mounted file systems.
func (c *Client) Filesystems(ctx context.Context) ([]Filesystem, error) {
	var r []struct {
		MountPoint string `json:"mountpoint"`
		Type       string `json:"type"`
		Used       size   `json:"used-bytes"`
		Total      size   `json:"total-bytes"`
		Disks      []struct {
			Serial string `json:"serial"`
		} `json:"disk"`
	}
	if err := c.call(ctx, askTimeout, maxLine, "guest-get-fsinfo", nil, &r); err != nil {
		return nil, err
	}
	var all []Filesystem
	for _, f := range r[:min(len(r), maxFilesystems)] {
		n := Filesystem{MountPoint: clean(f.MountPoint, maxPath), Type: clean(f.Type, maxText), UsedBytes: int64(f.Used), TotalBytes: int64(f.Total)}
		for _, d := range f.Disks[:min(len(f.Disks), maxDisks)] {
			if serial := clean(d.Serial, maxText); serial != "" {
				n.Disks = append(n.Disks, serial)
			}
		}
		all = append(all, n)
	}
	return all, nil
}

// SetPassword sets a user's password.
func (c *Client) SetPassword(ctx context.Context, user, password string) error {
	return c.call(ctx, askTimeout, maxLine, "guest-set-user-password", struct {
		User     string `json:"username"`
		Password string `json:"password"`
		Crypted  bool   `json:"crypted"`
	}{user, base64.StdEncoding.EncodeToString([]byte(password)), false}, nil)
}

// Trim has the guest discard what its file systems do not use. Those that cannot
// are no error, unless none can.
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
	var said []string
	for _, p := range r.Paths {
		if p.Error == nil {
			return nil
		}
		said = append(said, p.Path+": "+*p.Error)
	}
	if len(said) > 0 {
		return &Error{Command: command, Class: "GenericError", Desc: clean(strings.Join(said, "; "), maxWords)}
	}
	return nil
}

// Freeze holds the writes of the guest's file systems and returns how many.
func (c *Client) Freeze(ctx context.Context) (int, error) {
	return c.count(ctx, "guest-fsfreeze-freeze")
}

// Thaw lets them go again and returns how many.
func (c *Client) Thaw(ctx context.Context) (int, error) {
	return c.count(ctx, "guest-fsfreeze-thaw")
}

func (c *Client) count(ctx context.Context, command string) (int, error) {
	var n int
	err := c.call(ctx, freezeTimeout, maxLine, command, nil, &n)
	if err == nil && (n < 0 || n > 1<<20) {
		n, err = 0, fmt.Errorf("%w: %s of %d file systems", ErrGarbage, command, n)
	}
	return n, err
}

// Frozen asks whether writes are held.
func (c *Client) Frozen(ctx context.Context) (bool, error) {
	var status string
	err := c.call(ctx, askTimeout, maxLine, "guest-fsfreeze-status", nil, &status)
	return status == "frozen", err
}
