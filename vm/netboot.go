package vm

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Limits of the DHCP options of a network.
const (
	MaxDHCPOptions     = 32
	maxOptionValue     = 255 // bytes
	maxOptionAddresses = 63  // IPv4 addresses that fit into an option
	maxOptionBytes     = 512 // of all options with their codes and lengths
	maxBootFile        = 255 // characters: it fits into DHCP option 67
	MaxArchitectures   = 8
)

// A DHCPOption is an option that DHCPv4 sends to guests in addition to those that vmand sets
// itself. Exactly one of Addresses, Text, Hex and the numbers is given.
type DHCPOption struct {
	Code      int          `json:"code"`
	Addresses []netip.Addr `json:"addresses,omitempty"` // IPv4
	Text      string       `json:"text,omitempty"`
	Hex       string       `json:"hex,omitempty"`
	UInt8     *int64       `json:"uint8,omitempty"`
	UInt16    *int64       `json:"uint16,omitempty"`
	UInt32    *int64       `json:"uint32,omitempty"`
	// Always sends the option also to clients that do not request it.
	Always bool `json:"always,omitempty"`
}

// Encode returns the value of o in bytes.
func (o DHCPOption) Encode() ([]byte, error) {
	var b []byte
	given := 0
	if len(o.Addresses) > 0 {
		given++
		for _, a := range o.Addresses {
			if !a.Is4() {
				return nil, fmt.Errorf("%s is not an IPv4 address", a)
			}
			b = append(b, a.AsSlice()...)
		}
	}
	if o.Text != "" {
		given++
		if !recordText.MatchString(o.Text) {
			return nil, fmt.Errorf("text must not have control characters")
		}
		b = append(b, o.Text...)
	}
	if o.Hex != "" {
		given++
		raw, err := hex.DecodeString(o.Hex)
		if err != nil {
			return nil, fmt.Errorf("hex must be an even number of hexadecimal digits")
		}
		b = append(b, raw...)
	}
	for _, number := range []struct {
		v    *int64
		bits int
	}{{o.UInt8, 8}, {o.UInt16, 16}, {o.UInt32, 32}} {
		if number.v == nil {
			continue
		}
		given++
		if *number.v < 0 || *number.v >= 1<<number.bits {
			return nil, fmt.Errorf("uint%d must be 0 to %d", number.bits, int64(1)<<number.bits-1)
		}
		wide := binary.BigEndian.AppendUint32(nil, uint32(*number.v))
		b = append(b, wide[4-number.bits/8:]...)
	}
	if given != 1 {
		return nil, fmt.Errorf("must have exactly one of addresses, text, hex, uint8, uint16 and uint32")
	}
	if len(b) > maxOptionValue {
		return nil, fmt.Errorf("the value takes %d bytes, and at most %d fit into an option", len(b), maxOptionValue)
	}
	return b, nil
}

// reservedOptions are the codes of options that vmand sets itself, with what to use instead.
var reservedOptions = map[int]string{
	1:   "use subnet",
	3:   "it is the gateway",
	6:   "use dns",
	12:  "it is the name of the VM",
	15:  "use domain",
	26:  "use mtu",
	66:  "use pxe",
	67:  "use pxe",
	80:  "it belongs to the protocol",
	81:  "it belongs to the protocol",
	82:  "it belongs to the protocol",
	90:  "it belongs to the protocol",
	93:  "it belongs to the protocol",
	119: "use search_domains",
	121: "use routes",
}

// reservedOption returns what to use instead of the option with a code, or "" if the option is
// free.
func (n Network) reservedOption(code int) string {
	switch {
	case code >= 50 && code <= 61:
		return "it belongs to the protocol"
	case code == 42 && len(n.NTP) > 0:
		return "it has the servers of ntp"
	}
	return reservedOptions[code]
}

// checkDHCPOptions checks the DHCP options of n.
func (n Network) checkDHCPOptions() error {
	const field = "/dhcp_options"
	if len(n.DHCPOptions) > MaxDHCPOptions {
		return InvalidField(field, "must have at most %d entries", MaxDHCPOptions)
	}
	total := 0
	for i, o := range n.DHCPOptions {
		at := fmt.Sprintf("%s/%d", field, i)
		if o.Code < 1 || o.Code > 254 {
			return InvalidField(at+"/code", "must be 1 to 254")
		}
		if instead := n.reservedOption(o.Code); instead != "" {
			return InvalidField(at+"/code", "vmand sets option %d itself: %s", o.Code, instead)
		}
		if slices.ContainsFunc(n.DHCPOptions[:i], func(other DHCPOption) bool { return other.Code == o.Code }) {
			return InvalidField(at+"/code", "option %d is in the list twice", o.Code)
		}
		b, err := o.Encode()
		if err != nil {
			return InvalidField(at, "option %d: %v", o.Code, err)
		}
		total += 2 + len(b)
	}
	if total > maxOptionBytes {
		return InvalidField(field, "the options take %d bytes, and at most %d fit into a message", total, maxOptionBytes)
	}
	return nil
}

// A BootArchitecture is a kind of firmware that boots from the network.
type BootArchitecture string

// The architectures, by the names that the API uses.
const (
	BootBIOS      BootArchitecture = "bios"
	BootUEFIx86   BootArchitecture = "uefi-x86"
	BootUEFIx64   BootArchitecture = "uefi-x64"
	BootUEFIARM64 BootArchitecture = "uefi-arm64"
)

// BootArchitectures holds the processor architecture types of DHCP option 93 of every
// architecture (IANA, Processor Architecture Types): by TFTP, then by HTTP.
var BootArchitectures = map[BootArchitecture][]uint16{
	BootBIOS:      {0, 20},
	BootUEFIx86:   {6, 15},
	BootUEFIx64:   {7, 9, 16},
	BootUEFIARM64: {11, 19},
}

// A BootFile is what a guest that boots from the network loads.
type BootFile struct {
	// NextServer is the TFTP server that has Filename. It is not needed if Filename is a URL,
	// which iPXE loads by itself.
	NextServer netip.Addr `json:"next_server,omitzero"`
	Filename   string     `json:"filename,omitempty"`
	// HTTPBootURL is for the HTTP boot of UEFI firmware.
	HTTPBootURL string `json:"http_boot_url,omitempty"`
}

// A PXE is what guests that boot from the network of a [Network] load.
type PXE struct {
	BootFile
	Architectures []ArchitectureBoot `json:"architectures,omitempty"`
}

// An ArchitectureBoot replaces the given fields of a [PXE] for guests of an architecture.
type ArchitectureBoot struct {
	Architecture BootArchitecture `json:"architecture"`
	BootFile
}

// For returns the boot file for a guest with one of the given processor architecture types. The
// receiver may be nil.
func (p *PXE) For(types ...uint16) BootFile {
	if p == nil {
		return BootFile{}
	}
	file := p.BootFile
	for _, a := range p.Architectures {
		if !slices.ContainsFunc(types, func(t uint16) bool { return slices.Contains(BootArchitectures[a.Architecture], t) }) {
			continue
		}
		if a.NextServer.IsValid() {
			file.NextServer = a.NextServer
		}
		if a.Filename != "" {
			file.Filename = a.Filename
		}
		if a.HTTPBootURL != "" {
			file.HTTPBootURL = a.HTTPBootURL
		}
		break
	}
	return file
}

// checkPXE checks the network boot of n.
func (n Network) checkPXE() error {
	const field = "/pxe"
	if n.PXE == nil {
		return nil
	}
	files := []BootFile{n.PXE.BootFile}
	if err := n.PXE.BootFile.check(field); err != nil {
		return err
	}
	if len(n.PXE.Architectures) > MaxArchitectures {
		return InvalidField(field+"/architectures", "must have at most %d entries", MaxArchitectures)
	}
	for i, a := range n.PXE.Architectures {
		at := fmt.Sprintf("%s/architectures/%d", field, i)
		types := BootArchitectures[a.Architecture]
		if types == nil {
			return InvalidField(at+"/architecture", "must be bios, uefi-x86, uefi-x64 or uefi-arm64")
		}
		for _, other := range n.PXE.Architectures[:i] {
			if other.Architecture == a.Architecture {
				return InvalidField(at+"/architecture", "%s is in the list twice", a.Architecture)
			}
		}
		if err := a.BootFile.check(at); err != nil {
			return err
		}
		files = append(files, n.PXE.For(types...))
	}
	some := false
	for _, f := range files {
		some = some || f.Filename != "" || f.HTTPBootURL != ""
		if f.Filename != "" && !f.NextServer.IsValid() && !strings.Contains(f.Filename, "://") {
			return InvalidField(field+"/next_server",
				"must be the address of the TFTP server that has %s: only a URL needs none", f.Filename)
		}
	}
	if !some {
		return InvalidField(field, "must have a filename or an http_boot_url")
	}
	return nil
}

var visibleASCII = regexp.MustCompile(`^[!-~]*$`)

// check checks the fields of f on their own.
func (f BootFile) check(field string) error {
	a := f.NextServer
	if a.IsValid() && (!a.Is4() || a.IsUnspecified() || a.IsMulticast()) {
		return InvalidField(field+"/next_server", "%s is not the IPv4 address of a server", a)
	}
	if len(f.Filename) > maxBootFile || !visibleASCII.MatchString(f.Filename) {
		return InvalidField(field+"/filename", "must be at most %d visible ASCII characters without spaces", maxBootFile)
	}
	if f.HTTPBootURL == "" {
		return nil
	}
	u, err := url.Parse(f.HTTPBootURL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || len(f.HTTPBootURL) > maxBootFile ||
		!visibleASCII.MatchString(f.HTTPBootURL) {
		return InvalidField(field+"/http_boot_url",
			"%.64q must be a URL such as http://10.0.0.1/boot.efi of at most %d characters", f.HTTPBootURL, maxBootFile)
	}
	return nil
}
