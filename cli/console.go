package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"vmand/openapi/client"
)

const (
	// systemSocket is the socket of the daemon that runs as root, used if the
	// user has no daemon.
	systemSocket = "/run/vman/vmand.sock"
	// upgradeTimeout limits how long the daemon may take to answer the request
	// for a console.
	upgradeTimeout = 30 * time.Second
	// maxProblem is how many bytes of an error answer are read.
	maxProblem = 64 << 10
)

// console connects the standard streams to the serial console of a VM. It returns
// when the console ends, when the user closes it, or when ctx is done. If standard
// input is a terminal, it is in raw mode meanwhile and restored afterwards.
func console(ctx context.Context, d consoleDialer, id string, f ConsoleFlags, std Streams) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	conn, fromGuest, err := dialConsole(ctx, d, id, f)
	if err != nil {
		return err
	}
	defer conn.Close()

	r := relay{
		std:       std,
		fromGuest: fromGuest,
		toGuest:   conn,
		restore:   func() {},
		over:      make(chan error, 2),
	}
	if fd := int(std.In.Fd()); term.IsTerminal(fd) && !f.ReadOnly {
		was, err := term.MakeRaw(fd)
		if err != nil {
			return fmt.Errorf("set up the terminal: %w", err)
		}
		r.restore = func() { _ = term.Restore(fd, was) }
		defer r.restore()
		r.keys = &escapes{lineStart: true}
		r.say("connected to the console of VM " + id + "; Enter ~ . closes it, Enter ~ ? shows help")
	}
	go r.show()
	if !f.ReadOnly {
		go r.send()
	}
	select {
	case err = <-r.over:
	case <-ctx.Done(): // a signal ends the console; that is not an error
	}
	r.say("console closed")
	return err
}

// A consoleDialer connects to a daemon and prepares requests for it.
type consoleDialer struct {
	dial    func(context.Context) (net.Conn, error)
	prepare func(*http.Request)
}

// consoleOf connects to the daemon of an endpoint.
func consoleOf(e *endpoint, version string) consoleDialer {
	dial := func(ctx context.Context) (net.Conn, error) {
		conn, err := e.open(ctx)
		return conn, explain(ctx, err)
	}
	return consoleDialer{dial: dial, prepare: func(r *http.Request) { e.address(r, version) }}
}

var errNoSocket = errors.New("the daemon has no unix socket in this configuration: set --socket")

// consoleOfSocket connects to the daemon of this host, for the command vmand console.
func consoleOfSocket(socket string) consoleDialer {
	dial := func(ctx context.Context) (net.Conn, error) {
		if socket == "" {
			return nil, errNoSocket
		}
		conn, err := dialUnix(ctx, socket, os.Geteuid() != 0)
		if err != nil {
			return nil, fmt.Errorf("%w; is vmand running, and is this its socket (--socket)?", err)
		}
		return conn, nil
	}
	return consoleDialer{dial: dial, prepare: func(*http.Request) {}}
}

// dialConsole connects to the console of a VM. The output of the guest must be read from
// the reader, not from the connection.
func dialConsole(ctx context.Context, d consoleDialer, id string, f ConsoleFlags) (net.Conn, io.Reader, error) {
	conn, err := d.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	watch := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	r, err := d.upgrade(conn, id, f)
	if !watch() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, r, nil
}

// upgrade turns a connection to the daemon into a connection to a console.
func (d consoleDialer) upgrade(conn net.Conn, id string, f ConsoleFlags) (io.Reader, error) {
	params := client.OpenConsoleParams{}
	if !f.ReadOnly {
		params.Write = new(true)
	}
	if f.TakeOver {
		params.TakeOver = new(true)
	}
	request, err := client.NewOpenConsoleRequest("http://localhost", id, &params)
	if err != nil {
		return nil, err
	}
	d.prepare(request)
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", "vman-console")
	if err := conn.SetDeadline(time.Now().Add(upgradeTimeout)); err != nil {
		return nil, err
	}
	if err := request.Write(conn); err != nil {
		return nil, fmt.Errorf("send the request to vmand: %w", err)
	}
	r := bufio.NewReader(conn)
	answer, err := http.ReadResponse(r, request)
	if err != nil {
		return nil, fmt.Errorf("read the answer of vmand: %w", err)
	}
	if answer.StatusCode == http.StatusSwitchingProtocols {
		return r, conn.SetDeadline(time.Time{})
	}
	defer answer.Body.Close()
	return nil, refusal(answer)
}

// refusal returns the problem in an answer of the daemon as an error.
func refusal(answer *http.Response) error {
	err := problemOf(answer)
	var f *failure
	if errors.As(err, &f) && f.code == client.ProblemCodeBusy {
		f.more = nil
		f.hint("use --take-over or --read-only")
	}
	return err
}
