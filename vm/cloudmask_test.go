package vm

import (
	"encoding/base64"
	"strings"
	"testing"
)

func unbase64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const privateKey = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\nZXktdjE=\n-----END OPENSSH PRIVATE KEY-----\n"

func indented(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ") + "\n"
}

func TestSecretsInCloudConfigAreMaskedWhereTheyStand(t *testing.T) {
	for _, c := range []struct{ name, give, want string }{
		{"nothing", "#cloud-config\n# mine\na:   [b,  'c'] # d\n\nb: \"x\"\n", "#cloud-config\n# mine\na:   [b,  'c'] # d\n\nb: \"x\"\n"},
		{"styles", "#cloud-config\npassword: s3cret # c\nb:\n- passwd: 's3''cret'\n  x: y\nplain_text_passwd: \"s3\\\"cret\"\nz: {token: s3 cret, k: v}\n",
			"#cloud-config\npassword: \"***\" # c\nb:\n- passwd: \"***\"\n  x: y\nplain_text_passwd: \"***\"\nz: {token: \"***\", k: v}\n"},
		{"CRLF", "#cloud-config\r\npassword: s3cret\r\nb: c\r\n", "#cloud-config\r\npassword: \"***\"\r\nb: c\r\n"},
		{"characters", "#cloud-config\n{\"ä\u00a0ö\": é, password: s3crét, z: ü}\n", "#cloud-config\n{\"ä\u00a0ö\": é, password: \"***\", z: ü}\n"},
		{"blocks", "#cloud-config\na:\n  secret: |-\n    s3cret\n\n     s3cret\n  # c\n  b: c\nssh_keys:\n  rsa_private: >2\n      s3cret\n    s3cret\n  rsa_public: ssh-rsa AAAA\n",
			"#cloud-config\na:\n  secret: |-\n    ***\n\n     ***\n  # c\n  b: c\nssh_keys:\n  rsa_private: >2\n      ***\n    ***\n  rsa_public: ssh-rsa AAAA\n"},
		{"a rule of sudo", "#cloud-config\nusers:\n- sudo: ALL=(ALL) NOPASSWD:ALL\n  passwd: s3cret\n", "#cloud-config\nusers:\n- sudo: ALL=(ALL) NOPASSWD:ALL\n  passwd: \"***\"\n"},
		{"the last block", "#cloud-config\ntoken: |\n  s3cret", "#cloud-config\ntoken: |\n  ***"},
		{"tags and anchors", "#cloud-config\npassword: !!str &p s3cret\nx: &q s3cret2\ntoken: *q\nlock_passwd: true\n",
			"#cloud-config\npassword: !!str &p \"***\"\nx: &q \"***\"\ntoken: *q\nlock_passwd: true\n"},
		{"all below", "#cloud-config\nsecrets:\n  a: s3cret\n  b: [s3cret, {c: s3cret}]\npassword:\nb: 1\n", "#cloud-config\nsecrets:\n  a: \"***\"\n  b: [\"***\", {c: \"***\"}]\npassword:\nb: 1\n"},
		{"an escaped key", "#cloud-config\n\"p\\u0061ssword\": s3cret\n", "#cloud-config\n\"p\\u0061ssword\": \"***\"\n"},
		{"an odd key", "#cloud-config\n? password\n: s3cret\n", "#cloud-config\n? password\n: \"***\"\n"},
		{"a key that is an alias", "#cloud-config\na: &k password\n*k : s3cret\n", "#cloud-config\na: &k password\n*k : \"***\"\n"},
		{"chpasswd", "#cloud-config\nchpasswd:\n  expire: false\n  list: |\n    root:s3cret\n  users:\n  - {name: root, password: s3cret, type: text}\n",
			"#cloud-config\nchpasswd:\n  expire: false\n  list: |\n    ***\n  users:\n  - {name: root, password: \"***\", type: text}\n"},
		{"chpasswd's list", "#cloud-config\nchpasswd: {list: [root:s3cret, 'a:s3cret'], expire: false}\n", "#cloud-config\nchpasswd: {list: [\"***\", \"***\"], expire: false}\n"},
		{"commands", "#cloud-config\nruncmd:\n- echo root:s3cret | chpasswd\n- [sh, -c, \"TOKEN=s3cret x\"]\n- |\n  export API_KEY=s3cret\n  date\n- curl https://u:s3cret@example.org/\n- date\n",
			"#cloud-config\nruncmd:\n- \"*** | chpasswd\"\n- [sh, -c, \"TOKEN=***\"]\n- |\n  export API_KEY=***\n  date\n- \"curl https://u:***@example.org/\"\n- date\n"},
		{"arguments", "#cloud-config\nruncmd:\n- [mysql, --password, s3cret, -u, root]\n- [x, --token=s3cret, --pass, \"s3cret\"]\n- [passwd, root]\n",
			"#cloud-config\nruncmd:\n- [mysql, --password, \"***\", -u, root]\n- [x, \"--token=***\", --pass, \"***\"]\n- [passwd, root]\n"},
		{"short names", "#!/bin/sh\nPASS=s3cret\nexport DB_PASS=s3cret MYSQL_PWD=s3cret\nbypass=1\n", "#!/bin/sh\nPASS=***\nexport DB_PASS=***\nbypass=1\n"},
		{"comments", "#cloud-config\n# password: s3cret\na: b # token=s3cret\n", "#cloud-config\n# password: ***\na: b # token=***\n"},
		{"a hash", "#cloud-config\na: x\nb: " + cryptSHA + "\n", "#cloud-config\na: x\nb: \"***\"\n"},
		{"files", "#cloud-config\nwrite_files:\n- path: /etc/a.conf\n  content: |\n    # shown\n    password=s3cret\n- {path: /etc/b.key, content: s3cret}\n- {path: /z, content: !!binary " + base64.StdEncoding.EncodeToString([]byte("a\nTOKEN=s3cret\n")) + "}\n- path: /x\n  encoding: b64\n  content: " +
			base64.StdEncoding.EncodeToString([]byte(privateKey)) + "\n- path: /y\n  content: |\n" + indented(privateKey),
			"#cloud-config\nwrite_files:\n- path: /etc/a.conf\n  content: |\n    # shown\n    password=***\n- {path: /etc/b.key, content: \"***\"}\n- {path: /z, content: !!binary \"***\"}\n- path: /x\n  encoding: b64\n  content: \"***\"\n- path: /y\n  content: |\n    ***\n    ***\n    ***\n    ***\n"},
		{"a private key elsewhere", "#cloud-config\na:\n- |\n" + indented(privateKey) + "- b\n", "#cloud-config\na:\n- |\n    ***\n    ***\n    ***\n    ***\n- b\n"},
		{"the same key twice", "#cloud-config\npassword: s3cret\npassword: s3cret2\n", "#cloud-config\npassword: \"***\"\npassword: \"***\"\n"},
		{"no YAML", "#cloud-config\nchpasswd:\n  list: |\n    root:s3cret\na: b: c\npassword: >\n  s3cret\nb: [\n- token: s3cret\n  more: x\n",
			"#cloud-config\nchpasswd:\n  ***\n    ***\na: b: c\npassword: >\n  ***\nb: [\n- token: ***\n  ***\n"},
		{"a template", "## template: jinja\n#cloud-config\npassword: {{ s3cret }}\nb: {% x %}\n", "## template: jinja\n#cloud-config\npassword: ***\nb: {% x %}\n"},
		{"an archive", "#cloud-config-archive\n- type: text/cloud-config\n  content: |\n    chpasswd:\n      list: |\n        root:s3cret\n    a: b\n- |\n  #!/bin/sh\n  TOKEN=s3cret\n",
			"#cloud-config-archive\n- type: text/cloud-config\n  content: |\n    chpasswd:\n      ***\n        ***\n    a: b\n- |\n  #!/bin/sh\n  TOKEN=***\n"},
		{"a patch", "#cloud-config-jsonp\n[{\"op\": \"add\", \"path\": \"/password\", \"value\": \"s3cret\"}]\n", "#cloud-config-jsonp\n[{\"op\": \"add\", \"path\": \"/password\", \"value\": \"***\"}]\n"},
		{"a script", "#!/bin/sh\nDB_PASSWORD='s3cret x'\nmysql --password s3cret -u x\ncat <<E\n" + privateKey + "E\nexport X=1\n",
			"#!/bin/sh\nDB_PASSWORD=***\nmysql --password ***\ncat <<E\n-----BEGIN OPENSSH PRIVATE KEY-----\n***\n***\n-----END OPENSSH PRIVATE KEY-----\nE\nexport X=1\n"},
		{"a string", "#cloud-config\n '\nchpasswd:\n  list: |\n    root:s3cret\nx' ", "#cloud-config\n '\nchpasswd:\n  ***\n    ***\nx' "},
		{"a document in a string", "#cloud-config\na: '\nchpasswd:\n  list: |\n    root:s3cret\nx' ", "#cloud-config\na: \" chpasswd: ***\" "},
		{"unknown", "hello\npassword: s3cret\n", "hello\npassword: ***\n"},
		{"empty", "", ""},
	} {
		got := maskData(c.give)
		if got != c.want {
			t.Errorf("%s:\n%s\nis masked to\n%s\nwant\n%s", c.name, c.give, got, c.want)
		}
		if again := maskData(got); again != got {
			t.Errorf("%s: masked twice to\n%s\nonce to\n%s", c.name, again, got)
		}
	}
}

// Where the end of a scalar cannot be seen, the document is written anew.
func TestAScalarOverManyLinesIsMasked(t *testing.T) {
	for _, give := range []string{
		"#cloud-config\nusers:\n- password: s3cret\n    s3cret\n- a\n",
		"#cloud-config\na: [password: s3cret\n  s3cret, b]\n",
		"#cloud-config\na:\n- token: |1\n    s3cret\n   s3cret\n-\n  b: c\n",
	} {
		got := maskData(give)
		if strings.Contains(got, "s3cret") || markOf(got) != markConfig {
			t.Errorf("%s is masked to\n%s", give, got)
		}
		if _, err := parseYAML(got); err != nil {
			t.Errorf("%v in\n%s", err, got)
		}
	}
}

func TestSecretsInMessagesAreMasked(t *testing.T) {
	config, script := "#cloud-config\npassword: s3cret\na: ü\n", "#!/bin/sh\nTOKEN=s3cret\ndate\n"
	message := multipartData(config, script, multipartData(script, config))
	got := MaskSeedFile("vendor-data", []byte(message))
	maskedConfig, maskedScript := "#cloud-config\npassword: \"***\"\na: ü\n", "#!/bin/sh\nTOKEN=***\ndate\n"
	want := []string{maskedConfig, maskedScript, maskedScript, maskedConfig}
	if parts := partsOf(t, got); strings.Join(parts, "|") != strings.Join(want, "|") {
		t.Errorf("the parts are %q, want %q", parts, want)
	}
	deep := script
	for range 2 * maxNesting {
		deep = multipartData(deep)
	}
	for name, odd := range map[string]string{
		"quoted-printable": strings.Replace(message, "base64", "quoted-printable", -1),
		"no base64":        strings.Replace(message, "base64\n\n", "base64\n\ns3cret!\n", 1),
		"no boundary":      strings.Replace(message, "boundary=", "border=", 1),
		"no headers":       "MIME-Version: 1.0\nhello\n\n" + script,
		"no end":           strings.TrimSuffix(strings.TrimSpace(message), "--"),
		"one part":         "MIME-Version: 1.0\nContent-Type: text/cloud-config\n\nchpasswd:\n  list: |\n    root:s3cret\n",
		"deep":             deep,
	} {
		if got := maskData(odd); strings.Contains(got, "s3cret") {
			t.Errorf("%s: masked to\n%s", name, got)
		}
	}
}

func TestAllOfCloudInitIsMaskedInACopy(t *testing.T) {
	c := CloudInit{Hostname: "a", SSHAuthorizedKeys: []string{sshKey}, PasswordHash: cryptSHA, Users: []CloudUser{{Name: "ann", PasswordHash: cryptYes}, {Name: "bob"}},
		UserData: "#cloud-config\npassword: s3cret\n", VendorData: "#!/bin/sh\nTOKEN=s3cret\n", NetworkConfig: "version: 2\nwifis: {w: {access-points: {x: {password: s3cret}}}}\n"}
	m := c.Masked()
	if m.PasswordHash != masked || m.Users[0].PasswordHash != masked || m.Users[1].PasswordHash != "" || m.UserData != "#cloud-config\npassword: \"***\"\n" ||
		m.VendorData != "#!/bin/sh\nTOKEN=***\n" || m.NetworkConfig != "version: 2\nwifis: {w: {access-points: {x: {password: \"***\"}}}}\n" || m.Hostname != "a" || len(m.SSHAuthorizedKeys) != 1 {
		t.Errorf("masked to %+v", m)
	}
	if c.PasswordHash != cryptSHA || c.Users[0].PasswordHash != cryptYes {
		t.Errorf("%+v was changed", c)
	}
	if (CloudInit{}).Masked().PasswordHash != "" {
		t.Error("a hash that is not there is masked")
	}
	for name, content := range SeedFiles(VM{ID: "a"}, Seed{CloudInit: c}, nil) {
		if got := MaskSeedFile(name, content); strings.Contains(got, "s3cret") || strings.Contains(got, "$6$") || strings.Contains(got, "$y$") {
			t.Errorf("%s is masked to\n%s", name, got)
		}
	}
}

func FuzzCloudConfig(f *testing.F) {
	for _, s := range []string{"", "a: b", "#cloud-config\na: &a [b]\nc: *a", "#!/bin/sh\nx", "a: |\n  b\n", "? a\n: b", "- 'x", "write_files:\n- path: a\n  content: |2\n    x",
		"#cloud-config-archive\n- a", "Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\n\nx", "version: 2", "a: !!binary x\n\"\\x70assword\": y", "chpasswd: {list: x}", "x: \u2028\ny: \u0085 z\n", "a: >-\n\n\n   b\n  # c\nd: e", privateKey,
		"## template: jinja\n#cloud-config\n{{ a }}"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		for _, data := range []string{before, markConfig + "\n" + before} {
			c := CloudInit{UserData: data, NetworkConfig: data}
			_ = c.Check("")
			_ = c.Masked()
		}
		const secret = "s3cret-under-a-key"
		for _, entry := range []string{"password: " + secret, "x: {token: [a, '" + secret + "']}", "chpasswd:\n  list: |\n    root:" + secret, "ssh_keys:\n  rsa_private: \"a\n    " + secret + "\""} {
			if strings.Contains(before+after, secret[:2]) || strings.Contains(before, "content") { // of a file is shown
				return
			}
			data := markConfig + "\n" + before + "\n" + entry + "\n" + after
			c := CloudInit{UserData: data, NetworkConfig: data}
			if m := c.Masked(); strings.Contains(m.UserData, secret) || strings.Contains(m.NetworkConfig, secret) {
				t.Errorf("%q is masked to %q and %q", data, m.UserData, m.NetworkConfig)
			}
		}
	})
}
