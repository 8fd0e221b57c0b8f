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

// InstanceID returns the instance id that the guest of v is told: its UUID, and
// after it how often it was to take all of it on anew, if it was.
func (s Seed) InstanceID(v VM) string {
	if s.Instance == 0 {
		return v.UUID
	}
	return fmt.Sprintf("%s-%d", v.UUID, s.Instance)
}

// SeedFiles returns the files of the NoCloud data source for v, by name. The
// same arguments give the same bytes.
//
// The structured fields become one #cloud-config document. It is the user data if
// none is given, and else vendor data, whose keys those of user data replace. A
// given vendor data follows it, and its keys replace those before them.
func SeedFiles(v VM, s Seed, networks map[string]Network) map[string][]byte {
	files := map[string][]byte{
		"meta-data":      toYAML(map[string]string{"instance-id": s.InstanceID(v), "local-hostname": cmp.Or(s.Hostname, v.ID)}),
		"network-config": []byte(s.NetworkConfig),
	}
	if s.NetworkConfig == "" {
		files["network-config"] = networkConfig(v.NICs, networks)
	}
	user, inVendor := s.UserData, s.document()
	if user == "" {
		doc := inVendor
		inVendor, doc.User = seedConfig{User: doc.User}, nil
		// NoCloud wants the file; one without a mapping is a warning.
		user = cmp.Or(doc.String(), markConfig+"\n{}\n")
	}
	files["user-data"] = []byte(user)
	vendor := slices.DeleteFunc([]string{inVendor.String(), s.VendorData}, func(d string) bool { return d == "" })
	switch len(vendor) {
	case 1:
		files["vendor-data"] = []byte(vendor[0])
	case 2:
		files["vendor-data"] = []byte(multipartData(vendor...))
	}
	return files
}

// A seedConfig is what cloud-init is told in #cloud-config of the structured
// fields. The host name is in the meta data.
type seedConfig struct {
	SSHAuthorizedKeys []string `yaml:"ssh_authorized_keys,omitempty"` // of the default user
	// User is merged into the image's own user, and wins. An entry named default
	// in Users would lose against it in cloud-init before 26.2. This one has no
	// name, for nobody knows it, and in user data cloud-init would warn of that
	// and call itself degraded; it does not look so closely at vendor data.
	User  *seedUser `yaml:"user,omitempty"`
	Users []any     `yaml:"users,omitempty"` // "default", then a seedUser each
}

// String returns c as user data; empty if it says nothing.
func (c seedConfig) String() string {
	if len(c.SSHAuthorizedKeys) == 0 && c.User == nil && len(c.Users) == 0 {
		return ""
	}
	return markConfig + "\n" + string(toYAML(c))
}

type seedUser struct {
	Name              string   `yaml:"name,omitempty"`
	Groups            string   `yaml:"groups,omitempty"` // with commas between them
	Shell             string   `yaml:"shell,omitempty"`
	Sudo              string   `yaml:"sudo,omitempty"`
	SSHAuthorizedKeys []string `yaml:"ssh_authorized_keys,omitempty"`
	HashedPasswd      string   `yaml:"hashed_passwd,omitempty"` // passwd would be passed over for a user that is there already
	LockPasswd        *bool    `yaml:"lock_passwd,omitempty"`   // nil: true
}

func (u *seedUser) setPassword(hash string) {
	if hash != "" {
		u.HashedPasswd, u.LockPasswd = hash, new(bool)
	}
}

// document returns what the structured fields say.
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
		user := seedUser{Name: u.Name, Groups: strings.Join(u.Groups, ","), Shell: u.Shell, Sudo: u.Sudo, SSHAuthorizedKeys: u.SSHAuthorizedKeys}
		user.setPassword(u.PasswordHash)
		doc.Users = append(doc.Users, user)
	}
	return doc
}

// toYAML is for values that are nothing but structs, maps, slices, strings,
// numbers and bools: there is no error. It quotes what YAML 1.1, which cloud-init
// reads, would take for something else, such as a MAC address for a number.
func toYAML(v any) []byte {
	text, err := yaml.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

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

// routeMetric is what netplan and NetworkManager give a wired NIC by themselves.
const routeMetric = 100

// networkConfig returns a network config of version 2 that has each NIC ask for
// its addresses by its MAC address. The default route stays with the first one,
// and nobody waits for the others at boot.
//
// Without set-name NICs keep the names that the guest gives them. netplan refuses
// metrics that differ between DHCPv4 and DHCPv6.
func networkConfig(nics []NIC, networks map[string]Network) []byte {
	config := networkV2{Version: 2, Ethernets: map[string]ethernet{}}
	for i, n := range nics {
		e := ethernet{DHCP4: true, DHCP6: networks[n.Network].IPv6.IsValid(), DHCPIdentifier: "mac", Optional: i > 0}
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

// multipartData returns a MIME message of pieces of user data. cloud-init looks
// at the marks of those that are text/plain, and into messages.
func multipartData(pieces ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(pieces, "\x00")))
	boundary := "part-" + hex.EncodeToString(sum[:16]) // not in the pieces: they would have to contain their own hash
	var b strings.Builder
	fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=\"%s\"\nMIME-Version: 1.0\n\n", boundary)
	for _, piece := range pieces {
		fmt.Fprintf(&b, "--%s\n", boundary)
		switch {
		case markOf(piece) == markMIME:
			b.WriteString(strings.TrimLeft(piece, " \t\r\n")) // its headers are those of the part
		case strings.ContainsFunc(piece, func(r rune) bool { return r >= utf8.RuneSelf || r == '\r' }):
			// Python's parser would take 8 bits for Latin-1.
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

// base64Lines returns text in base64, in lines of 76 characters (RFC 2045).
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
