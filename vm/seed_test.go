package vm

import (
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/netip"
	"strings"
	"testing"
)

func seedOf(c CloudInit) Seed { return Seed{VMID: "web", CloudInit: c} }

func TestInstanceIDChangesWithEveryReprovision(t *testing.T) {
	v := VM{ID: "web", UUID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}
	for n, want := range []string{v.UUID, v.UUID + "-1", v.UUID + "-2"} {
		if got := (Seed{VMID: "web", Instance: n}).InstanceID(v); got != want {
			t.Errorf("instance %d has id %s, want %s", n, got, want)
		}
	}
}

var structured = CloudInit{
	SSHAuthorizedKeys: []string{sshKey},
	PasswordHash:      cryptMD5,
	Users: []CloudUser{
		{
			Name:         "ann",
			Groups:       []string{"adm", "sudo"},
			Sudo:         "ALL=(ALL) NOPASSWD:ALL",
			Shell:        "/bin/bash",
			PasswordHash: cryptMD5,
		},
		{Name: "on"},
	},
}

// The fields of structured as parts of a #cloud-config document.
const (
	head = "#cloud-config\n"
	keys = `ssh_authorized_keys:
    - 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPDL3bzSUQQpe6c5vbMWXGX6WTmDfwFZ6DEEcznRSrqp me@home: #1'
`
	own = `user:
    hashed_passwd: $1$saltsalt$qjXMvbEw8oaL.CzflDtaK/
    lock_passwd: false
`
	others = `users:
    - default
    - name: ann
      groups: adm,sudo
      shell: /bin/bash
      sudo: ALL=(ALL) NOPASSWD:ALL
      hashed_passwd: $1$saltsalt$qjXMvbEw8oaL.CzflDtaK/
      lock_passwd: false
    - name: "on"
`
)

func TestSeedFilesOfEveryCombination(t *testing.T) {
	v := VM{ID: "web", UUID: "u-1"}
	const user, vendor, none = "#!/bin/sh\ntrue", "#cloud-config\na: ü\n", "-"
	for _, c := range []struct {
		structured         bool
		user, vendor       string
		wantUser, wantVend string
	}{
		{false, "", "", "#cloud-config\n{}\n", none},
		{false, user, "", user, none},
		{false, "", vendor, "#cloud-config\n{}\n", vendor},
		{false, user, vendor, user, vendor},
		{true, "", "", head + keys + others, head + own},
		{true, user, "", user, head + keys + own + others},
		{true, "", vendor, head + keys + others, head + own + "|" + vendor},
		{true, user, vendor, user, head + keys + own + others + "|" + vendor},
	} {
		var data CloudInit
		if c.structured {
			data = structured
		}
		data.UserData, data.VendorData = c.user, c.vendor
		if err := data.Check(""); err != nil {
			t.Fatal(err)
		}
		files := SeedFiles(v, seedOf(data), nil)
		if got := string(files["user-data"]); got != c.wantUser {
			t.Errorf("%+v: user-data is\n%s\n; want\n%s", c, got, c.wantUser)
		}
		got := none
		if b, ok := files["vendor-data"]; ok {
			got = string(b)
		}
		if a, b, two := strings.Cut(c.wantVend, "|"); two {
			if parts := partsOf(t, got); len(parts) != 2 || parts[0] != a || parts[1] != b {
				t.Errorf("vendor-data has the parts %q; want %q and %q", parts, a, b)
			}
		} else if got != c.wantVend {
			t.Errorf("%+v: vendor-data is\n%s\n; want\n%s", c, got, c.wantVend)
		}
		for name, b := range SeedFiles(v, seedOf(data), nil) {
			if string(b) != string(files[name]) {
				t.Errorf("%s differs between two calls", name)
			}
		}
	}
}

// partsOf returns the parts of a MIME message, including those of nested messages.
func partsOf(t *testing.T, message string) (parts []string) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(message))
	if err != nil {
		t.Fatalf("%v: %s", err, message)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || m.Header.Get("MIME-Version") != "1.0" {
		t.Fatalf("%v: %s", err, message)
	}
	r := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return parts
		}
		if err != nil {
			t.Fatalf("%v: %s", err, message)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(p.Header.Get("Content-Type"), "multipart/"):
			inner := fmt.Sprintf("Content-Type: %s\nMIME-Version: 1.0\n\n%s", p.Header.Get("Content-Type"), b)
			parts = append(parts, partsOf(t, inner)...)
		case p.Header.Get("Content-Transfer-Encoding") == "base64":
			parts = append(parts, string(unbase64(t, string(b))))
		default:
			parts = append(parts, string(b))
		}
	}
}

func TestVendorDataOfTypeMIMEIsNested(t *testing.T) {
	const script, config = "#!/bin/sh\necho one\n", "#cloud-config\nb: 2\n"
	data := CloudInit{
		PasswordHash: cryptMD5,
		UserData:     "#!/bin/sh\n",
		VendorData:   multipartData(script, config),
	}
	files := SeedFiles(VM{ID: "a"}, seedOf(data), nil)
	parts := partsOf(t, string(files["vendor-data"]))
	if len(parts) != 3 || !strings.Contains(parts[0], "hashed_passwd") || parts[1] != script || parts[2] != config {
		t.Errorf("the parts are %q", parts)
	}
}

func TestMetaDataNamesTheGuest(t *testing.T) {
	for _, c := range []struct{ id, hostname, want string }{
		{"web", "", "instance-id: u\nlocal-hostname: web\n"},
		{"web", "a.example.org", "instance-id: u\nlocal-hostname: a.example.org\n"},
		{"017", "", "instance-id: u\nlocal-hostname: \"017\"\n"},
		{"2024-01-02", "", "instance-id: u\nlocal-hostname: \"2024-01-02\"\n"},
		{"no", "", "instance-id: u\nlocal-hostname: \"no\"\n"},
	} {
		files := SeedFiles(VM{ID: c.id, UUID: "u"}, seedOf(CloudInit{Hostname: c.hostname}), nil)
		if got := string(files["meta-data"]); got != c.want {
			t.Errorf("%s %s: meta-data is\n%s\nwant\n%s", c.id, c.hostname, got, c.want)
		}
	}
}

func TestNetworkConfigOfNICs(t *testing.T) {
	networks := map[string]Network{"four": {}, "six": {IPv6: netip.MustParsePrefix("fd00::/64")}}
	v := VM{ID: "a", NICs: []NIC{
		{Slot: 0, Network: "four", MAC: "52:54:00:12:34:56"},
		{Slot: 1, Network: "four", MAC: "52:54:00:00:00:01"},
		{Slot: 4, Network: "six", MAC: "52:54:00:00:00:04"},
	}}
	for _, c := range []struct {
		nics  []NIC
		given string
		want  string
	}{
		{nil, "", "version: 2\nethernets: {}\n"},
		{v.NICs, "version: 2 # mine\n", "version: 2 # mine\n"},
		{v.NICs, "", `version: 2
ethernets:
    nic0:
        match:
            macaddress: "52:54:00:12:34:56"
        dhcp4: true
        dhcp-identifier: mac
    nic1:
        match:
            macaddress: "52:54:00:00:00:01"
        dhcp4: true
        dhcp-identifier: mac
        optional: true
        dhcp4-overrides:
            route-metric: 200
    nic4:
        match:
            macaddress: "52:54:00:00:00:04"
        dhcp4: true
        dhcp6: true
        dhcp-identifier: mac
        optional: true
        dhcp4-overrides:
            route-metric: 300
        dhcp6-overrides:
            route-metric: 300
`},
	} {
		v.NICs = c.nics
		got := string(SeedFiles(v, seedOf(CloudInit{NetworkConfig: c.given}), networks)["network-config"])
		if got != c.want {
			t.Errorf("network-config is\n%s\nwant\n%s", got, c.want)
		}
		if err := checkNetworkConfig("", got); err != nil {
			t.Error(err)
		}
	}
}

func unbase64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
