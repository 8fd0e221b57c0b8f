package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// chunk is the size of reads and writes that measure throughput.
const chunk = 64 << 10

// services are the TCP services by port.
var services = map[string]func(net.Conn){
	"7":  echo,
	"9":  discard,
	"19": chargen,
	"80": web,
}

// serve serves echo (port 7, TCP and UDP), discard (9), chargen (19) and HTTP (80) on every
// address. It prints "ready" when all services listen.
func serve(ctx context.Context, args []string) error {
	if len(args) != 0 {
		return errors.New("usage: vmt serve")
	}
	failed := make(chan error, len(services)+1)
	var lc net.ListenConfig
	for port, answer := range services {
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("", port))
		if err != nil {
			return err
		}
		defer l.Close()
		go func() { failed <- accept(l, answer) }()
	}
	udp, err := lc.ListenPacket(ctx, "udp", ":7")
	if err != nil {
		return err
	}
	defer udp.Close()
	go func() { failed <- echoUDP(udp) }()
	fmt.Println("ready")
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

func accept(l net.Listener, answer func(net.Conn)) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		go func() {
			defer conn.Close()
			answer(conn)
		}()
	}
}

func echo(conn net.Conn) { _, _ = io.Copy(conn, conn) }

func echoUDP(conn net.PacketConn) error {
	buf := make([]byte, chunk)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("read from %s: %w", conn.LocalAddr(), err)
		}
		_, _ = conn.WriteTo(buf[:n], from) // best effort
	}
}

// discard answers with the number of received bytes at the end of the input.
func discard(conn net.Conn) {
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, chunk))
	if err == nil {
		fmt.Fprintln(conn, n)
	}
}

func chargen(conn net.Conn) {
	buf := make([]byte, chunk)
	for {
		if _, err := conn.Write(buf); err != nil {
			return
		}
	}
}

// web answers with the host name and the address of the client.
func web(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if strings.TrimSpace(line) == "" {
			break
		}
	}
	name, err := os.Hostname()
	if err != nil {
		name = "unknown"
	}
	peer, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return
	}
	body := fmt.Sprintf("%s sees %s\n", name, strings.TrimPrefix(peer, "::ffff:"))
	fmt.Fprintf(conn, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}
