package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	consoleCommand = "console"
	// systemSocket is where the host's vmand listens, for whoever has none of
	// their own.
	systemSocket = "/run/vman/vmand.sock"
	// consoleAnswer is how long vmand may take to answer.
	consoleAnswer = 30 * time.Second
	// maxProblem is how many bytes of an answer that is no console are read.
	maxProblem = 64 << 10
)

// consoleFlags are what vmand console can be told.
type consoleFlags struct {
	readOnly, takeOver bool
}

// standard are the files that a client reads from and writes to.
type standard struct {
	in, out *os.File
	err     io.Writer
}

// console connects the standard files to the serial console of a VM. It returns
// when the console ends, when the user says so, or when ctx is done. A terminal
// is in raw mode meanwhile, and as it was afterwards.
func console(ctx context.Context, cfg Config, id string, f consoleFlags, std standard) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("console of vm %s: %w", id, err)
		}
	}()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	conn, fromGuest, err := dialConsole(ctx, cfg.Socket, id, f)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := relay{std: std, fromGuest: fromGuest, toGuest: conn, restore: func() {}, over: make(chan error, 2)}
	if isTerminal(std.in) && !f.readOnly {
		if r.restore, err = makeRaw(std.in); err != nil {
			return fmt.Errorf("set up the terminal: %w", err)
		}
		defer r.restore()
		r.keys = &escapes{lineStart: true}
		r.say("connected to the console of vm " + id + "; Enter ~ . ends, Enter ~ ? helps")
	}
	go r.show()
	if !f.readOnly {
		go r.send()
	}
	select {
	case err = <-r.over:
	case <-ctx.Done(): // told to end: that is no failure
	}
	r.say("the console is left")
	return err
}

// dialConsole asks the vmand at a socket for the console of a VM. What comes from
// it is to be read from the reader.
func dialConsole(ctx context.Context, socket, id string, f consoleFlags) (net.Conn, io.Reader, error) {
	conn, err := dialSocket(ctx, socket)
	if err != nil {
		return nil, nil, err
	}
	hangUp := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	r, err := upgrade(conn, id, f)
	if !hangUp() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, r, nil
}

func dialSocket(ctx context.Context, socket string) (net.Conn, error) {
	if socket == "" {
		return nil, errors.New("the configuration says that vmand has no socket: name one with --socket")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if errors.Is(err, fs.ErrNotExist) && os.Geteuid() != 0 {
		if other, err := d.DialContext(ctx, "unix", systemSocket); err == nil {
			return other, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w; does vmand run, and is this its socket (--socket)?", err)
	}
	return conn, nil
}

// upgrade makes a connection to vmand one to a console.
func upgrade(conn net.Conn, id string, f consoleFlags) (io.Reader, error) {
	query := url.Values{}
	if !f.readOnly {
		query.Set("write", "true")
	}
	if f.takeOver {
		query.Set("take_over", "true")
	}
	target := url.URL{Scheme: "http", Host: "localhost", Path: "/vms/" + id + "/console", RawPath: "/vms/" + url.PathEscape(id) + "/console", RawQuery: query.Encode()}
	request, err := http.NewRequest(http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", "vman-console")
	if err := conn.SetDeadline(time.Now().Add(consoleAnswer)); err != nil {
		return nil, err
	}
	if err := request.Write(conn); err != nil {
		return nil, fmt.Errorf("ask vmand: %w", err)
	}
	r := bufio.NewReader(conn)
	answer, err := http.ReadResponse(r, request)
	if err != nil {
		return nil, fmt.Errorf("read vmand's answer: %w", err)
	}
	if answer.StatusCode == http.StatusSwitchingProtocols {
		return r, conn.SetDeadline(time.Time{})
	}
	defer answer.Body.Close()
	var problem struct{ Title, Detail, Hint, Code string }
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxProblem)).Decode(&problem); err != nil {
		return nil, fmt.Errorf("vmand answers %s", answer.Status)
	}
	if problem.Code == "busy" {
		problem.Hint = "use --take-over or --read-only"
	}
	words := cmp.Or(problem.Detail, problem.Title, answer.Status)
	if problem.Hint != "" {
		words += "; " + problem.Hint
	}
	return nil, errors.New(words)
}

// relay passes on bytes between the standard files and a console.
type relay struct {
	std       standard
	fromGuest io.Reader
	toGuest   io.Writer
	keys      *escapes   // nil if what is typed is passed on as it is
	restore   func()     // gives the terminal back
	over      chan error // gets why it is over, from either direction
}

// show passes on what the guest prints, to its end.
func (r *relay) show() {
	defer r.restoreIfPanicking()
	_, err := io.Copy(struct{ io.Writer }{r.std.out}, r.fromGuest)
	r.over <- err
}

// send passes on what is typed, until the user wants to leave. The end of what is
// no terminal is not the end of the console: its answer may still come.
func (r *relay) send() {
	defer r.restoreIfPanicking()
	buf := make([]byte, 4096)
	for {
		n, err := r.std.in.Read(buf)
		typed, leave := buf[:n], false
		if r.keys != nil {
			typed, leave = r.translate(typed)
		}
		if len(typed) > 0 {
			if _, err := r.toGuest.Write(typed); err != nil {
				return // show says why
			}
		}
		switch {
		case leave, err != nil && r.keys != nil:
			r.over <- nil
			return
		case err == io.EOF:
			return
		case err != nil:
			r.over <- err
			return
		}
	}
}

// translate carries out the escapes in what is typed and returns the rest.
func (r *relay) translate(typed []byte) (rest []byte, leave bool) {
	for _, key := range typed {
		send, act := r.keys.next(key)
		rest = append(rest, send...)
		switch act {
		case escapeLeave:
			return rest, true
		case escapeHelp:
			r.say(escapeWords)
		}
	}
	return rest, false
}

// say tells the user something, if that is not in the way of a program.
func (r *relay) say(words string) {
	if r.keys != nil {
		fmt.Fprintf(r.std.err, "\r\n[%s]\r\n", strings.ReplaceAll(words, "\n", "\r\n"))
	}
}

func (r *relay) restoreIfPanicking() {
	if p := recover(); p != nil {
		r.restore()
		panic(p)
	}
}
