package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// send [-for DURATION] [-count N] INTERFACE sends the frames of its standard input, one a line
// in hexadecimal from the destination MAC address on, repeatedly up to the limits, or once
// without a limit. It prints the number of sent frames.
func send(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("send", flag.ContinueOnError)
	lasting := flags.Duration("for", 0, "how long to go on")
	count := flags.Int("count", 0, "how many to send")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("usage: vmt send [-for DURATION] [-count N] INTERFACE <FRAMES")
	}
	frames, err := readFrames()
	if err != nil {
		return err
	}
	fd, to, err := packetSocket(flags.Arg(0), 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if *lasting > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *lasting)
		defer cancel()
	}
	if *count == 0 && *lasting == 0 {
		*count = len(frames)
	}
	sent := 0
	for n := 0; ctx.Err() == nil && (*count == 0 || n < *count); n++ {
		err := unix.Sendto(fd, frames[n%len(frames)], 0, to)
		switch {
		case err == nil:
			sent++
		case *lasting == 0:
			return fmt.Errorf("send frame %d: %w", n, err)
		} // continue when the queue is full
	}
	fmt.Println(sent)
	return nil
}

func readFrames() ([][]byte, error) {
	var frames [][]byte
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		frame, err := hex.DecodeString(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("frame %d: %w", len(frames), err)
		}
		frames = append(frames, frame)
	}
	if len(frames) == 0 {
		return nil, errors.New("no frames on standard input")
	}
	return frames, lines.Err()
}

// packetSocket returns a socket that sends raw frames on an interface and, unless protocol is
// 0, receives the frames of the protocol.
func packetSocket(name string, protocol uint16) (int, *unix.SockaddrLinklayer, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return 0, nil, fmt.Errorf("interface %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("open a packet socket: %w", err)
	}
	address := &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: ifi.Index}
	if protocol != 0 {
		if err := unix.Bind(fd, address); err != nil {
			unix.Close(fd)
			return 0, nil, fmt.Errorf("bind to %s: %w", name, err)
		}
	}
	return fd, address, nil
}

// capture [-for DURATION] INTERFACE prints "capturing" and then each frame that arrives on an
// interface, in hexadecimal. It does not print outgoing frames.
func capture(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("capture", flag.ContinueOnError)
	lasting := flags.Duration("for", time.Hour, "how long to go on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("usage: vmt capture [-for DURATION] INTERFACE")
	}
	fd, _, err := packetSocket(flags.Arg(0), unix.ETH_P_ALL)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	poll := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &poll); err != nil {
		return fmt.Errorf("set the socket's timeout: %w", err)
	}
	// The kernel removes the VLAN tag from the frame and delivers it as auxiliary data.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return fmt.Errorf("enable VLAN tags: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, *lasting)
	defer cancel()
	fmt.Println("capturing")
	buf, oob := make([]byte, chunk), make([]byte, 256)
	for ctx.Err() == nil {
		n, oobn, _, from, err := unix.Recvmsg(fd, buf, oob, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			return fmt.Errorf("read from %s: %w", flags.Arg(0), err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		fmt.Println(hex.EncodeToString(withTag(buf[:n], oob[:oobn])))
	}
	return nil
}

// withTag returns a frame with its VLAN tag. The auxiliary data is struct tpacket_auxdata:
// status at offset 0, tag at 16, protocol at 18.
func withTag(frame, oob []byte) []byte {
	const macs, statusVLAN = 12, 1 << 4 // TP_STATUS_VLAN_VALID
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(frame) < macs {
		return frame
	}
	for _, m := range messages {
		d := m.Data
		if m.Header.Type != unix.PACKET_AUXDATA || len(d) < 20 || d[0]&statusVLAN == 0 {
			continue
		}
		tagged := append([]byte{}, frame[:macs]...)
		tagged = append(tagged, d[19], d[18], d[17], d[16]) // host order, little-endian
		return append(tagged, frame[macs:]...)
	}
	return frame
}
