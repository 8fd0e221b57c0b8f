package server

import (
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"vmand/openapi"
	"vmand/vm"
)

// Guests talks to the guests of running VMs through their agents.
type Guests interface {
	Agent(id string) vm.Agent
	Info(ctx context.Context, id string) (vm.GuestInfo, error)
	Exec(ctx context.Context, id string, c vm.GuestCommand) (vm.GuestResult, error)
	ReadFile(ctx context.Context, id, path string, w io.Writer) error
	WriteFile(ctx context.Context, id, path string, r io.Reader) error
	SetPassword(ctx context.Context, id, user, password string) error
	Trim(ctx context.Context, id string) error
}

const (
	// execTimeout is the default time to wait for the end of a program in a guest.
	execTimeout = 30 * time.Second
	// execSlack is the additional time for the guest to start the program and to send
	// its output.
	execSlack = 30 * time.Second
)

// GetGuest implements [openapi.StrictServerInterface].
func (s *Server) GetGuest(ctx context.Context, r openapi.GetGuestRequestObject) (openapi.Response, error) {
	g, err := s.Guests.Info(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return answer{status: http.StatusOK, body: apiGuest(&g)}, nil
}

func apiGuest(g *vm.GuestInfo) *openapi.Guest {
	out := &openapi.Guest{
		Hostname: optional(&g.Hostname),
		Os: openapi.GuestOS{
			ID:      optional(&g.OS.ID),
			Name:    optional(&g.OS.Name),
			Version: optional(&g.OS.Version),
			Kernel:  optional(&g.OS.Kernel),
			Machine: optional(&g.OS.Machine),
		},
		Interfaces:  make([]openapi.GuestInterface, len(g.Interfaces)),
		Filesystems: make([]openapi.GuestFilesystem, len(g.Filesystems)),
	}
	for i, n := range g.Interfaces {
		out.Interfaces[i] = openapi.GuestInterface{
			Name:      n.Name,
			MAC:       optional(&n.MAC),
			Addresses: make([]string, len(n.Addresses)),
		}
		for j, a := range n.Addresses {
			out.Interfaces[i].Addresses[j] = a.String()
		}
	}
	for i, f := range g.Filesystems {
		out.Filesystems[i] = openapi.GuestFilesystem{
			MountPoint: f.MountPoint,
			Type:       f.Type,
			Disks:      append([]string{}, f.Disks...),
		}
		if f.TotalBytes > 0 {
			out.Filesystems[i].UsedBytes, out.Filesystems[i].TotalBytes = &f.UsedBytes, &f.TotalBytes
		}
	}
	return out
}

// ExecCommand implements [openapi.StrictServerInterface].
func (s *Server) ExecCommand(ctx context.Context, r openapi.ExecCommandRequestObject) (openapi.Response, error) {
	c, err := guestCommand(r.Body)
	if err != nil {
		return nil, err
	}
	held, release, err := s.hold(ctx, c.Timeout+execSlack)
	if err != nil {
		return nil, err
	}
	defer release()
	result, err := s.Guests.Exec(held, r.ID, c)
	if err != nil {
		return nil, err
	}
	return answer{status: http.StatusOK, body: apiResult(&result)}, nil
}

// guestCommand converts a request to run a program.
func guestCommand(b *openapi.ExecRequest) (vm.GuestCommand, error) {
	c := vm.GuestCommand{Path: b.Command[0], Args: b.Command[1:], Stdin: []byte(value(b.Stdin)), Timeout: execTimeout}
	if b.TimeoutSeconds != nil {
		c.Timeout = time.Duration(*b.TimeoutSeconds) * time.Second
	}
	env := value(b.Env)
	for _, name := range sortedNames(env) {
		if strings.Contains(name, "=") {
			return c, invalid(vm.FieldFault{Field: "/env", Detail: "has a name that contains '='"})
		}
		c.Env = append(c.Env, name+"="+env[name])
	}
	if b.StdinBase64 == nil {
		return c, nil
	}
	if b.Stdin != nil {
		return c, invalid(vm.FieldFault{Field: "/stdin_base64", Detail: "must not be given together with stdin"})
	}
	var err error
	if c.Stdin, err = base64.StdEncoding.Strict().DecodeString(*b.StdinBase64); err != nil {
		return c, invalid(vm.FieldFault{Field: "/stdin_base64", Detail: "must be base64"})
	}
	return c, nil
}

func apiResult(r *vm.GuestResult) *openapi.ExecResult {
	out := &openapi.ExecResult{Exited: r.Exited, Truncated: r.Truncated}
	switch {
	case r.Exited && r.Signal != 0:
		out.Signal = &r.Signal
	case r.Exited:
		out.ExitCode = &r.ExitCode
	}
	out.Stdout, out.StdoutBase64 = textOrBase64(r.Stdout)
	out.Stderr, out.StderrBase64 = textOrBase64(r.Stderr)
	return out
}

// textOrBase64 returns b as text if it is valid UTF-8, else in base64.
func textOrBase64(b []byte) (text, encoded *string) {
	if utf8.Valid(b) {
		s := string(b)
		return &s, nil
	}
	s := base64.StdEncoding.EncodeToString(b)
	return nil, &s
}

// SetPassword implements [openapi.StrictServerInterface].
func (s *Server) SetPassword(ctx context.Context, r openapi.SetPasswordRequestObject) (openapi.Response, error) {
	if err := s.Guests.SetPassword(ctx, r.ID, r.Body.User, r.Body.Password); err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// TrimVM implements [openapi.StrictServerInterface].
func (s *Server) TrimVM(ctx context.Context, r openapi.TrimVMRequestObject) (openapi.Response, error) {
	if err := s.Guests.Trim(ctx, r.ID); err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// ReadFile implements [openapi.StrictServerInterface].
func (s *Server) ReadFile(ctx context.Context, r openapi.ReadFileRequestObject) (openapi.Response, error) {
	return guestFile{read: func(w io.Writer) error { return s.Guests.ReadFile(ctx, r.ID, r.Params.Path, w) }}, nil
}

// WriteFile implements [openapi.StrictServerInterface].
func (s *Server) WriteFile(ctx context.Context, r openapi.WriteFileRequestObject) (openapi.Response, error) {
	err := s.Guests.WriteFile(ctx, r.ID, r.Params.Path, r.Body)
	if body, ok := r.Body.(*streamedBody); ok && body.fault != nil {
		return nil, body.fault // more specific than err
	}
	if err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// A guestFile is the answer with a file of a guest. An error before the first byte is
// answered with a problem; a later error closes the connection.
type guestFile struct {
	read func(w io.Writer) error
}

// Respond implements [openapi.Response].
func (f guestFile) Respond(w http.ResponseWriter) error {
	out := &byteStream{w: w}
	if err := f.read(out); err != nil {
		return err
	}
	out.begin()
	return nil
}

// A byteStream sends bytes of unknown length. A client that does not read within
// sendTimeout is disconnected.
type byteStream struct {
	w     http.ResponseWriter
	begun bool
}

// begin sends the header, at the first call.
func (s *byteStream) begin() {
	if !s.begun {
		s.begun = true
		limitSending(s.w)
		s.w.Header().Set("Content-Type", bytesType)
		s.w.WriteHeader(http.StatusOK)
	}
}

func (s *byteStream) Write(p []byte) (int, error) {
	s.begin()
	limitSending(s.w)
	return s.w.Write(p)
}
