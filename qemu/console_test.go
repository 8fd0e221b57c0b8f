package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmand/vm"
)

// readLines reads numbered lines to the end of a stream, which may begin within a
// line. It returns the numbers of the first and the last line, and an error if a
// number is missing.
func readLines(r io.Reader, at *atomic.Int64) (first, last int64, err error) {
	b := bufio.NewReaderSize(r, 4096)
	if _, err := b.ReadString('\n'); err != nil {
		return 0, 0, err
	}
	for {
		line, err := b.ReadString('\n')
		if err == io.EOF && line == "" {
			return first, last, nil
		}
		if err != nil {
			return first, last, fmt.Errorf("after line %d: %w", last, err)
		}
		number, isLine := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "line ")
		n, err := strconv.ParseInt(number, 10, 64)
		if !isLine || err != nil || last != 0 && n != last+1 {
			return first, last, fmt.Errorf("after line %d there is %q", last, line)
		}
		if first == 0 {
			first = n
		}
		last = n
		at.Store(n)
	}
}

func TestEveryReaderSeesAnUnbrokenStream(t *testing.T) {
	const readers, lines = 20, 100_000
	f := newFakeSerial(t, tempDir(t))
	limits := smallLimits
	limits.most, limits.keep = 512<<10, 256<<10
	const ahead = 10_000 // lines of at most 12 bytes that the guest may be ahead of a reader
	h, end := f.connect(limits)
	f.print([]byte("the guest begins\n"))
	var all sync.WaitGroup
	var at [readers]atomic.Int64 // the last line that each reader has read
	join := func(i int, now int64) {
		at[i].Store(now)
		c, err := h.join(vm.ConsoleOptions{Scrollback: rand.Int64N(100_000)})
		must(t, err)
		all.Go(func() {
			defer c.Close()
			if first, last, err := readLines(c, &at[i]); last != lines || err != nil {
				t.Errorf("reader %d sees lines %d to %d, %v", i, first, last, err)
			}
			at[i].Store(lines) // the writer waits for it no longer
		})
	}
	joined, next := 0, rand.Int64N(2*lines/readers) // the line at which the next reader joins
	for n := int64(1); n <= lines; {
		var p []byte
		for range min(1+rand.Int64N(100), lines-n+1) {
			p = fmt.Appendf(p, "line %d\n", n)
			n++
		}
		f.print(p)
		if joined < readers && n > next {
			join(joined, n)
			joined++
			next = n + rand.Int64N(2*(lines-n)/(readers-int64(joined)+1)+1)
		}
		for i := range joined {
			for at[i].Load() < n-ahead {
				runtime.Gosched()
			}
		}
	}
	for ; joined < readers; joined++ {
		join(joined, lines)
	}
	h.awaitEnd(t, h.sizeNow(t))
	end(io.EOF)
	all.Wait()
	if begin, _ := h.bounds(); begin == 0 {
		t.Error("the log was never cut")
	}
}

func (h *serialHub) sizeNow(t testing.TB) int64 {
	t.Helper()
	st, err := h.state.Stat(vmSerialLog(h.id))
	must(t, err)
	return st.Size()
}

func TestSlowReaderIsDisconnected(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	h, _ := f.connect(smallLimits)
	slow, err := h.join(vm.ConsoleOptions{})
	must(t, err)
	defer slow.Close()
	f.print(letters(0, 60_000))
	buf := make([]byte, 100)
	n, err := io.ReadFull(slow, buf)
	if err != nil || !bytes.Equal(buf, letters(0, 100)) {
		t.Errorf("the slow reader first reads %q, %v", buf[:n], err)
	}
	f.print(letters(60_000, 60_000))
	await(t, "the log is cut", func() bool { begin, _ := h.bounds(); return begin > 100 }) // slow follows it
	_, err = slow.Read(buf)
	mustFail(t, err, vm.CodeUnavailable)
}

func TestNoOutputIsLostWhileVmandIsDown(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	h, end := f.connect(usualLimits)
	f.print(letters(0, 10_000))
	c, err := h.join(vm.ConsoleOptions{Scrollback: 1 << 40})
	must(t, err)
	defer c.Close()
	end(errEnding)
	got, err := io.ReadAll(c)
	mustFail(t, err, vm.CodeUnavailable)
	if !bytes.Equal(got, letters(0, 10_000)) {
		t.Errorf("the reader gets %d bytes", len(got))
	}
	f.print(letters(10_000, 10_000))
	h, end = f.connect(usualLimits)
	f.print(letters(20_000, 10_000))
	if c, err = h.join(vm.ConsoleOptions{Scrollback: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f.print(letters(30_000, 10_000))
	h.awaitEnd(t, 40_000)
	end(io.EOF)
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, letters(0, 40_000)) {
		t.Errorf("there are %d bytes, %v", len(got), err)
	}
	_, err = h.join(vm.ConsoleOptions{})
	mustFail(t, err, vm.CodeState)
}

func TestOneConnectionTypesAtATime(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	limits := smallLimits
	limits.patience = time.Minute
	h, _ := f.connect(limits)
	join := func(o vm.ConsoleOptions) *console {
		t.Helper()
		c, err := h.join(o)
		must(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	types := func(c *console, word string) {
		t.Helper()
		if n, err := io.WriteString(c, word); n != len(word) || err != nil {
			t.Errorf("%d bytes are typed, %v", n, err)
		}
		f.reads(word)
	}
	reader, first := join(vm.ConsoleOptions{}), join(vm.ConsoleOptions{Write: true})
	types(first, "one")
	_, err := reader.Write([]byte("no"))
	mustFail(t, err, vm.CodeState)
	_, err = h.join(vm.ConsoleOptions{Write: true})
	mustFail(t, err, vm.CodeBusy)
	second := join(vm.ConsoleOptions{Write: true, TakeOver: true})
	types(second, "two")
	_, err = first.Write([]byte("no"))
	mustFail(t, err, vm.CodeState)
	first.Close()
	types(second, "still two")
	f.print([]byte("hello"))
	buf := make([]byte, 5)
	if _, err := io.ReadFull(reader, buf); err != nil || string(buf) != "hello" {
		t.Errorf("the reader reads %q, %v", buf, err)
	}
	second.Close()
	third := join(vm.ConsoleOptions{Write: true})
	types(third, "three")

	stuck := make(chan error)
	go func() {
		_, err := third.Write(make([]byte, 1<<20)) // the guest does not read it
		stuck <- err
	}()
	fourth := join(vm.ConsoleOptions{Write: true, TakeOver: true})
	mustFail(t, <-stuck, vm.CodeState)
	fourth.Close()
	if _, err := fourth.Write([]byte("no")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection types: %v", err)
	}
	if _, err := fourth.Read(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection reads: %v", err)
	}
}

func TestAGuestThatDoesNotReadBlocksNoOtherConnection(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	h, end := f.connect(smallLimits)
	c, err := h.join(vm.ConsoleOptions{Write: true})
	must(t, err)
	defer c.Close()
	n, err := c.Write(make([]byte, 1<<20))
	mustFail(t, err, vm.CodeUnavailable)
	if n == 0 || n > 64<<10 {
		t.Errorf("%d bytes are buffered", n)
	}
	f.print([]byte("alive"))
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "alive" {
		t.Errorf("the guest reads %q, %v", buf, err)
	}
	end(io.EOF)
	if _, err := c.Read(buf); err != io.EOF {
		t.Errorf("at the end the reader gets %v", err)
	}
	_, err = c.Write([]byte("no"))
	mustFail(t, err, vm.CodeState)
}

func TestInputToADeadGuestFails(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	h, _ := f.connect(smallLimits)
	c, err := h.join(vm.ConsoleOptions{Write: true})
	must(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "one")
	must(t, err)
	f.reads("one")
	must(t, f.line.Close()) // QEMU has ended, and vmand has not noticed yet
	for range 2 {
		_, err = io.WriteString(c, "no")
		mustFail(t, err, vm.CodeUnavailable)
	}
}

func TestCloseWakesReaders(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	h, _ := f.connect(smallLimits)
	c, err := h.join(vm.ConsoleOptions{})
	must(t, err)
	read := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	await(t, "the reader waits", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.changed != nil })
	must(t, c.Close())
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestAGuestAnswersItsInput(t *testing.T) {
	h := newHost(t)
	_, err := h.Console(t.Context(), "web", vm.ConsoleOptions{})
	mustFail(t, err, vm.CodeState)
	h.start("web", guestEchoes)
	c, err := h.Console(t.Context(), "web", vm.ConsoleOptions{Write: true})
	must(t, err)
	defer c.Close()
	// The BIOS may consume the input before the guest runs.
	await(t, "the guest runs", func() bool {
		_, err := io.WriteString(c, "\n")
		must(t, err)
		return h.serialLog("web") != ""
	})
	word := "hello, guest\r"
	_, err = io.WriteString(c, word)
	must(t, err)
	var got [64]byte
	var all string
	for !strings.Contains(all, word) {
		n, err := c.Read(got[:])
		must(t, err)
		all += string(got[:n])
	}
	must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil))
	if rest, err := io.ReadAll(c); err != nil {
		t.Errorf("at the end the reader gets %q, %v", rest, err)
	}
	log, end, err := h.ConsoleLog(t.Context(), "web", 0)
	must(t, err)
	defer log.Close()
	if kept, err := io.ReadAll(log); err != nil || !strings.HasPrefix(string(kept), all) || int64(len(kept)) != end {
		t.Errorf("the log has %q up to %d, %v; want %q", kept, end, err, all)
	}
}

func TestNoOutputIsLostAcrossRestartsOfVmand(t *testing.T) {
	h := newHost(t)
	h.start("web", guestCounts)
	grown := func(what string) {
		t.Helper()
		size := func() int64 {
			st, err := os.Stat(h.layout.inState(vmSerialLog("web")))
			must(t, err)
			return st.Size()
		}
		begin := size()
		await(t, what, func() bool { return size() > begin+20_000 })
	}
	for range 3 {
		grown("it prints")
		must(t, h.Close())
		grown("the guest prints while no vmand runs")
		h.open()
	}
	c, err := h.Console(t.Context(), "web", vm.ConsoleOptions{Scrollback: 1 << 40})
	must(t, err)
	defer c.Close()
	p := make([]byte, 200_000)
	_, err = io.ReadFull(c, p)
	must(t, err)
	for i, b := range p {
		if b != byte(i) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
}

func TestADryRunHasAConsole(t *testing.T) {
	d, ctx, spec := newDryRun(t, tempDir(t)), t.Context(), testSpec()
	must(t, d.CreateVM(ctx, spec.ID, spec.Root, nil, nil))
	_, err := d.Console(ctx, spec.ID, vm.ConsoleOptions{})
	mustFail(t, err, vm.CodeState)
	must(t, errOf(d.Start(ctx, spec, nil)))
	c, err := d.Console(ctx, spec.ID, vm.ConsoleOptions{Write: true, Scrollback: 1 << 20})
	must(t, err)
	defer c.Close()
	reads := func(c vm.Console, want string) {
		t.Helper()
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != want {
			t.Errorf("it reads %q, %v; want %q", buf, err, want)
		}
	}
	reads(c, pretendedGreeting)
	_, err = io.WriteString(c, "hello")
	must(t, err)
	reads(c, "hello")
	other, err := d.Console(ctx, spec.ID, vm.ConsoleOptions{Scrollback: 3})
	must(t, err)
	defer other.Close()
	reads(other, "llo")
	must(t, d.Shutdown(ctx, spec.ID, vm.StopOptions{}, nil))
	if rest, err := io.ReadAll(other); len(rest) > 0 || err != nil {
		t.Errorf("at the end the reader gets %q, %v", rest, err)
	}
	log, _, err := d.ConsoleLog(ctx, spec.ID, -5)
	must(t, err)
	defer log.Close()
	if kept, err := io.ReadAll(log); string(kept) != "hello" || err != nil {
		t.Errorf("the log ends with %q, %v", kept, err)
	}
	must(t, errOf(d.Start(ctx, spec, nil)))
	last, err := d.Console(context.Background(), spec.ID, vm.ConsoleOptions{})
	must(t, err)
	defer last.Close()
	must(t, d.Close())
	_, err = last.Read(make([]byte, 1))
	mustFail(t, err, vm.CodeUnavailable)
}
