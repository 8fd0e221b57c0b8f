package vm

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func gzipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func base64Of(data string) string { return base64.StdEncoding.EncodeToString([]byte(data)) }

const (
	talosConfig    = "version: v1alpha1\nmachine:\n  type: worker\n"
	ignitionConfig = `{"ignition": {"version": "3.4.0"}}`
)

func TestUserDataInBase64(t *testing.T) {
	binary := "MZ\x00\xff\x10"
	packed := gzipped(t, head+"{}\n")
	for name, c := range map[string]struct {
		given CloudInit
		data  string // what the guest gets; empty: refused
		text  bool
		field string
		says  string
	}{
		"text":             {CloudInit{UserDataBase64: base64Of("#!/bin/sh\ntrue\n")}, "#!/bin/sh\ntrue\n", true, "", ""},
		"wrapped lines":    {CloudInit{UserDataBase64: base64Lines(head + "a: 1\n" + strings.Repeat("# x\n", 50))}, head + "a: 1\n" + strings.Repeat("# x\n", 50), true, "", ""},
		"gzip":             {CloudInit{UserDataBase64: base64Of(packed)}, head + "{}\n", true, "", ""},
		"gzip of Ignition": {CloudInit{Format: DataIgnition, UserDataBase64: base64Of(gzipped(t, ignitionConfig))}, ignitionConfig, true, "", ""},
		"raw text":         {CloudInit{Format: DataRaw, UserDataBase64: base64Of(talosConfig)}, talosConfig, true, "", ""},
		"raw gzip":         {CloudInit{Format: DataRaw, UserDataBase64: base64Of(packed)}, packed, false, "", ""},
		"raw binary":       {CloudInit{Format: DataRaw, UserDataBase64: base64Of(binary)}, binary, false, "", ""},

		"both":            {CloudInit{UserData: "#!", UserDataBase64: "IyE="}, "", false, "/user_data_base64", "together with user_data"},
		"not base64":      {CloudInit{UserDataBase64: "#cloud-config"}, "", false, "/user_data_base64", "not valid base64"},
		"URL alphabet":    {CloudInit{UserDataBase64: "_-8="}, "", false, "/user_data_base64", "not valid base64"},
		"no padding":      {CloudInit{UserDataBase64: "IyE"}, "", false, "/user_data_base64", "not valid base64"},
		"binary":          {CloudInit{UserDataBase64: base64Of(binary)}, "", false, "/user_data_base64", "format raw"},
		"Ignition binary": {CloudInit{Format: DataIgnition, UserDataBase64: base64Of(binary)}, "", false, "/user_data_base64", "format raw"},
		"gzip cut off":    {CloudInit{UserDataBase64: base64Of(packed[:20])}, "", false, "/user_data_base64", "not valid gzip"},
		"gzip bomb":       {CloudInit{UserDataBase64: base64Of(gzipped(t, strings.Repeat("#", 64<<20)))}, "", false, "/user_data_base64", "512 KiB"},
		"too long":        {CloudInit{Format: DataRaw, UserDataBase64: base64Of(strings.Repeat("\x00", maxUserData+1))}, "", false, "/user_data_base64", "512 KiB"},
		"another program": {CloudInit{UserDataBase64: base64Of(talosConfig)}, "", false, "/user_data", "does not recognize"},
		"empty":           {CloudInit{Format: DataRaw}, "", false, "/user_data", "requires user data"},
	} {
		got := c.given
		err := got.Normalize("/cloud_init")
		if err == nil {
			err = got.Check("/cloud_init")
		}
		wantField(t, name, err, "/cloud_init", c.field, c.says)
		if c.field != "" {
			continue
		}
		if got.Data() != c.data || (got.UserData == c.data) != c.text || (got.UserDataBase64 == "") != c.text {
			t.Errorf("%s: got %+v, want %q, text: %v", name, got, c.data, c.text)
		}
		files := SeedFiles(VM{ID: "web"}, seedOf(got), nil)
		if string(files["user-data"]) != c.data || files["vendor-data"] != nil {
			t.Errorf("%s: the guest gets %q", name, files)
		}
	}
}

// A bomb must not be expanded in memory.
func TestGzippedUserDataIsBounded(t *testing.T) {
	bomb := base64Of(gzipped(t, strings.Repeat("#", 256<<20)))
	allocated := testing.Benchmark(func(b *testing.B) {
		for range b.N {
			c := CloudInit{UserDataBase64: bomb}
			if c.Normalize("") == nil {
				b.Error("accepted")
			}
		}
	}).AllocedBytesPerOp()
	t.Logf("%d KiB of gzip data in base64, %d KiB allocated", len(bomb)>>10, allocated>>10)
	if allocated > 8<<20 {
		t.Errorf("%d bytes allocated, want at most 8 MiB", allocated)
	}
}

func TestUserDataOfOtherProgramsIsUnchanged(t *testing.T) {
	for name, c := range map[string]struct {
		data  CloudInit
		field string
		says  string
	}{
		"Talos":                 {CloudInit{Format: DataRaw, UserData: talosConfig}, "", ""},
		"Talos with a name":     {CloudInit{Format: DataRaw, UserData: talosConfig, Hostname: "cp-1", NetworkConfig: "version: 2\n"}, "", ""},
		"PowerShell":            {CloudInit{Format: DataRaw, UserData: "#ps1_sysnative\r\nGet-Date\r\n"}, "", ""},
		"Ignition":              {CloudInit{Format: DataIgnition, UserData: ignitionConfig}, "", ""},
		"raw Ignition":          {CloudInit{Format: DataRaw, UserData: ignitionConfig}, "", ""},
		"broken cloud-config":   {CloudInit{Format: DataRaw, UserData: head + "\ta: 1\n"}, "", ""},
		"keys":                  {CloudInit{Format: DataRaw, UserData: talosConfig, SSHAuthorizedKeys: []string{sshKey}}, "/ssh_authorized_keys", "only cloud-init"},
		"users":                 {CloudInit{Format: DataRaw, UserData: talosConfig, Users: []CloudUser{{Name: "ann"}}}, "/users", "only cloud-init"},
		"a password":            {CloudInit{Format: DataRaw, UserData: talosConfig, PasswordHash: cryptMD5}, "/password_hash", "only cloud-init"},
		"Ignition and a name":   {CloudInit{Format: DataIgnition, UserData: ignitionConfig, Hostname: "a"}, "/hostname", "user data"},
		"Ignition and vendor":   {CloudInit{Format: DataIgnition, UserData: ignitionConfig, VendorData: "#!"}, "/vendor_data", "user data"},
		"Ignition and networks": {CloudInit{Format: DataIgnition, UserData: ignitionConfig, NetworkConfig: "version: 2\n"}, "/network_config", "user data"},
		"Butane":                {CloudInit{Format: DataIgnition, UserData: "variant: fcos\n"}, "/user_data", "JSON"},
		"another JSON":          {CloudInit{Format: DataIgnition, UserData: `{"a": 1}`}, "/user_data", "ignition.version"},
		"too long":              {CloudInit{Format: DataRaw, UserData: strings.Repeat("a", maxUserData+1)}, "/user_data", "512 KiB"},
		"no format":             {CloudInit{Format: "yaml", UserData: "a"}, "/format", "cloud-init, raw or ignition"},
		"Talos for cloud-init":  {CloudInit{UserData: talosConfig}, "/user_data", "does not recognize"},
	} {
		err := c.data.Check("")
		wantField(t, name, err, "", c.field, c.says)
		if c.field != "" {
			continue
		}
		files := SeedFiles(VM{ID: "web"}, seedOf(c.data), nil)
		ignition := c.data.Format == DataIgnition
		if string(files["user-data"]) != c.data.UserData || files["vendor-data"] != nil || (files[SeedIgnition] != nil) != ignition {
			t.Errorf("%s: the guest gets %q", name, files)
		}
	}
	f, ok := CloudInit{UserData: talosConfig}.Check("").(*Fault)
	if !ok || !strings.Contains(f.Hint, "format raw") {
		t.Errorf("data of another program: %+v, want a hint", f)
	}
}

func TestKeyOptionsAreQuotedInTheSeed(t *testing.T) {
	keys := []string{
		`from="10.0.0.0/8",no-agent-forwarding ` + sshKey,
		`command="echo \"a: #b\" 'c' \\d",environment="X={y}" ` + sshKey,
		`restrict,pty ` + sshKey,
	}
	c := CloudInit{SSHAuthorizedKeys: keys, Users: []CloudUser{{Name: "ann", SSHAuthorizedKeys: keys}}}
	if err := c.Check(""); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Keys  []string `yaml:"ssh_authorized_keys"`
		Users []yaml.Node
	}
	if err := yaml.Unmarshal(SeedFiles(VM{ID: "web"}, seedOf(c), nil)["user-data"], &got); err != nil {
		t.Fatal(err)
	}
	var user struct {
		Keys []string `yaml:"ssh_authorized_keys"`
	}
	if err := got.Users[1].Decode(&user); err != nil {
		t.Fatal(err)
	}
	for i, want := range keys {
		if len(got.Keys) != len(keys) || len(user.Keys) != len(keys) || got.Keys[i] != want || user.Keys[i] != want {
			t.Errorf("key %d is %q and %q, want %q", i, got.Keys, user.Keys, want)
		}
	}
}
