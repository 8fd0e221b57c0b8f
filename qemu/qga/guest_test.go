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

// answers returns a player with one reply for each command.
func answers(replies map[string]string) player {
	return func(n int, r request, w io.Writer) {
		said, ok := replies[r.Execute]
		if !ok {
			said = `{"error": {"class": "CommandNotFound", "desc": "The command ` + r.Execute + ` has not been found"}}`
		}
		io.WriteString(w, strings.ReplaceAll(said, "\n", " ")+"\n")
	}
}

func TestWhatAGuestSaysIsCleanedAndParsed(t *testing.T) {
	s := play(t, answers(map[string]string{
		"guest-info": `{"return": {"version": "7.2.22\u0000", "supported_commands": [{"enabled": true, "name": "guest-exec", "success-response": true},
			{"enabled": false, "name": "guest-fstrim"}, {"name": "\u0001"}]}}`,
		"guest-get-host-name": `{"return": {"host-name": " web\n1\u202e` + strings.Repeat("x", 300) + `"}}`,
		"guest-get-osinfo":    `{"return": {"id": "debian", "pretty-name": "Debian \ud800GNU", "version-id": "12", "kernel-release": "6.1", "machine": "x86_64"}}`,
		"guest-network-get-interfaces": `{"return": [{"name": "eth0", "hardware-address": "52:54:00:AA:00:01", "ip-addresses": [
			{"ip-address": "10.0.0.5", "prefix": 24, "ip-address-type": "ipv4"}, {"ip-address": "10.0.0.6", "prefix": 33}, {"ip-address": "ten", "prefix": 8},
			{"ip-address": "fe80::1%eth0", "prefix": 64}, {"ip-address": "::1", "prefix": -1}]}, {"name": "\u0007"}, {"name": "lo", "hardware-address": "nonsense"}]}`,
		"guest-get-fsinfo": `{"return": [{"name": "vda1", "mountpoint": "/", "type": "ext4", "used-bytes": 18446744073709551615, "total-bytes": 1e400,
			"disk": [{"serial": "data-1"}, {}]}, {"mountpoint": "/b", "type": "vfat", "used-bytes": 5, "total-bytes": 7}, {"mountpoint": "/c", "used-bytes": "five"}]}`,
	}))
	for _, test := range []struct {
		ask  func() (any, error)
		want any
	}{
		{func() (any, error) { return s.Info(t.Context()) }, Info{"7.2.22", map[string]bool{"guest-exec": true, "guest-fstrim": false}}},
		{func() (any, error) { return s.Hostname(t.Context()) }, "web 1" + strings.Repeat("x", 249)},
		{func() (any, error) { return s.OS(t.Context()) }, OS{ID: "debian", Name: "Debian GNU", Version: "12", Kernel: "6.1", Machine: "x86_64"}},
		{func() (any, error) { return s.Interfaces(t.Context()) }, []Interface{
			{Name: "eth0", MAC: "52:54:00:aa:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.5/24"), netip.MustParsePrefix("fe80::1/64")}},
			{Name: "lo"}}},
		{func() (any, error) { return s.Filesystems(t.Context()) }, []Filesystem{
			{MountPoint: "/", Type: "ext4", Disks: []string{"data-1"}}, {MountPoint: "/b", Type: "vfat", UsedBytes: 5, TotalBytes: 7}, {MountPoint: "/c"}}},
	} {
		got, err := test.ask()
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("got %+v, %v; want %+v", got, err, test.want)
		}
	}
}

func TestListsOfAGuestAreBounded(t *testing.T) {
	one := `{"name": "e", "ip-addresses": [` + strings.TrimSuffix(strings.Repeat(`{"ip-address": "::1", "prefix": 1},`, maxAddresses+1), ",") + `]}`
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

func TestRepliesOfTheWrongKindAreGarbage(t *testing.T) {
	for command, said := range map[string]string{
		"guest-info":                   `{"return": 7}`,
		"guest-get-host-name":          `{"return": {"host-name": 7}}`,
		"guest-get-osinfo":             `{"return": []}`,
		"guest-network-get-interfaces": `{"return": [{"ip-addresses": [{"prefix": 1e99}]}]}`,
		"guest-get-fsinfo":             `{"return": {}}`,
		"guest-fsfreeze-freeze":        `{"return": 99999999999}`,
		"guest-fsfreeze-thaw":          `{"return": -1}`,
		"guest-fsfreeze-status":        `{"return": 1}`,
		"guest-fstrim":                 `{"return": {"paths": [{"error": 7}]}}`,
		"guest-exec":                   `{"return": {}}`,
		"guest-file-open":              `{"return": 92233720368547758089}`,
	} {
		s := play(t, answers(map[string]string{command: said}))
		ask := map[string]func() error{
			"guest-info":                   func() error { _, err := s.Info(t.Context()); return err },
			"guest-get-host-name":          func() error { _, err := s.Hostname(t.Context()); return err },
			"guest-get-osinfo":             func() error { _, err := s.OS(t.Context()); return err },
			"guest-network-get-interfaces": func() error { _, err := s.Interfaces(t.Context()); return err },
			"guest-get-fsinfo":             func() error { _, err := s.Filesystems(t.Context()); return err },
			"guest-fsfreeze-freeze":        func() error { _, err := s.Freeze(t.Context()); return err },
			"guest-fsfreeze-thaw":          func() error { _, err := s.Thaw(t.Context()); return err },
			"guest-fsfreeze-status":        func() error { _, err := s.Frozen(t.Context()); return err },
			"guest-fstrim":                 func() error { return s.Trim(t.Context()) },
			"guest-exec":                   func() error { _, err := s.Exec(t.Context(), Program{}, time.Second); return err },
			"guest-file-open":              func() error { return s.ReadFile(t.Context(), "f", io.Discard, 1) },
		}[command]
		if err := ask(); !errors.Is(err, ErrGarbage) {
			t.Errorf("%s: %s is taken: %v", command, said, err)
		}
	}
}

func TestTrimFailsIfNothingCouldBeTrimmed(t *testing.T) {
	for said, want := range map[string]string{
		`{"return": {"paths": []}}`: "",
		`{"return": {"paths": [{"path": "/", "trimmed": 5}, {"path": "/b", "error": "no"}]}}`:              "",
		`{"return": {"paths": [{"path": "/", "error": "not\nsupported"}, {"path": "/b", "error": "no"}]}}`: "guest-fstrim: /: not supported; /b: no",
	} {
		err := play(t, answers(map[string]string{"guest-fstrim": said})).Trim(t.Context())
		if got := fmt.Sprint(err); err == nil != (want == "") || err != nil && got != want {
			t.Errorf("%s: got %v", said, err)
		}
	}
}

func TestAPasswordIsSentInBase64(t *testing.T) {
	var got json.RawMessage
	s := play(t, func(n int, r request, w io.Writer) {
		got = r.Arguments
		io.WriteString(w, pong)
	})
	if err := s.SetPassword(t.Context(), "root", "gehéim"); err != nil {
		t.Fatal(err)
	}
	if want := `{"username":"root","password":"` + base64.StdEncoding.EncodeToString([]byte("gehéim")) + `","crypted":false}`; string(got) != want {
		t.Errorf("got %s", got)
	}
}

func TestExecWaitsForTheEndOrItsTimeLimit(t *testing.T) {
	polls := 0
	s := play(t, func(n int, r request, w io.Writer) {
		switch {
		case r.Execute == "guest-exec":
			if want := `{"path":"cat","arg":["-n"],"env":["A=b"],"input-data":"aGk=","capture-output":true}`; string(r.Arguments) != want {
				t.Errorf("asked for %s", r.Arguments)
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
	if want := (Result{Exited: true, Signal: 9, Stderr: []byte("hi"), Truncated: true}); err != nil || !reflect.DeepEqual(r, want) {
		t.Errorf("got %+v, %v", r, err)
	}
	polls = -1 << 30
	begin := time.Now()
	if r, err := s.Exec(t.Context(), p, 50*time.Millisecond); err != nil || r.Exited || time.Since(begin) > 2*time.Second {
		t.Errorf("got %+v, %v after %v", r, err, time.Since(begin))
	}
	_, err = s.Exec(soon(t), p, time.Minute)
	if err == nil {
		t.Error("the context does not end it")
	}
}

func TestInvalidBase64IsGarbage(t *testing.T) {
	s := play(t, answers(map[string]string{"guest-exec": `{"return": {"pid": 1}}`, "guest-exec-status": `{"return": {"exited": true, "out-data": "a*b"}}`}))
	_, err := s.Exec(t.Context(), Program{}, time.Minute)
	mustBe(t, err, ErrGarbage)
}

// files is a guest that has one file and takes at most some bytes at a time.
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
		fmt.Fprintf(w, `{"return": {"count": %d, "buf-b64": "%s", "eof": %t}}`+"\n", len(b), base64.StdEncoding.EncodeToString(b), f.at == len(f.content))
	case "guest-file-write":
		n := min(len(a.Bytes), f.step)
		f.content = append(f.content, a.Bytes[:n]...)
		fmt.Fprintf(w, `{"return": {"count": %d, "eof": false}}`+"\n", n)
	case "guest-file-close":
		f.closed++
		io.WriteString(w, pong)
	}
}

func TestFilesAreCopiedInChunksWithinTheirLimit(t *testing.T) {
	for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 3*chunk + 7} {
		for _, step := range []int{chunk, chunk/2 + 1} {
			f := &files{step: step}
			s := play(t, f.play)
			content := bytes.Repeat([]byte("0123456"), size/7+1)[:size]
			if err := s.WriteFile(t.Context(), "/f", bytes.NewReader(content), int64(size)); err != nil || !bytes.Equal(f.content, content) {
				t.Fatalf("wrote %d of %d bytes: %v", len(f.content), size, err)
			}
			var got bytes.Buffer
			if err := s.ReadFile(t.Context(), "/f", &got, int64(size)); err != nil || !bytes.Equal(got.Bytes(), content) {
				t.Fatalf("read %d of %d bytes: %v", got.Len(), size, err)
			}
			if size == 0 {
				continue
			}
			got.Reset()
			mustBe(t, s.ReadFile(t.Context(), "/f", &got, int64(size-1)), ErrTooLarge)
			if got.Len() != size-1 {
				t.Errorf("%d bytes of %d were read", got.Len(), size-1)
			}
			mustBe(t, s.WriteFile(t.Context(), "/f", bytes.NewReader(content), int64(size-1)), ErrTooLarge)
			if len(f.content) != size-1 || f.closed != 4 {
				t.Errorf("%d bytes of %d were written; closed %d times of 4", len(f.content), size-1, f.closed)
			}
		}
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error)  { return 0, io.ErrNoProgress }
func (broken) Write([]byte) (int, error) { return 0, io.ErrNoProgress }

func TestACopyThatFailsClosesTheFile(t *testing.T) {
	f := &files{step: 100, content: []byte("x")}
	s := play(t, f.play)
	mustBe(t, s.ReadFile(t.Context(), "/f", broken{}, 10), io.ErrNoProgress)
	mustBe(t, s.WriteFile(t.Context(), "/f", broken{}, 10), io.ErrNoProgress)
	if f.closed != 2 {
		t.Errorf("closed %d times", f.closed)
	}
}

func TestAGuestThatLiesAboutItsFileIsFound(t *testing.T) {
	long := base64.StdEncoding.EncodeToString(make([]byte, 300))
	for name, said := range map[string]string{
		"nothing, and no end": `{"return": {"count": 0, "buf-b64": "", "eof": false}}`,
		"more than was asked": `{"return": {"count": 1, "buf-b64": "` + long + `", "eof": false}}`,
		"no base64":           `{"return": {"count": 1, "buf-b64": "*", "eof": false}}`,
	} {
		s := play(t, answers(map[string]string{"guest-file-open": `{"return": 5}`, "guest-file-read": said}))
		if err := s.ReadFile(t.Context(), "/f", io.Discard, 100); !errors.Is(err, ErrGarbage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, said := range []string{`{"return": {"count": 0}}`, `{"return": {"count": -1}}`, `{"return": {"count": 9}}`} {
		s := play(t, answers(map[string]string{"guest-file-open": `{"return": 5}`, "guest-file-write": said}))
		if err := s.WriteFile(t.Context(), "/f", strings.NewReader("12345678"), 100); !errors.Is(err, ErrGarbage) {
			t.Errorf("%s: %v", said, err)
		}
	}
}
