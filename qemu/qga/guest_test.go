package qga

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// answers returns a player with one reply per command. It refuses all other commands.
func answers(replies map[string]string) player {
	return func(n int, r request, w io.Writer) {
		reply, ok := replies[r.Execute]
		if !ok {
			reply = `{"error": {"class": "CommandNotFound", "desc": "The command ` + r.Execute + ` has not been found"}}`
		}
		io.WriteString(w, strings.ReplaceAll(reply, "\n", " ")+"\n")
	}
}

func TestRepliesAreCleanedAndParsed(t *testing.T) {
	t.Parallel()
	s := play(t, answers(map[string]string{
		"guest-info": `{"return": {"version": "7.2.22\u0000", "supported_commands": [
			{"enabled": true, "name": "guest-exec", "success-response": true},
			{"enabled": false, "name": "guest-fstrim"},
			{"name": "\u0001"}]}}`,
		"guest-get-host-name": `{"return": {"host-name": " web\n1\u202e` + strings.Repeat("x", 300) + `"}}`,
		"guest-get-osinfo": `{"return": {"id": "debian", "pretty-name": "Debian \ud800GNU",
			"version-id": "12", "kernel-release": "6.1", "machine": "x86_64"}}`,
		"guest-network-get-interfaces": `{"return": [
			{"name": "eth0", "hardware-address": "52:54:00:AA:00:01", "ip-addresses": [
				{"ip-address": "10.0.0.5", "prefix": 24, "ip-address-type": "ipv4"},
				{"ip-address": "10.0.0.6", "prefix": 33},
				{"ip-address": "ten", "prefix": 8},
				{"ip-address": "fe80::1%eth0", "prefix": 64},
				{"ip-address": "::1", "prefix": -1}]},
			{"name": "\u0007"},
			{"name": "lo", "hardware-address": "nonsense"}]}`,
		"guest-get-fsinfo": `{"return": [
			{"name": "vda1", "mountpoint": "/", "type": "ext4",
				"used-bytes": 18446744073709551615, "total-bytes": 1e400,
				"disk": [{"serial": "data-1"}, {"bus-type": "scsi", "bus": 0, "target": 0, "unit": 3,
					"pci-controller": {"domain": 0, "bus": 0, "slot": 3, "function": 0}}]},
			{"mountpoint": "/b", "type": "vfat", "used-bytes": 5, "total-bytes": 7},
			{"mountpoint": "/c", "used-bytes": "five"}]}`,
	}))
	ctx := t.Context()
	for name, test := range map[string]struct {
		ask  func() (any, error)
		want any
	}{
		"Info": {
			func() (any, error) { return s.Info(ctx) },
			Info{"7.2.22", map[string]bool{"guest-exec": true, "guest-fstrim": false}},
		},
		"Hostname": {
			func() (any, error) { return s.Hostname(ctx) },
			"web 1" + strings.Repeat("x", 249),
		},
		"OS": {
			func() (any, error) { return s.OS(ctx) },
			OS{ID: "debian", Name: "Debian GNU", Version: "12", Kernel: "6.1", Machine: "x86_64"},
		},
		"Interfaces": {
			func() (any, error) { return s.Interfaces(ctx) },
			[]Interface{
				{
					Name: "eth0",
					MAC:  "52:54:00:aa:00:01",
					Addresses: []netip.Prefix{
						netip.MustParsePrefix("10.0.0.5/24"),
						netip.MustParsePrefix("fe80::1/64"),
					},
				},
				{Name: "lo"},
			},
		},
		"Filesystems": {
			func() (any, error) { return s.Filesystems(ctx) },
			[]Filesystem{
				{MountPoint: "/", Type: "ext4", Device: "vda1", Disks: []Disk{
					{Serial: "data-1"},
					{BusType: "scsi", PCI: Address{Slot: 3}, Unit: 3},
				}},
				{MountPoint: "/b", Type: "vfat", UsedBytes: 5, TotalBytes: 7},
				{MountPoint: "/c"},
			},
		},
	} {
		got, err := test.ask()
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, test.want)
		}
	}
}

func TestListsOfAGuestAreBounded(t *testing.T) {
	t.Parallel()
	const address = `{"ip-address": "::1", "prefix": 1}`
	one := `{"name": "e", "ip-addresses": [` + address + strings.Repeat(","+address, maxAddresses) + `]}`
	s := play(t, answers(map[string]string{
		"guest-network-get-interfaces": `{"return": [` + one + strings.Repeat(`,{"name": "f"}`, maxInterfaces) + `]}`,
		"guest-get-fsinfo":             `{"return": [{}` + strings.Repeat(`,{}`, maxFilesystems) + `]}`,
	}))
	all, err := s.Interfaces(t.Context())
	if err != nil || len(all) != maxInterfaces || len(all[0].Addresses) != maxAddresses {
		t.Errorf("%d interfaces, %v", len(all), err)
	}
	if all, err := s.Filesystems(t.Context()); err != nil || len(all) != maxFilesystems {
		t.Errorf("%d file systems, %v", len(all), err)
	}
}

func TestRepliesOfTheWrongTypeAreGarbage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for command, c := range map[string]struct {
		reply string
		ask   func(*script) error
	}{
		"guest-info": {
			`{"return": 7}`,
			func(s *script) error { _, err := s.Info(ctx); return err },
		},
		"guest-get-host-name": {
			`{"return": {"host-name": 7}}`,
			func(s *script) error { _, err := s.Hostname(ctx); return err },
		},
		"guest-get-osinfo": {
			`{"return": []}`,
			func(s *script) error { _, err := s.OS(ctx); return err },
		},
		"guest-network-get-interfaces": {
			`{"return": [{"ip-addresses": [{"prefix": 1e99}]}]}`,
			func(s *script) error { _, err := s.Interfaces(ctx); return err },
		},
		"guest-get-fsinfo": {
			`{"return": {}}`,
			func(s *script) error { _, err := s.Filesystems(ctx); return err },
		},
		"guest-fsfreeze-freeze": {
			`{"return": 99999999999}`,
			func(s *script) error { _, err := s.Freeze(ctx); return err },
		},
		"guest-fsfreeze-thaw": {
			`{"return": -1}`,
			func(s *script) error { _, err := s.Thaw(ctx); return err },
		},
		"guest-fsfreeze-status": {
			`{"return": 1}`,
			func(s *script) error { _, err := s.Frozen(ctx); return err },
		},
		"guest-fstrim": {
			`{"return": {"paths": [{"error": 7}]}}`,
			func(s *script) error { return s.Trim(ctx) },
		},
		"guest-exec": {
			`{"return": {}}`,
			func(s *script) error { _, err := s.Exec(ctx, Program{}, time.Second); return err },
		},
		"guest-file-open": {
			`{"return": 92233720368547758089}`,
			func(s *script) error { return s.ReadFile(ctx, "f", io.Discard, 1) },
		},
	} {
		s := play(t, answers(map[string]string{command: c.reply}))
		if err := c.ask(s); !errors.Is(err, ErrGarbage) {
			t.Errorf("%s: got %v for %s, want %v", command, err, c.reply, ErrGarbage)
		}
	}
}

func TestTrimFailsIfNothingWasTrimmed(t *testing.T) {
	t.Parallel()
	for paths, want := range map[string]string{
		``: "",
		`{"path": "/", "trimmed": 5}, {"path": "/b", "error": "no"}`:              "",
		`{"path": "/", "error": "not\nsupported"}, {"path": "/b", "error": "no"}`: "guest-fstrim: /: not supported; /b: no",
	} {
		reply := `{"return": {"paths": [` + paths + `]}}`
		err := play(t, answers(map[string]string{"guest-fstrim": reply})).Trim(t.Context())
		if got := fmt.Sprint(err); err == nil != (want == "") || err != nil && got != want {
			t.Errorf("%s: got %v, want %q", reply, err, want)
		}
	}
}

func TestAPasswordIsSentInBase64(t *testing.T) {
	t.Parallel()
	var got json.RawMessage
	s := play(t, func(n int, r request, w io.Writer) {
		got = r.Arguments
		io.WriteString(w, pong)
	})
	if err := s.SetPassword(t.Context(), "root", "gehéim"); err != nil {
		t.Fatal(err)
	}
	password := base64.StdEncoding.EncodeToString([]byte("gehéim"))
	if want := `{"username":"root","password":"` + password + `","crypted":false}`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestExecWaitsForTheEndOrItsTimeLimit(t *testing.T) {
	t.Parallel()
	const wantArgs = `{"path":"cat","arg":["-n"],"env":["A=b"],"input-data":"aGk=","capture-output":true}`
	polls := 0
	s := play(t, func(n int, r request, w io.Writer) {
		switch {
		case r.Execute == "guest-exec":
			if string(r.Arguments) != wantArgs {
				t.Errorf("got arguments %s, want %s", r.Arguments, wantArgs)
			}
			io.WriteString(w, `{"return": {"pid": 7}}`+"\n")
		case polls < 3:
			polls++
			io.WriteString(w, `{"return": {"exited": false}}`+"\n")
		default:
			io.WriteString(w, `{"return": {"exited": true, "signal": 9, "err-data": "aGk=", "err-truncated": true}}`+"\n")
		}
	})
	p := Program{Path: "cat", Args: []string{"-n"}, Env: []string{"A=b"}, Stdin: []byte("hi")}
	r, err := s.Exec(t.Context(), p, time.Minute)
	want := Result{Exited: true, Signal: 9, Stderr: []byte("hi"), Truncated: true}
	if err != nil || !reflect.DeepEqual(r, want) {
		t.Errorf("got %+v, %v; want %+v", r, err, want)
	}
	polls = -1 << 30
	begin := time.Now()
	r, err = s.Exec(t.Context(), p, 50*time.Millisecond)
	if took := time.Since(begin); err != nil || r.Exited || took > 2*time.Second {
		t.Errorf("got %+v, %v after %v", r, err, took)
	}
	if _, err = s.Exec(soon(t), p, time.Minute); err == nil {
		t.Error("Exec does not end with its context")
	}
}

func TestInvalidBase64IsGarbage(t *testing.T) {
	t.Parallel()
	s := play(t, answers(map[string]string{
		"guest-exec":        `{"return": {"pid": 1}}`,
		"guest-exec-status": `{"return": {"exited": true, "out-data": "a*b"}}`,
	}))
	_, err := s.Exec(t.Context(), Program{}, time.Minute)
	mustBe(t, err, ErrGarbage)
}

// files is a guest with one file. A command reads or writes at most step bytes of it.
type files struct {
	content []byte
	step    int
	at      int
	closed  int
}

func (f *files) play(n int, r request, w io.Writer) {
	var a struct {
		Count int    `json:"count"`
		Bytes []byte `json:"buf-b64"`
		Mode  string `json:"mode"`
	}
	_ = json.Unmarshal(r.Arguments, &a)
	switch r.Execute {
	case "guest-file-open":
		f.at = 0
		if a.Mode == "w" {
			f.content = nil
		}
		io.WriteString(w, `{"return": 1000}`+"\n")
	case "guest-file-read":
		b := f.content[f.at:min(f.at+min(a.Count, f.step), len(f.content))]
		f.at += len(b)
		eof := f.at == len(f.content)
		fmt.Fprintf(w, `{"return": {"count": %d, "buf-b64": "%s", "eof": %t}}`+"\n",
			len(b), base64.StdEncoding.EncodeToString(b), eof)
	case "guest-file-write":
		n := min(len(a.Bytes), f.step)
		f.content = append(f.content, a.Bytes[:n]...)
		fmt.Fprintf(w, `{"return": {"count": %d, "eof": false}}`+"\n", n)
	case "guest-file-close":
		f.closed++
		io.WriteString(w, pong)
	}
}

func TestFilesAreCopiedInChunksUpToTheLimit(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 3*chunk + 7} {
		for _, step := range []int{chunk, chunk/2 + 1} {
			t.Run(fmt.Sprintf("%d bytes in steps of %d", size, step), func(t *testing.T) {
				t.Parallel()
				testFileCopy(t, size, step)
			})
		}
	}
}

// testFileCopy writes and reads a file of size bytes, with the limit size, and then with
// a limit that is too low by one byte.
func testFileCopy(t *testing.T, size, step int) {
	f := &files{step: step}
	s := play(t, f.play)
	content := bytes.Repeat([]byte("0123456"), size/7+1)[:size]
	err := s.WriteFile(t.Context(), "/f", bytes.NewReader(content), int64(size))
	if err != nil || !bytes.Equal(f.content, content) {
		t.Fatalf("wrote %d of %d bytes: %v", len(f.content), size, err)
	}
	var got bytes.Buffer
	err = s.ReadFile(t.Context(), "/f", &got, int64(size))
	if err != nil || !bytes.Equal(got.Bytes(), content) {
		t.Fatalf("read %d of %d bytes: %v", got.Len(), size, err)
	}
	if size == 0 {
		return
	}
	got.Reset()
	mustBe(t, s.ReadFile(t.Context(), "/f", &got, int64(size-1)), ErrTooLarge)
	if got.Len() != size-1 {
		t.Errorf("read %d of %d bytes", got.Len(), size-1)
	}
	mustBe(t, s.WriteFile(t.Context(), "/f", bytes.NewReader(content), int64(size-1)), ErrTooLarge)
	if len(f.content) != size-1 || f.closed != 4 {
		t.Errorf("wrote %d of %d bytes; closed %d of 4 times", len(f.content), size-1, f.closed)
	}
}

// broken is a reader and writer that fails.
type broken struct{}

func (broken) Read([]byte) (int, error)  { return 0, io.ErrNoProgress }
func (broken) Write([]byte) (int, error) { return 0, io.ErrNoProgress }

func TestAFailedCopyClosesTheFile(t *testing.T) {
	t.Parallel()
	f := &files{step: 100, content: []byte("x")}
	s := play(t, f.play)
	mustBe(t, s.ReadFile(t.Context(), "/f", broken{}, 10), io.ErrNoProgress)
	mustBe(t, s.WriteFile(t.Context(), "/f", broken{}, 10), io.ErrNoProgress)
	if f.closed != 2 {
		t.Errorf("the file was closed %d times, want 2", f.closed)
	}
}

func TestInvalidRepliesOfFileCommandsAreGarbage(t *testing.T) {
	t.Parallel()
	long := base64.StdEncoding.EncodeToString(make([]byte, 300))
	for name, reply := range map[string]string{
		"no bytes, and no end":    `{"return": {"count": 0, "buf-b64": "", "eof": false}}`,
		"more than was requested": `{"return": {"count": 1, "buf-b64": "` + long + `", "eof": false}}`,
		"invalid base64":          `{"return": {"count": 1, "buf-b64": "*", "eof": false}}`,
	} {
		s := play(t, answers(map[string]string{"guest-file-open": `{"return": 5}`, "guest-file-read": reply}))
		if err := s.ReadFile(t.Context(), "/f", io.Discard, 100); !errors.Is(err, ErrGarbage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, reply := range []string{
		`{"return": {"count": 0}}`,
		`{"return": {"count": -1}}`,
		`{"return": {"count": 9}}`,
	} {
		s := play(t, answers(map[string]string{"guest-file-open": `{"return": 5}`, "guest-file-write": reply}))
		err := s.WriteFile(t.Context(), "/f", strings.NewReader("12345678"), 100)
		if !errors.Is(err, ErrGarbage) {
			t.Errorf("%s: %v", reply, err)
		}
	}
}

func TestExecFailsSoonAfterItsTimeLimitIfTheAgentFallsSilent(t *testing.T) {
	t.Parallel()
	for name, silentAt := range map[string]string{
		"at the start":      "guest-exec",
		"while it is asked": "guest-exec-status",
	} {
		s := play(t, func(n int, r request, w io.Writer) {
			if r.Execute != silentAt {
				io.WriteString(w, `{"return": {"pid": 7}}`+"\n")
			}
		})
		begin := time.Now()
		_, err := s.Exec(t.Context(), Program{}, 50*time.Millisecond)
		if took := time.Since(begin); !errors.Is(err, ErrSilent) || took > 5*time.Second {
			t.Errorf("%s: got %v after %v, want ErrSilent after about a second", name, err, took)
		}
	}
}
