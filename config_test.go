package main

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// configure reads a configuration as a root-like user of a bare host would:
// nothing is set but what the test says.
func configure(t *testing.T, file string, env map[string]string, args ...string) (Config, error) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, envPrefix) {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	for name, value := range env {
		t.Setenv(name, value)
	}
	cl, err := parseArgs(args)
	if err != nil {
		t.Fatal(err)
	}
	// An empty file keeps that of the host, if it has one, out.
	cl.file = configFile(t, file)
	return readConfig(cl.settings, os.Environ(), cl.file)
}

func configFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vman.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEverySettingHasADefaultAndAnExplanationInConfigYAML(t *testing.T) {
	given, wrong := parseFile(defaultConfig, "config.yaml")
	if len(wrong) != 0 || len(given) == 0 {
		t.Fatalf("config.yaml: %q", wrong)
	}
	nodes := settingNodes()
	for _, s := range settings {
		n, ok := nodes[s.key]
		if !ok || !holds(given, s.key) {
			t.Errorf("%s has no default in config.yaml", s.key)
		}
		if len(n.comment) < 20 {
			t.Errorf("%s is not explained in config.yaml", s.key)
		}
	}
	if len(nodes) != len(settings) {
		t.Errorf("config.yaml has %d settings, there are %d", len(nodes), len(settings))
	}
}

func TestTheDefaults(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", "/s")
	t.Setenv("XDG_RUNTIME_DIR", "/r")
	c, err := configure(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	state, run := "/var/lib/vman", "/run/vman"
	if os.Geteuid() != 0 {
		state, run = "/s/vman", "/r/vman"
	}
	if c.Listen != "127.0.0.1:8000" || c.Socket != run+"/vmand.sock" || c.StateDir != state || c.RuntimeDir != run || c.BootDisk != "" || c.DryRun {
		t.Errorf("defaults %+v", c)
	}
	if c.QEMU.Binary != "qemu-system-x86_64" || c.QEMU.ImgBinary != "qemu-img" || c.QEMU.Accel != "auto" || c.QEMU.User != "" {
		t.Errorf("qemu %+v", c.QEMU)
	}
	if c.Observer.Repair != "auto" || c.Observer.LowMiB != 1024 || c.Manager.KeepEvents != 100_000 {
		t.Errorf("observer %+v, manager %+v", c.Observer, c.Manager)
	}
	if c.Observer.Interval != 5*time.Second || c.Manager.Keep != 720*time.Hour || c.LogLevel != slog.LevelInfo || c.LogFormat != "auto" {
		t.Errorf("observer %+v, manager %+v, log %v %s", c.Observer, c.Manager, c.LogLevel, c.LogFormat)
	}
}

func TestFlagsCountMoreThanTheEnvironmentThanTheFileThanTheDefault(t *testing.T) {
	tests := []struct {
		file string
		env  map[string]string
		args []string
		want time.Duration
	}{
		{"", nil, nil, 5 * time.Second},
		{"observer: {interval: 4s}", nil, nil, 4 * time.Second},
		{"observer: {interval: 4s}", map[string]string{"VMAN_OBSERVER_INTERVAL": "3s"}, nil, 3 * time.Second},
		{"observer: {interval: 4s}", map[string]string{"VMAN_OBSERVER_INTERVAL": "3s"}, []string{"--observer-interval", "2s"}, 2 * time.Second},
		{"observer: {interval: 4s}", nil, []string{"--observer-interval=2s"}, 2 * time.Second},
		{"# nothing but a remark\n", nil, nil, 5 * time.Second},
		{"observer:\n", nil, nil, 5 * time.Second},
	}
	for _, tt := range tests {
		c, err := configure(t, tt.file, tt.env, tt.args...)
		if err != nil || c.Observer.Interval != tt.want {
			t.Errorf("file %q, env %v, flags %q: interval %s, %v; want %s", tt.file, tt.env, tt.args, c.Observer.Interval, err, tt.want)
		}
		for name := range tt.env {
			os.Unsetenv(name)
		}
	}
}

func TestEverySettingIsAFlagAVariableAndAKey(t *testing.T) {
	// A value of each that is not its default.
	dir := t.TempDir()
	values := map[string]string{
		"listen": "0.0.0.0:9", "listen_insecure": "true", "hosts": "a.example,b.example", "socket": dir + "/s.sock", "socket_group": "0",
		"state_dir": dir + "/state", "runtime_dir": dir + "/run", "default_boot_disk": dir + "/boot.qcow2", "dry_run": "true",
		"qemu.binary": "/opt/qemu", "qemu.img_binary": "/opt/qemu-img", "qemu.accel": "tcg", "qemu.user": "nobody", "network.mode": "user", "network.passt": "/opt/passt",
		"observer.interval": "7s", "observer.allow_slow": "true", "observer.repair": "report", "storage.low_mib": "77", "images.max_gib": "9", "images.allow_private": "10.0.0.7", "operations.keep": "2h", "events.keep": "5000",
		"log.level": "debug", "log.format": "json",
	}
	env, byFlag, file := map[string]string{}, []string{}, ""
	for _, s := range settings {
		value, ok := values[s.key]
		if !ok {
			t.Fatalf("the test does not know %s", s.key)
		}
		env[s.variable()] = value
		byFlag = append(byFlag, "--"+s.flag()+"="+value)
	}
	for _, section := range []string{"", "qemu", "network", "observer", "storage", "images", "operations", "events", "log"} {
		if section != "" {
			file += section + ":\n"
		}
		for key, value := range values {
			if in, name, nested := strings.Cut(key, "."); nested && in == section {
				file += "  " + name + ": " + value + "\n"
			} else if !nested && section == "" {
				file += key + ": " + quoteNumber(value) + "\n"
			}
		}
	}
	fromFile, err := configure(t, file, nil)
	if err != nil {
		t.Fatal(err)
	}
	fromFlags, err := configure(t, "", nil, byFlag...)
	if err != nil {
		t.Fatal(err)
	}
	fromEnv, err := configure(t, "", env)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{"environment": fromEnv, "flags": fromFlags} {
		for _, s := range settings {
			if got, want := show(s, c), show(s, fromFile); got != want {
				t.Errorf("%s by %s is %s, by file %s", s.key, name, got, want)
			}
		}
	}
	if fromFile.Listen != "0.0.0.0:9" || !fromFile.DryRun || fromFile.QEMU.User != "nobody" || fromFile.Observer.Interval != 7*time.Second ||
		!slices.Equal(fromFile.Server.Hosts, []string{"a.example", "b.example"}) || fromFile.Server.Group != "0" || fromFile.LogLevel != slog.LevelDebug ||
		fromFile.Observer.Repair != "report" || fromFile.Observer.LowMiB != 77 || fromFile.Manager.KeepEvents != 5000 {
		t.Errorf("configuration %+v", fromFile)
	}
	if images := fromFile.QEMU.Images; images.MaxBytes != 9<<30 || len(images.AllowPrivate) != 1 || images.AllowPrivate[0].String() != "10.0.0.7/32" {
		t.Errorf("of images: %+v", images)
	}
	want := []string{"VMAN_LISTEN", "VMAN_SOCKET", "VMAN_STATE_DIR", "VMAN_RUNTIME_DIR", "VMAN_OBSERVER_INTERVAL", "VMAN_OBSERVER_REPAIR", "VMAN_QEMU_ACCEL", "VMAN_OPERATOR_DRY_RUN"}
	for _, name := range want {
		if env[name] == "" {
			t.Errorf("there is no variable %s", name)
		}
	}
}

func quoteNumber(value string) string {
	if value == "0" {
		return `"0"`
	}
	return value
}

func show(s setting, c Config) string {
	switch v := s.to(&c).(type) {
	case *string:
		return *v
	case *bool:
		return map[bool]string{true: "true", false: "false"}[*v]
	case *int:
		return strconv.Itoa(*v)
	case *time.Duration:
		return v.String()
	case *[]string:
		return strings.Join(*v, ",")
	case *slog.Level:
		return v.String()
	}
	return "?"
}

func TestWhatCannotBeMeantIsRefused(t *testing.T) {
	long := "/" + strings.Repeat("x", 110)
	tests := map[string]struct {
		file string
		env  map[string]string
		args []string
		want []string // each in the error
	}{
		"a duration without a unit":       {file: "observer: {interval: 5}", want: []string{`observer.interval: "5"`, "vman.yaml", "5s"}},
		"a duration of 7.9":               {file: "observer: {interval: 7.9}", want: []string{`observer.interval: "7.9"`, "7.9s"}},
		"a duration by variable":          {env: map[string]string{"VMAN_OBSERVER_INTERVAL": "3"}, want: []string{"observer.interval", "VMAN_OBSERVER_INTERVAL", "3s"}},
		"a duration by flag":              {args: []string{"--observer-interval", "soon"}, want: []string{"observer.interval", "--observer-interval", "soon", "5s"}},
		"an empty duration":               {env: map[string]string{"VMAN_OBSERVER_INTERVAL": ""}, want: []string{"observer.interval", "duration"}},
		"an interval that is too long":    {args: []string{"--observer-interval", "6s"}, want: []string{"observer.interval", "observer.allow_slow"}},
		"an interval longer than that":    {args: []string{"--observer-interval", "2h", "--observer-allow-slow"}, want: []string{"observer.interval", "1h"}},
		"an interval that is too short":   {args: []string{"--observer-interval", "1ms"}, want: []string{"observer.interval", "100ms"}},
		"a negative interval":             {args: []string{"--observer-interval=-5s"}, want: []string{"observer.interval", "100ms"}},
		"operations kept too short":       {file: "operations: {keep: 1m}", want: []string{"operations.keep", "1h"}},
		"an unknown repair":               {args: []string{"--observer-repair", "never"}, want: []string{"observer.repair", "auto, report"}},
		"a floor that is no number":       {file: "storage: {low_mib: 1GiB}", want: []string{`storage.low_mib: "1GiB"`, "whole number"}},
		"a floor that is no whole number": {file: "storage: {low_mib: 7.5}", want: []string{`storage.low_mib: "7.5"`, "whole number"}},
		"a floor below nothing":           {args: []string{"--storage-low-mib=-1"}, want: []string{"storage.low_mib", "at least 0"}},
		"images of no size":               {file: "images: {max_gib: 0}", want: []string{"images.max_gib", "1 to 16384"}},
		"images beyond all disks":         {file: "images: {max_gib: 16385}", want: []string{"images.max_gib", "1 to 16384"}},
		"no address":                      {file: "images: {allow_private: [10.0.0.0/33]}", want: []string{"images.allow_private", "10.0.0.0/8"}},
		"a name for an address":           {args: []string{"--images-allow-private=localhost"}, want: []string{"images.allow_private", "127.0.0.1"}},
		"an empty floor":                  {env: map[string]string{"VMAN_STORAGE_LOW_MIB": ""}, want: []string{"storage.low_mib", "whole number"}},
		"too few events kept":             {file: "events: {keep: 999}", want: []string{"events.keep", "at least 1000"}},
		"a scalar for a section":          {file: "observer: 5", want: []string{"observer (", "is a section"}},
		"a list for a section":            {file: "observer: [a]", want: []string{"observer (", "is a section"}},
		"a section for a scalar":          {file: "listen: {host: a}", want: []string{"listen (", "not a section"}},
		"an unknown key":                  {file: "lisen: x", want: []string{"lisen (", "did you mean listen?"}},
		"an unknown key in a section":     {file: "observer: {intervall: 5s}", want: []string{"observer.intervall", "did you mean observer.interval?"}},
		"an unknown section":              {file: "obsever: {interval: 5s}", want: []string{"obsever", "did you mean observer.interval?"}},
		"a key in other letters":          {file: "Listen: x", want: []string{"Listen", "did you mean listen?"}},
		"a key with its section before":   {file: "observer.interval: 3s", want: []string{"observer.interval", "section"}},
		"a key without a value":           {file: "listen:", want: []string{"listen", "has no value"}},
		"a key twice":                     {file: "listen: a\nlisten: b", want: []string{"listen", "already defined"}},
		"a file that is a list":           {file: "- a", want: []string{"vman.yaml", "cannot unmarshal"}},
		"a file that is no YAML":          {file: "listen: [", want: []string{"vman.yaml", "yaml:"}},
		"two documents":                   {file: "listen: \"\"\n---\nlisten: \"\"", want: []string{"one document"}},
		"an unknown variable":             {env: map[string]string{"VMAN_LISSTEN": "x"}, want: []string{"VMAN_LISSTEN", "did you mean VMAN_LISTEN?"}},
		"a dry run by its key's variable": {env: map[string]string{"VMAN_DRY_RUN": "1"}, want: []string{"VMAN_DRY_RUN", "did you mean VMAN_OPERATOR_DRY_RUN?"}},
		"a number for text":               {file: "listen: 8000", want: []string{`listen: "8000"`, "quotes"}},
		"a number for a switch":           {file: "dry_run: 1", want: []string{`dry_run: "1"`, "true or false"}},
		"yes for a switch":                {file: "dry_run: yes", want: []string{`dry_run: "yes"`, "true or false"}},
		"an empty switch":                 {env: map[string]string{"VMAN_OPERATOR_DRY_RUN": ""}, want: []string{"dry_run", "true or false"}},
		"a number in a list":              {file: "hosts: [1]", want: []string{"hosts", "list of words"}},
		"a number for a list":             {file: "hosts: 1", want: []string{"hosts", "list of words"}},
		"listen without a port":           {args: []string{"--listen", "127.0.0.1"}, want: []string{"listen", "HOST:PORT"}},
		"a port by name":                  {args: []string{"--listen", "127.0.0.1:http"}, want: []string{"listen", "port"}},
		"a port that is too high":         {args: []string{"--listen", "127.0.0.1:65536"}, want: []string{"listen", "65535"}},
		"all addresses":                   {args: []string{"--listen", ":8000"}, want: []string{"listen", "listen_insecure"}},
		"an address beyond loopback":      {args: []string{"--listen", "192.0.2.1:8000"}, want: []string{"listen", "listen_insecure"}},
		"a name that may be anywhere":     {args: []string{"--listen", "vmhost:8000"}, want: []string{"listen", "listen_insecure"}},
		"any free port of all addresses":  {args: []string{"--listen", ":0", "--listen-insecure"}, want: []string{"listen", "name a host"}},
		"no door at all":                  {args: []string{"--listen", "", "--socket", "none"}, want: []string{"socket", "nobody could reach"}},
		"a socket that is too long":       {args: []string{"--socket", long}, want: []string{"socket", "107"}},
		"a runtime_dir that is too long":  {args: []string{"--runtime-dir", long}, want: []string{"socket", "runtime_dir"}},
		"a group that does not exist":     {args: []string{"--socket-group", "no-such-group"}, want: []string{"socket_group", "no-such-group"}},
		"no QEMU":                         {args: []string{"--qemu-binary", "", "--qemu-img-binary", ""}, want: []string{"qemu.binary", "qemu.img_binary", "empty"}},
		"an unknown accelerator":          {args: []string{"--qemu-accel", "hvf"}, want: []string{"qemu.accel", "auto, kvm, tcg"}},
		"an unknown level":                {file: "log: {level: loud}", want: []string{"log.level", "debug, info, warn, error"}},
		"an unknown format":               {file: "log: {format: xml}", want: []string{"log.format", "auto, text, json"}},
		"everything at once": {file: "lisen: x\nobserver: {interval: 5}", env: map[string]string{"VMAN_QEMU_ACCEL": "xen"}, args: []string{"--log-level", "loud"},
			want: []string{"lisen", "observer.interval", "qemu.accel", "VMAN_QEMU_ACCEL", "log.level", "--log-level"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := configure(t, tt.file, tt.env, tt.args...)
			if err == nil {
				t.Fatalf("taken as %+v", c)
			}
			for _, word := range tt.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q is not in: %v", word, err)
				}
			}
		})
	}
}

func TestWhatCanBeMeantIsTaken(t *testing.T) {
	group, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	aGroup, _, _ := strings.Cut(string(group), ":")
	tests := map[string]struct {
		file string
		env  map[string]string
		args []string
		ok   func(c Config) bool
	}{
		"an empty variable turns TCP off":      {env: map[string]string{"VMAN_LISTEN": ""}, ok: func(c Config) bool { return c.Listen == "" }},
		"none turns the socket off":            {args: []string{"--socket", "none"}, ok: func(c Config) bool { return c.Socket == "" }},
		"none turns the group off":             {args: []string{"--socket-group", "none"}, ok: func(c Config) bool { return c.Server.Group == "" }},
		"a group by name":                      {args: []string{"--socket-group", aGroup}, ok: func(c Config) bool { return c.Server.Group == aGroup }},
		"a switch alone is on":                 {args: []string{"--dry-run"}, ok: func(c Config) bool { return c.DryRun }},
		"a switch can be turned off":           {env: map[string]string{"VMAN_OPERATOR_DRY_RUN": "1"}, args: []string{"--dry-run=false"}, ok: func(c Config) bool { return !c.DryRun }},
		"an address beyond loopback, insecure": {args: []string{"--listen", "0.0.0.0:8000", "--listen-insecure"}, ok: func(c Config) bool { return c.Listen == "0.0.0.0:8000" }},
		"loopback of IPv6":                     {args: []string{"--listen", "[::1]:0"}, ok: func(c Config) bool { return c.Listen == "[::1]:0" }},
		"localhost":                            {args: []string{"--listen", "localhost:80"}, ok: func(c Config) bool { return c.Listen == "localhost:80" }},
		"a slow observer that is meant":        {args: []string{"--observer-interval", "1m", "--observer-allow-slow"}, ok: func(c Config) bool { return c.Observer.Interval == time.Minute }},
		"a relative directory":                 {args: []string{"--state-dir", "s"}, ok: func(c Config) bool { return filepath.IsAbs(c.StateDir) && filepath.Base(c.StateDir) == "s" }},
		"the socket goes with runtime_dir":     {args: []string{"--runtime-dir", "/r"}, ok: func(c Config) bool { return c.Socket == "/r/vmand.sock" }},
		"hosts as a list":                      {file: "hosts: [a, b]", ok: func(c Config) bool { return slices.Equal(c.Server.Hosts, []string{"a", "b"}) }},
		"no floor for storage":                 {file: "storage: {low_mib: 0}", ok: func(c Config) bool { return c.Observer.LowMiB == 0 }},
		"a floor by variable":                  {env: map[string]string{"VMAN_STORAGE_LOW_MIB": "9"}, ok: func(c Config) bool { return c.Observer.LowMiB == 9 }},
		"what is for the tests":                {env: map[string]string{"VMAN_TEST_QEMU": "required"}, ok: func(Config) bool { return true }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := configure(t, tt.file, tt.env, tt.args...)
			if err != nil || !tt.ok(c) {
				t.Errorf("configuration %+v, %v", c, err)
			}
		})
	}
}

func TestDirectoriesOfAnOrdinaryUser(t *testing.T) {
	tests := map[string]struct {
		stateHome, runtimeDir, home string
		state, run                  string
	}{
		"by XDG":            {"/xs", "/xr", "/home/u", "/xs/vman", "/xr/vman"},
		"without XDG":       {"", "", "/home/u", "/home/u/.local/state/vman", "/home/u/.local/state/vman/run"},
		"relative XDG":      {"xs", "xr", "/home/u", "/home/u/.local/state/vman", "/home/u/.local/state/vman/run"},
		"nowhere to put it": {"", "", "", "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("XDG_STATE_HOME", tt.stateHome)
			t.Setenv("XDG_RUNTIME_DIR", tt.runtimeDir)
			t.Setenv("HOME", tt.home)
			state, err := defaultStateDir(false)
			if state != tt.state || (err != nil) != (tt.state == "") {
				t.Errorf("state_dir %q, %v; want %q", state, err, tt.state)
			}
			if run := defaultRuntimeDir(false, state); tt.state != "" && run != tt.run {
				t.Errorf("runtime_dir %q, want %q", run, tt.run)
			}
		})
	}
}

func TestAFileThatIsAskedForMustBeThere(t *testing.T) {
	cl, err := parseArgs([]string{"--config", "/nonexistent/vman.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readConfig(cl.settings, nil, cl.file); err == nil || !strings.Contains(err.Error(), "/nonexistent/vman.yaml") {
		t.Errorf("error %v, want one that names the file", err)
	}
}

func TestFlagsNobodyKnowsAndStrayWordsAreRefused(t *testing.T) {
	for _, args := range [][]string{{"--lissten"}, {"start"}, {"backup"}, {"restore"}, {"backup", ""}, {"backup", "a", "b"}, {"--config"}, {"--dry-run", "true"}} {
		if _, err := parseArgs(args); err == nil || !strings.Contains(err.Error(), "--help") {
			t.Errorf("%q: error %v, want one that says where the flags are listed", args, err)
		}
	}
}

func TestHelpNamesEverySettingInAllItsForms(t *testing.T) {
	text := usage()
	for _, s := range settings {
		for _, word := range []string{"--" + s.flag(), s.variable(), s.key} {
			if !strings.Contains(text, word) {
				t.Errorf("--help does not name %s", word)
			}
		}
	}
	for _, word := range []string{"--config", "--check-config", "--version", "--help", "vmand backup FILE", "vmand restore FILE", "(default 5s)"} {
		if !strings.Contains(text, word) {
			t.Errorf("--help does not say %s", word)
		}
	}
	for line := range strings.Lines(text) {
		if len(line) > 101 {
			t.Errorf("a line of --help has %d characters: %s", len(line), line)
		}
	}
}

func TestNearest(t *testing.T) {
	for word, want := range map[string]string{"listn": "listen", "socet": "socket", "acel": "qemu.accel", "runtimedir": "runtime_dir", "obsever.intervall": "observer.interval", "DRY_RUN": "dry_run", "OPERATOR_DRYRUN": "dry_run"} {
		if got := nearest(word).key; got != want {
			t.Errorf("nearest to %q is %q, want %q", word, got, want)
		}
	}
	for pair, want := range map[[2]string]int{{"", "abc"}: 3, {"abc", ""}: 3, {"kitten", "sitting"}: 3, {"abc", "abc"}: 0, {"ab", "ba"}: 2} {
		if got := distance(pair[0], pair[1]); got != want {
			t.Errorf("distance%v = %d, want %d", pair, got, want)
		}
	}
}

func TestTheLogIsTextOnATerminalOnly(t *testing.T) {
	for format, wantJSON := range map[string]bool{"auto": true, "json": true, "text": false} {
		out, err := os.Create(filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		log, flush := (&Config{LogFormat: format, LogLevel: slog.LevelWarn}).logger(out)
		defer flush()
		log.Info("not worth a line")
		log.Warn("worth a line", "key", "value")
		text, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "not worth") || !strings.Contains(string(text), "worth a line") || strings.HasPrefix(string(text), "{") != wantJSON {
			t.Errorf("format %s to a file: %s", format, text)
		}
	}
}

func TestSettingsAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range settings {
		for _, name := range []string{s.key, s.flag() + " as a flag", s.variable()} {
			if seen[name] {
				t.Errorf("%s twice", name)
			}
			seen[name] = true
		}
	}
	var keys []string
	for _, s := range settings {
		keys = append(keys, s.key)
	}
	slices.Sort(keys)
	if got := slices.Sorted(maps.Keys(settingNodes())); !slices.Equal(got, keys) {
		t.Errorf("config.yaml has %q", got)
	}
}
