package vm

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

const (
	sshKey    = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPDL3bzSUQQpe6c5vbMWXGX6WTmDfwFZ6DEEcznRSrqp me@home: #1"
	cryptSHA  = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"
	cryptYes  = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"
	cryptB    = "$2b$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"
	cryptMD5  = "$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/"
	cryptSHA5 = "$5$rounds=5000$saltsalt$VpbDG0kZ4zYNbn8LRBHnQLtXsA4fiaKWT5h6cbjnEpD"
)

var everyField = CloudInit{
	Hostname:          "web-1.example.org",
	SSHAuthorizedKeys: []string{sshKey},
	PasswordHash:      cryptSHA,
	Users: []CloudUser{
		{
			Name:              "ann",
			SSHAuthorizedKeys: []string{sshKey},
			PasswordHash:      cryptYes,
			Sudo:              "ALL=(ALL) NOPASSWD:ALL",
			Groups:            []string{"adm", "_x"},
			Shell:             "/bin/bash",
		},
		{Name: "bob"},
	},
	UserData:      "#cloud-config\npackages: [git]\n",
	VendorData:    "#!/bin/sh\n",
	NetworkConfig: "version: 1\nconfig: []\n",
}

func TestCheckOfCloudInitDataNamesTheField(t *testing.T) {
	long := strings.Repeat("a", 63)
	blob := strings.Fields(sshKey)[1]
	withKeys := func(keys ...string) CloudInit { return CloudInit{SSHAuthorizedKeys: keys} }
	withUsers := func(users ...CloudUser) CloudInit { return CloudInit{Users: users} }
	for _, c := range []struct {
		name  string
		data  CloudInit
		field string // of the fault; empty: valid
		says  string // a part of the detail
	}{
		{"nothing", CloudInit{}, "", ""},
		{"every field", everyField, "", ""},

		{"a long label", CloudInit{Hostname: long + "." + long + "." + long}, "", ""},
		{"a longer label", CloudInit{Hostname: long + "a"}, "/hostname", "labels"},
		{"255 characters", CloudInit{Hostname: strings.Join([]string{long, long, long, long}, ".")}, "/hostname", "253"},
		{"upper case", CloudInit{Hostname: "Web"}, "/hostname", "lower case"},
		{"a trailing dot", CloudInit{Hostname: "web."}, "/hostname", ""},
		{"an IP address", CloudInit{Hostname: "192.0.2.1"}, "/hostname", "IP address"},
		{"a line break", CloudInit{Hostname: "a\nb"}, "/hostname", ""},

		{"key options", withKeys(sshKey, `command="x y, \"z\"",no-pty,from="192.0.2.0/24" `+sshKey), "", ""},
		{"an option with a space before it", withKeys(" restrict " + sshKey), "", ""},
		{"an unknown key option", withKeys(sshKey, `commando="x" `+sshKey), "/ssh_authorized_keys/1", "does not know the option commando"},
		{"a key option without a value", withKeys(`command ` + sshKey), "/ssh_authorized_keys/0", `command="value"`},
		{"a key option with a value", withKeys(`no-pty="x" ` + sshKey), "/ssh_authorized_keys/0", "must be written no-pty"},
		{"a key option without quotes", withKeys(`command=x ` + sshKey), "/ssh_authorized_keys/0", "double quotes"},
		{"key options alone", withKeys("no-pty "), "/ssh_authorized_keys/0", "public key"},
		{"a final newline", withKeys(sshKey + "\n"), "/ssh_authorized_keys/0", "one line"},
		{"two lines", withKeys(sshKey + "\n" + sshKey), "/ssh_authorized_keys/0", "one line"},
		{"a private key", withKeys("-----BEGIN OPENSSH PRIVATE KEY-----"), "/ssh_authorized_keys/0", "public key"},
		{"DSA", withKeys("ssh-dss AAAA"), "/ssh_authorized_keys/0", "ssh-ed25519"},
		{"another type", withKeys("ssh-rsa " + blob), "/ssh_authorized_keys/0", "not of the type ssh-rsa"},
		{"truncated", withKeys("ssh-ed25519 " + blob[:60]), "/ssh_authorized_keys/0", "truncated"},
		{"type alone", withKeys("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5"), "/ssh_authorized_keys/0", "truncated"},
		{"not base64", withKeys("ssh-rsa !!"), "/ssh_authorized_keys/0", "base64"},
		{"a long key", withKeys(sshKey + strings.Repeat("x", maxSSHKeyBytes)), "/ssh_authorized_keys/0", "16 KiB"},
		{"too many keys", withKeys(make([]string, maxSSHKeys+1)...), "/ssh_authorized_keys", "64"},

		{"a name of a user in upper case", withUsers(CloudUser{Name: "ann"}, CloudUser{Name: "Bob"}), "/users/1/name", ""},
		{"no name of a user", withUsers(CloudUser{}), "/users/0/name", ""},
		{"the default user", withUsers(CloudUser{Name: "default"}), "/users/0/name", "outside users"},
		{"a user twice", withUsers(CloudUser{Name: "ann"}, CloudUser{Name: "bob"}, CloudUser{Name: "ann"}), "/users/2/name", "user 0"},
		{"too many users", withUsers(make([]CloudUser, maxCloudUsers+1)...), "/users", "64"},
		{"a key of a user", withUsers(CloudUser{Name: "ann", SSHAuthorizedKeys: []string{"x"}}), "/users/0/ssh_authorized_keys/0", ""},
		{"a hash of a user", withUsers(CloudUser{Name: "ann", PasswordHash: "x"}), "/users/0/password_hash", "crypt(5)"},
		{"a sudo rule of two lines", withUsers(CloudUser{Name: "ann", Sudo: "ALL\nALL"}), "/users/0/sudo", "one line"},
		{"a group", withUsers(CloudUser{Name: "ann", Groups: []string{"adm", "a,b"}}), "/users/0/groups/1", ""},
		{"a relative shell", withUsers(CloudUser{Name: "ann", Shell: "bash"}), "/users/0/shell", "absolute"},
		{"a shell with a line break", withUsers(CloudUser{Name: "ann", Shell: "/bin/sh\n"}), "/users/0/shell", ""},
	} {
		for _, prefix := range []string{"", "/cloud_init"} {
			wantField(t, c.name, c.data.Check(prefix), prefix, c.field, c.says)
		}
	}
}

// A value that is not a hash may be the password itself, so the error must not contain it.
func TestOnlyAPasswordHashIsValid(t *testing.T) {
	valid := []string{"", cryptSHA, cryptSHA5, cryptMD5, cryptB, "$2y" + cryptB[3:], cryptYes, "$gy" + cryptYes[2:]}
	for _, hash := range valid {
		wantField(t, hash, CloudInit{PasswordHash: hash}.Check(""), "", "", "")
	}
	invalid := []string{
		"hunter2",
		"rl.3StKT.4T8M",
		"!" + cryptSHA,
		cryptSHA[:40],
		cryptSHA + "\n" + cryptSHA,
		cryptSHA + ":",
	}
	for _, hash := range invalid {
		err := CloudInit{PasswordHash: hash}.Check("")
		wantField(t, hash, err, "", "/password_hash", "not the password")
		var f *Fault
		if errors.As(err, &f) && (strings.Contains(err.Error(), hash) || !strings.Contains(f.Hint, "openssl passwd -6")) {
			t.Errorf("fault %+v contains the password or has no hint how to make a hash", f)
		}
	}
}

// wantField fails the test unless err is a fault of the given field, or nil if field is empty.
func wantField(t *testing.T, name string, err error, prefix, field, says string) {
	t.Helper()
	if field == "" {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return
	}
	var f *Fault
	if !errors.As(err, &f) || f.Code != CodeInvalid || len(f.Fields) != 1 ||
		f.Fields[0].Field != prefix+field || !strings.Contains(f.Fields[0].Detail, says) {
		t.Errorf("%s: got %+v; want a fault of %s that contains %q", name, err, prefix+field, says)
	}
}

func TestUserDataMustBeOfAKnownType(t *testing.T) {
	mime := "Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\n\n--b\n\n#!/bin/sh\n--b--\n"
	for _, c := range []struct {
		data string
		says string // a part of the detail; empty: valid
	}{
		{"#cloud-config\na: 1\n", ""},
		{"#cloud-config  \r\na: 1\r\n", ""},
		{"\n \n#Cloud-Config\na: 1\n", ""},
		{"#cloud-config\n{}", ""},
		{"#cloud-config\nx-unknown: &a {b: c}\ny: *a\nz:\n  <<: *a\n", ""},
		{"#cloud-config-archive\n- type: text/cloud-config\n  content: 'x: 1'\n", ""},
		{"#cloud-config-jsonp\n[]\n", ""},
		{"#!/bin/sh\nexit\n", ""},
		{"#include\nhttps://example.org/\n", ""},
		{"#include https://example.org/\n", ""},
		{"#include-once\n", ""},
		{"#cloud-boothook\n", ""},
		{"#part-handler\n", ""},
		{"## template: jinja\n#cloud-config\na: {{ b }}\n", ""},
		{mime, ""},
		{strings.Replace(mime, "MIME-Version: 1.0\n", "", 1), "MIME-Version"},
		{strings.Replace(mime, "MIME", "X: "+strings.Repeat("x", 4096)+"\nMIME", 1), "4096"},

		{"hello\nworld", `begins with "hello"`},
		{"#cloud-configuration\na: 1\n", `begins with "#cloud-configuration"`},
		{"# cloud-config\na: 1\n", "#cloud-boothook"},
		{"\ufeff#cloud-config\na: 1\n", "begins with"},
		{" ", "begins with"},
		{"#!/bin/sh\n\x00", "NUL"},
		{"#!/bin/sh\n\xff", "UTF-8"},
		{"#!/bin/sh\n" + strings.Repeat("x", maxUserData), "512 KiB"},

		{"#cloud-config\n", "line 1: the document is missing"},
		{"#cloud-config\n- a\n", "line 2: the document must be a mapping"},
		{"#cloud-config\na\n", "line 2: the document must be a mapping"},
		{"#cloud-config-archive\na: b\n", "line 2: the document must be a list"},
		{"#cloud-config\na: b: c\n", "line 2: mapping values"},
		{"#cloud-config\na:\n\tb: c\n", "line 3: a tab"},
		{"#cloud-config\na:\n  - b\n c: d\n", "line 4: "},
		{"#cloud-config\na: 'x\n", "line 2: found unexpected end"},
		{"#cloud-config\nb: 1\na: *x\n", "line 3: unknown anchor"},
		{"#cloud-config\na: \x01\n", "line 2: the control character U+0001"},
		{"#cloud-config\na: 1\nb:\n  c: 1\n  \"c\": 2\n", `line 5: the key "c" is already on line 4`},
		{"#cloud-config\na: 1\n---\nb: 2\n", "line 3: a second document"},
		{"#cloud-config\na: 1\n---\n[\n", "line "},
		{"#cloud-config\n" + strings.Repeat("[", 20000), "depth"},
		{"#cloud-config\na: [" + strings.Repeat("b,", maxYAMLNodes) + "]\n", "more than 50000 values"},
	} {
		field := ""
		if c.says != "" {
			field = "/user_data"
		}
		wantField(t, c.data[:min(60, len(c.data))], CloudInit{UserData: c.data}.Check(""), "", field, c.says)
	}
}

func TestANetworkConfigHasAVersion(t *testing.T) {
	for _, c := range []struct{ config, says string }{
		{"version: 2\nethernets: {}\n", ""},
		{"#c\nnetwork:\n  version: 1\n  config: []\n", ""},
		{"network: &n {version: 2}\n", ""},
		{"ethernets: {}\n", "line 1: version: 1 or version: 2 must be"},
		{"\nversion: 3\n", "line 2: version must be 1 or 2"},
		{"version: \"2\"\n", "line 1: version must be 1 or 2"},
		{"version: [2]\n", "line 1: version must be 1 or 2"},
		{"network: none\n", "line 1: the document must be a mapping"},
		{"- version: 2\n", "line 1: the document must be a mapping"},
		{"version: 2\nversion: 2\n", `line 2: the key "version" is already on line 1`},
		{"version: 2\n:", "line "},
		{"version: 2\n#" + strings.Repeat("x", maxNetworkConfig), "64 KiB"},
	} {
		field := ""
		if c.says != "" {
			field = "/network_config"
		}
		wantField(t, c.config[:min(60, len(c.config))], CloudInit{NetworkConfig: c.config}.Check(""), "", field, c.says)
	}
}

// A document of nested aliases is small, but its expansion is exponential.
func TestAliasesAreNotExpanded(t *testing.T) {
	bomb := "#cloud-config\na0: &a0 [x, x]\n"
	anchor := func(i int) string { return "a" + string(rune('0'+i%10)) + strings.Repeat("_", i/10) }
	for i := range 60 {
		key, ref := "b"+strings.Repeat("b", i), "*"+anchor(i)
		bomb += key + ": &" + anchor(i+1) + " [" + ref + ", " + ref + "]\n"
	}
	c := CloudInit{UserData: bomb}
	if err := c.Check(""); err != nil {
		t.Fatal(err)
	}
}

func TestEverySSHKeyTypeIsValid(t *testing.T) {
	for _, kind := range sshKeyTypes {
		blob := append([]byte{0, 0, 0, byte(len(kind))}, kind...)
		blob = append(blob, 0, 0, 0, 2, 'x', 'y')
		if problem := sshKeyFault(kind + " " + base64.StdEncoding.EncodeToString(blob)); problem != "" {
			t.Errorf("%s: %s", kind, problem)
		}
	}
}
