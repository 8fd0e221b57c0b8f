package vm

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// A Seed is the record of the cloud-init data of a VM.
type Seed struct {
	VMID string
	CloudInit
	// Instance is the number of reprovisions. It is a part of the instance id: cloud-init runs
	// its first-boot configuration again when the instance id changes.
	Instance int
}

// InstanceID returns the instance id for the guest of v: the UUID of v, followed by the number
// of reprovisions if there were any.
func (s Seed) InstanceID(v VM) string {
	if s.Instance == 0 {
		return v.UUID
	}
	return fmt.Sprintf("%s-%d", v.UUID, s.Instance)
}

// SeedFiles returns the files of the NoCloud data source for v by name, and the file SeedIgnition
// if the user data is for Ignition. networks holds the
// networks of the NICs of v by name. The result depends on the arguments only.
//
// The structured fields become one #cloud-config document. It is the user data if s has none.
// Otherwise it is vendor data, and the user data of s overrides its keys. The vendor data of s
// follows it and overrides its keys too.
func SeedFiles(v VM, s Seed, networks map[string]Network) map[string][]byte {
	files := map[string][]byte{
		"meta-data": toYAML(map[string]string{
			"instance-id":    s.InstanceID(v),
			"local-hostname": cmp.Or(s.Hostname, v.ID),
		}),
		"network-config": []byte(s.NetworkConfig),
	}
	if s.NetworkConfig == "" {
		files["network-config"] = networkConfig(v.NICs, networks)
	}
	user, inVendor := s.Data(), s.document()
	if user == "" {
		doc := inVendor
		inVendor, doc.User = seedConfig{User: doc.User}, nil
		// NoCloud requires the file, and cloud-init warns of one without a mapping.
		user = cmp.Or(doc.String(), markConfig+"\n{}\n")
	}
	files["user-data"] = []byte(user)
	if s.Format == DataIgnition {
		files[SeedIgnition] = []byte(user)
	}
	isEmpty := func(d string) bool { return d == "" }
	vendor := slices.DeleteFunc([]string{inVendor.String(), s.VendorData}, isEmpty)
	switch len(vendor) {
	case 1:
		files["vendor-data"] = []byte(vendor[0])
	case 2:
		files["vendor-data"] = []byte(multipartData(vendor...))
	}
	return files
}

// A seedConfig is the #cloud-config document of the structured fields. The host name is in the
// meta data instead.
type seedConfig struct {
	SSHAuthorizedKeys []string `yaml:"ssh_authorized_keys,omitempty"` // of the default user
	// User overrides settings of the image's own user. An entry named default in Users would
	// not override them in cloud-init before 26.2. User has no name, since the name of the
	// image's user is unknown. In user data cloud-init would warn of the missing name and
	// report itself as degraded; in vendor data it does not.
	User  *seedUser `yaml:"user,omitempty"`
	Users []any     `yaml:"users,omitempty"` // "default", followed by seedUser values
}

// String returns c as user data, or "" if c is empty.
func (c seedConfig) String() string {
	if len(c.SSHAuthorizedKeys) == 0 && c.User == nil && len(c.Users) == 0 {
		return ""
	}
	return markConfig + "\n" + string(toYAML(c))
}

// A seedUser is a user in a [seedConfig].
type seedUser struct {
	Name              string   `yaml:"name,omitempty"`
	Groups            string   `yaml:"groups,omitempty"` // separated by commas
	Shell             string   `yaml:"shell,omitempty"`
	Sudo              string   `yaml:"sudo,omitempty"`
	SSHAuthorizedKeys []string `yaml:"ssh_authorized_keys,omitempty"`
	HashedPasswd      string   `yaml:"hashed_passwd,omitempty"` // passwd would be ignored for an existing user
	LockPasswd        *bool    `yaml:"lock_passwd,omitempty"`   // nil: true
}

// setPassword sets the password hash of u and unlocks the password, unless hash is empty.
func (u *seedUser) setPassword(hash string) {
	if hash != "" {
		u.HashedPasswd, u.LockPasswd = hash, new(bool)
	}
}

// document returns the structured fields of c as a #cloud-config document.
func (c CloudInit) document() seedConfig {
	doc := seedConfig{SSHAuthorizedKeys: c.SSHAuthorizedKeys}
	if c.PasswordHash != "" {
		doc.User = &seedUser{}
		doc.User.setPassword(c.PasswordHash)
	}
	if len(c.Users) > 0 {
		doc.Users = []any{"default"}
	}
	for _, u := range c.Users {
		user := seedUser{
			Name:              u.Name,
			Groups:            strings.Join(u.Groups, ","),
			Shell:             u.Shell,
			Sudo:              u.Sudo,
			SSHAuthorizedKeys: u.SSHAuthorizedKeys,
		}
		user.setPassword(u.PasswordHash)
		doc.Users = append(doc.Users, user)
	}
	return doc
}

// toYAML returns v as YAML. It panics on an error, which cannot happen for structs, maps,
// slices, strings, numbers and bools. Strings that YAML 1.1, which cloud-init reads, would parse
// as another type are quoted, for example a MAC address that looks like a number.
func toYAML(v any) []byte {
	text, err := yaml.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

// The network config of version 2, as far as vmand writes it.
type (
	networkV2 struct {
		Version   int                 `yaml:"version"`
		Ethernets map[string]ethernet `yaml:"ethernets"`
	}
	ethernet struct {
		Match struct {
			MACAddress string `yaml:"macaddress"`
		} `yaml:"match"`
		DHCP4          bool           `yaml:"dhcp4"`
		DHCP6          bool           `yaml:"dhcp6,omitempty"`
		DHCPIdentifier string         `yaml:"dhcp-identifier"`
		Optional       bool           `yaml:"optional,omitempty"`
		Overrides4     map[string]int `yaml:"dhcp4-overrides,omitempty"`
		Overrides6     map[string]int `yaml:"dhcp6-overrides,omitempty"`
	}
)

// routeMetric is the default metric of netplan and NetworkManager for a wired NIC.
const routeMetric = 100

// networkConfig returns a network config of version 2 that enables DHCP on each NIC, with the
// MAC address as the client id. The first NIC has the preferred default route, and the guest
// does not wait for the others at boot.
//
// Without set-name, NICs keep the names that the guest gives them. The metrics of DHCPv4 and
// DHCPv6 are equal, since netplan refuses different ones.
func networkConfig(nics []NIC, networks map[string]Network) []byte {
	config := networkV2{Version: 2, Ethernets: map[string]ethernet{}}
	for i, n := range nics {
		e := ethernet{
			DHCP4:          true,
			DHCP6:          networks[n.Network].IPv6.IsValid(),
			DHCPIdentifier: "mac",
			Optional:       i > 0,
		}
		e.Match.MACAddress = n.MAC
		if i > 0 {
			e.Overrides4 = map[string]int{"route-metric": routeMetric + 100*i}
			if e.DHCP6 {
				e.Overrides6 = e.Overrides4
			}
		}
		config.Ethernets[fmt.Sprintf("nic%d", n.Slot)] = e
	}
	return toYAML(config)
}

// multipartData returns a MIME message with pieces of user data as its parts. cloud-init detects
// the type of a text/plain part by its first line, and processes nested messages.
func multipartData(pieces ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(pieces, "\x00")))
	// The boundary does not occur in the pieces: they would have to contain their own hash.
	boundary := "part-" + hex.EncodeToString(sum[:16])
	var b strings.Builder
	fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=\"%s\"\nMIME-Version: 1.0\n\n", boundary)
	for _, piece := range pieces {
		fmt.Fprintf(&b, "--%s\n", boundary)
		needsBase64 := func(r rune) bool { return r >= utf8.RuneSelf || r == '\r' }
		switch {
		case markOf(piece) == markMIME:
			// The headers of the message become those of the part.
			b.WriteString(strings.TrimLeft(piece, " \t\r\n"))
		case strings.ContainsFunc(piece, needsBase64):
			// Python's parser would decode 8-bit text as Latin-1.
			b.WriteString("Content-Type: text/plain; charset=\"utf-8\"\nContent-Transfer-Encoding: base64\n\n")
			b.WriteString(base64Lines(piece))
		default:
			b.WriteString("Content-Type: text/plain; charset=\"utf-8\"\n\n" + piece)
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "--%s--\n", boundary)
	return b.String()
}

// base64Lines returns text as base64 in lines of at most 76 characters (RFC 2045).
func base64Lines(text string) string {
	const width = 76
	code := base64.StdEncoding.EncodeToString([]byte(text))
	var b strings.Builder
	for len(code) > width {
		b.WriteString(code[:width] + "\n")
		code = code[width:]
	}
	return b.String() + code + "\n"
}
