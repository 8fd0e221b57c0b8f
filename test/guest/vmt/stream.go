package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// dialTimeout is the timeout for making a connection.
const dialTimeout = 10 * time.Second

// streamFlags parses the arguments of hold, push and pull.
func streamFlags(name string, args []string) (address string, lasting time.Duration, err error) {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.DurationVar(&lasting, "for", 5*time.Second, "how long to go on")
	if err := flags.Parse(args); err != nil {
		return "", 0, err
	}
	if flags.NArg() != 1 {
		return "", 0, fmt.Errorf("usage: vmt %s [-for DURATION] ADDRESS:PORT", name)
	}
	return flags.Arg(0), lasting, nil
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	return d.DialContext(ctx, "tcp", address)
}

// hold [-for DURATION] ADDRESS:PORT uses one connection to an echo service and prints the
// number of echoes and the longest time until one. It fails if the connection breaks, or if
// an echo is wrong or takes longer than 20 s.
func hold(ctx context.Context, args []string) error {
	address, lasting, err := streamFlags("hold", args)
	if err != nil {
		return err
	}
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	end := time.Now().Add(lasting)
	var longest time.Duration
	n := 0
	for ; ctx.Err() == nil && time.Now().Before(end); n++ {
		sent := time.Now()
		_ = conn.SetDeadline(sent.Add(20 * time.Second))
		line := fmt.Sprintf("line %d\n", n)
		if _, err := io.WriteString(conn, line); err != nil {
			return fmt.Errorf("after %d echoes: %w", n, err)
		}
		got, err := in.ReadString('\n')
		if err != nil {
			return fmt.Errorf("after %d echoes: %w", n, err)
		}
		if got != line {
			return fmt.Errorf("after %d echoes: sent %q, got %q", n, line, got)
		}
		longest = max(longest, time.Since(sent))
		pause(ctx, 20*time.Millisecond)
	}
	fmt.Printf("echoes=%d longest_ms=%d\n", n, longest.Milliseconds())
	return nil
}

// push [-for DURATION] ADDRESS:PORT sends to a discard service and prints the rate at which
// the service received the data, in kbit/s.
func push(ctx context.Context, args []string) error {
	address, lasting, err := streamFlags("push", args)
	if err != nil {
		return err
	}
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	start := time.Now()
	buf := make([]byte, chunk)
	for ctx.Err() == nil && time.Since(start) < lasting {
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Write(buf); err != nil {
			return err
		}
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return errors.New("not a TCP connection")
	}
	if err := tcp.CloseWrite(); err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	text, err := io.ReadAll(conn)
	if err != nil {
		return fmt.Errorf("wait for the number of bytes: %w", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return fmt.Errorf("parse the number of bytes: %w", err)
	}
	fmt.Println(kbits(n, time.Since(start)))
	return nil
}

// pull [-for DURATION] ADDRESS:PORT reads from a chargen service and prints the rate in kbit/s.
func pull(ctx context.Context, args []string) error {
	address, lasting, err := streamFlags("pull", args)
	if err != nil {
		return err
	}
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	start := time.Now()
	buf := make([]byte, chunk)
	total := int64(0)
	for ctx.Err() == nil && time.Since(start) < lasting {
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		n, err := conn.Read(buf)
		total += int64(n)
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", total, err)
		}
	}
	fmt.Println(kbits(total, time.Since(start)))
	return nil
}

func kbits(bytes int64, in time.Duration) int64 {
	return int64(float64(bytes) * 8 / 1000 / in.Seconds())
}
