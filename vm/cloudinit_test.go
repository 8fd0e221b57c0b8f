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

func TestCloudInitDataIsTakenOrRefusedByField(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, c := range []struct {
		name  string
		data  CloudInit
		field string // empty: taken
		says  string
	}{
		{"nothing", CloudInit{}, "", ""},
		{"all of it", CloudInit{Hostname: "web-1.example.org", SSHAuthorizedKeys: []string{sshKey}, PasswordHash: cryptSHA,
			Users:    []CloudUser{{Name: "ann", SSHAuthorizedKeys: []string{sshKey}, PasswordHash: cryptYes, Sudo: "ALL=(ALL) NOPASSWD:ALL", Groups: []string{"adm", "_x"}, Shell: "/bin/bash"}, {Name: "bob"}},
			UserData: "#cloud-config\npackages: [git]\n", VendorData: "#!/bin/sh\n", NetworkConfig: "version: 1\nconfig: []\n"}, "", ""},

		{"a long label", CloudInit{Hostname: long + "." + long + "." + long}, "", ""},
		{"a longer label", CloudInit{Hostname: long + "a"}, "/hostname", "labels"},
		{"a name of 255", CloudInit{Hostname: strings.Join([]string{long, long, long, long}, ".")}, "/hostname", "253"},
		{"upper case", CloudInit{Hostname: "Web"}, "/hostname", "lower case"},
		{"a dot at the end", CloudInit{Hostname: "web."}, "/hostname", ""},
		{"an address", CloudInit{Hostname: "192.0.2.1"}, "/hostname", "IP address"},
		{"a line", CloudInit{Hostname: "a\nb"}, "/hostname", ""},

		{"key options", CloudInit{SSHAuthorizedKeys: []string{sshKey, `command="x" ` + sshKey}}, "/ssh_authorized_keys/1", "without options"},
		{"two lines", CloudInit{SSHAuthorizedKeys: []string{sshKey + "\n" + sshKey}}, "/ssh_authorized_keys/0", "one line"},
		{"a private key", CloudInit{SSHAuthorizedKeys: []string{"-----BEGIN OPENSSH PRIVATE KEY-----"}}, "/ssh_authorized_keys/0", "public key"},
		{"DSA", CloudInit{SSHAuthorizedKeys: []string{"ssh-dss AAAA"}}, "/ssh_authorized_keys/0", "ssh-ed25519"},
		{"another type", CloudInit{SSHAuthorizedKeys: []string{"ssh-rsa " + strings.Fields(sshKey)[1]}}, "/ssh_authorized_keys/0", "not of the type ssh-rsa"},
		{"cut off", CloudInit{SSHAuthorizedKeys: []string{strings.Fields(sshKey)[0] + " " + strings.Fields(sshKey)[1][:60]}}, "/ssh_authorized_keys/0", "cut off"},
		{"type alone", CloudInit{SSHAuthorizedKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5"}}, "/ssh_authorized_keys/0", "cut off"},
		{"no base64", CloudInit{SSHAuthorizedKeys: []string{"ssh-rsa !!"}}, "/ssh_authorized_keys/0", "base64"},
		{"a big key", CloudInit{SSHAuthorizedKeys: []string{sshKey + strings.Repeat("x", MaxSSHKeyBytes)}}, "/ssh_authorized_keys/0", "16 KiB"},
		{"many keys", CloudInit{SSHAuthorizedKeys: make([]string, MaxSSHKeys+1)}, "/ssh_authorized_keys", "64"},

		{"a user's name", CloudInit{Users: []CloudUser{{Name: "ann"}, {Name: "Bob"}}}, "/users/1/name", ""},
		{"no user's name", CloudInit{Users: []CloudUser{{}}}, "/users/0/name", ""},
		{"the default user", CloudInit{Users: []CloudUser{{Name: "default"}}}, "/users/0/name", "beside users"},
		{"the same user", CloudInit{Users: []CloudUser{{Name: "ann"}, {Name: "bob"}, {Name: "ann"}}}, "/users/2/name", "user 0"},
		{"many users", CloudInit{Users: make([]CloudUser, MaxCloudUsers+1)}, "/users", "64"},
		{"a user's key", CloudInit{Users: []CloudUser{{Name: "ann", SSHAuthorizedKeys: []string{"x"}}}}, "/users/0/ssh_authorized_keys/0", ""},
		{"a user's hash", CloudInit{Users: []CloudUser{{Name: "ann", PasswordHash: "x"}}}, "/users/0/password_hash", "crypt(5)"},
		{"a user's rule", CloudInit{Users: []CloudUser{{Name: "ann", Sudo: "ALL\nALL"}}}, "/users/0/sudo", "one line"},
		{"a group", CloudInit{Users: []CloudUser{{Name: "ann", Groups: []string{"adm", "a,b"}}}}, "/users/0/groups/1", ""},
		{"a shell", CloudInit{Users: []CloudUser{{Name: "ann", Shell: "bash"}}}, "/users/0/shell", "absolute"},
		{"a shell's line", CloudInit{Users: []CloudUser{{Name: "ann", Shell: "/bin/sh\n"}}}, "/users/0/shell", ""},
	} {
		for _, prefix := range []string{"", "/cloud_init"} {
			wantField(t, c.name, c.data.Check(prefix), prefix, c.field, c.says)
		}
	}
}

// A hash is needed, and what is none may be the password.
func TestAHashOfAPasswordIsTakenAndNothingElse(t *testing.T) {
	for _, hash := range []string{"", cryptSHA, cryptSHA5, cryptMD5, cryptB, "$2y" + cryptB[3:], cryptYes, "$gy" + cryptYes[2:]} {
		wantField(t, hash, CloudInit{PasswordHash: hash}.Check(""), "", "", "")
	}
	for _, hash := range []string{"hunter2", "rl.3StKT.4T8M", "!" + cryptSHA, cryptSHA[:40], cryptSHA + "\n" + cryptSHA, cryptSHA + ":"} {
		err := CloudInit{PasswordHash: hash}.Check("")
		wantField(t, hash, err, "", "/password_hash", "not the password")
		var f *Fault
		if errors.As(err, &f) && (strings.Contains(err.Error(), hash) || !strings.Contains(f.Hint, "openssl passwd -6")) {
			t.Errorf("%+v shows the password, or does not say how to make a hash", f)
		}
	}
}

func wantField(t *testing.T, name string, err error, prefix, field, says string) {
	t.Helper()
	if field == "" {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return
	}
	var f *Fault
	if !errors.As(err, &f) || f.Code != CodeInvalid || len(f.Fields) != 1 || f.Fields[0].Field != prefix+field || !strings.Contains(f.Fields[0].Detail, says) {
		t.Errorf("%s: %+v, want a fault of %s that says %q", name, err, prefix+field, says)
	}
}

func TestUserDataIsWhatCloudInitKnows(t *testing.T) {
	mime := "Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\n\n--b\n\n#!/bin/sh\n--b--\n"
	for _, c := range []struct {
		data string
		says string // empty: taken
	}{
		{"#cloud-config\na: 1\n", ""},
		{"#cloud-config  \r\na: 1\r\n", ""},
		{"\n \n#Cloud-Config\na: 1\n", ""},
		{"#cloud-config\n{}", ""},
		{"#cloud-config\nx-unknown: &a {b: c}\ny: *a\nz:\n  <<: *a\n", ""},
		{"#cloud-config-archive\n- type: text/cloud-config\n  content: x\n", ""},
		{"#cloud-config-jsonp\n[]\n", ""},
		{"#!/bin/sh\nexit\n", ""},
		{"#include\nhttps://example.org/\n", ""},
		{"#include https://example.org/\n", ""},
		{"#include-once\n", ""},
		{"#cloud-boothook\n", ""},
		{"#part-handler\n", ""},
		{"## template: jinja\n#cloud-config\na: {{ b\n", ""},
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
		{"#!/bin/sh\n" + strings.Repeat("x", MaxUserData), "512 KiB"},

		{"#cloud-config\n", "line 1: there is no document"},
		{"#cloud-config\n- a\n", "line 2: the document must be a mapping"},
		{"#cloud-config\na\n", "line 2: the document must be a mapping"},
		{"#cloud-config-archive\na: b\n", "line 2: the document must be a list"},
		{"#cloud-config\na: b: c\n", "line 2: mapping values"},
		{"#cloud-config\na:\n\tb: c\n", "line 3: found character"},
		{"#cloud-config\na:\n  - b\n c: d\n", "line 4: "},
		{"#cloud-config\na: 'x\n", "line 2: found unexpected end"},
		{"#cloud-config\nb: 1\na: *x\n", "line 3: unknown anchor"},
		{"#cloud-config\na: \x01\n", "line 2: has the control character U+0001"},
		{"#cloud-config\na: 1\nb:\n  c: 1\n  \"c\": 2\n", `line 5: the key "c" is on line 4`},
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
		{"version: 2\nversion: 2\n", `line 2: the key "version" is on line 1`},
		{"version: 2\n:", "line "},
		{"version: 2\n#" + strings.Repeat("x", MaxNetworkConfig), "64 KiB"},
	} {
		field := ""
		if c.says != "" {
			field = "/network_config"
		}
		wantField(t, c.config[:min(60, len(c.config))], CloudInit{NetworkConfig: c.config}.Check(""), "", field, c.says)
	}
}

// A bomb of aliases is small as it is written.
func TestABombOfAliasesIsNotExpanded(t *testing.T) {
	bomb := "#cloud-config\na0: &a0 [x, x]\n"
	for i := range 60 {
		ref := "*a" + string(rune('0'+i%10)) + strings.Repeat("_", i/10)
		bomb += "b" + strings.Repeat("b", i) + ": &a" + string(rune('0'+(i+1)%10)) + strings.Repeat("_", (i+1)/10) + " [" + ref + ", " + ref + "]\n"
	}
	c := CloudInit{UserData: bomb}
	if err := c.Check(""); err != nil {
		t.Fatal(err)
	}
}

func TestEveryKindOfKeyIsTaken(t *testing.T) {
	for _, kind := range sshKeyTypes {
		blob := append([]byte{0, 0, 0, byte(len(kind))}, kind...)
		blob = append(blob, 0, 0, 0, 2, 'x', 'y')
		if why := sshKeyFault(kind + " " + base64.StdEncoding.EncodeToString(blob)); why != "" {
			t.Errorf("%s: %s", kind, why)
		}
	}
}
