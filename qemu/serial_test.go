package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/vm"
)

// fakeSerial uses the files of a console as QEMU does.
type fakeSerial struct {
	t      testing.TB
	layout layout
	state  *os.Root
	log    *os.File // the output
	line   *os.File // the input
}

// newFakeSerial makes the console of VM web in a directory.
func newFakeSerial(t testing.TB, dir string) *fakeSerial {
	t.Helper()
	state, err := os.OpenRoot(dir)
	must(t, err)
	must(t, state.MkdirAll(vmDir("web"), 0o700))
	f := &fakeSerial{t: t, layout: layout{state: dir, run: dir}, state: state}
	must(t, f.layout.makeConsole("web", host.Account{}))
	f.log, err = openSerialLog(state, "web")
	must(t, err)
	f.line, err = os.OpenFile(f.layout.inRun("web", consoleInSuffix), os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() {
		f.line.Close()
		f.log.Close()
		state.Close()
	})
	return f
}

func (f *fakeSerial) print(p []byte) {
	if _, err := f.log.Write(p); err != nil {
		f.t.Error(err)
	}
}

// reads ends the test if the guest does not read want.
func (f *fakeSerial) reads(want string) {
	f.t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(f.line, buf); string(buf) != want || err != nil {
		f.t.Fatalf("the guest reads %q, %v; want %q", buf, err, want)
	}
}

// connect opens a hub as a vmand that finds the VM. The hub is closed by end, or at
// the end of the test.
func (f *fakeSerial) connect(limits serialLimits) (h *serialHub, end func(why error)) {
	f.t.Helper()
	return f.connectWatched(limits, newSerialWatch(testLog(f.t)))
}

func (f *fakeSerial) connectWatched(limits serialLimits, w *serialWatch) (h *serialHub, end func(why error)) {
	f.t.Helper()
	d := &Driver{layout: f.layout, state: f.state, watch: w}
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { d.watch.run(ctx) })
	h = d.openHub("web", testLog(f.t), func() {})
	h.mu.Lock()
	h.limits = limits
	h.mu.Unlock()
	end = func(why error) {
		h.close(why)
		cancel()
		watching.Wait()
	}
	f.t.Cleanup(func() { end(io.EOF) })
	return h, end
}

// awaitEnd waits until the hub has seen that many bytes by itself.
func (h *serialHub) awaitEnd(t testing.TB, want int64) {
	t.Helper()
	await(t, "the hub sees the end of the log", func() bool { _, end := h.bounds(); return end == want })
}

// smallLimits are for short logs.
var smallLimits = serialLimits{most: 64 << 10, keep: 32 << 10, grain: 16 << 10, reserve: 8 << 10, patience: 100 * time.Millisecond}

// letters returns n bytes of a stream from offset from, each of which depends on its
// offset.
func letters(from, n int64) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = 'a' + byte((from+int64(i))*7%26)
	}
	return p
}

func TestASerialLogIsBoundedAndItsOffsetsStay(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	h, end := f.connect(smallLimits)
	var printed int64
	for range 100 {
		f.print(letters(printed, 5000))
		printed += 5000
		h.update()
		if begin, _ := h.bounds(); printed-begin > 64<<10 || printed > 64<<10 && printed-begin < 32<<10 {
			t.Fatalf("after %d bytes the log begins at %d", printed, begin)
		}
	}
	wasBegin, _ := h.bounds()
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(f.state.Name(), vmSerialLog("web")), &st))
	if st.Size != printed || st.Blocks*512 > 64<<10+16<<10 {
		t.Errorf("the file has %d bytes and takes %d", st.Size, st.Blocks*512)
	}
	readLog := func(offset, begin int64, hub *serialHub) {
		t.Helper()
		log, end, err := openConsoleLog(f.state, "web", hub, offset)
		must(t, err)
		defer log.Close()
		got, err := io.ReadAll(log)
		if err != nil || end != printed || !bytes.Equal(got, letters(begin, printed-begin)) {
			t.Errorf("the log from %d has %d bytes up to %d, %v; want it from %d", offset, len(got), end, err, begin)
		}
	}
	readAll := func(hub *serialHub) {
		t.Helper()
		for _, c := range []struct{ offset, begin int64 }{
			{0, wasBegin}, {wasBegin + 5, wasBegin + 5}, {printed, printed}, {printed + 9, printed}, {-7, printed - 7}, {-1 << 40, wasBegin},
		} {
			readLog(c.offset, c.begin, hub)
		}
	}
	readAll(h)
	end(io.EOF)
	readAll(nil)
	again, _ := f.connect(smallLimits) // as after a restart
	if begin, end := again.bounds(); begin != wasBegin || end != printed {
		t.Errorf("after a restart the log goes from %d to %d; want %d to %d", begin, end, wasBegin, printed)
	}
}

func TestAReaderOfACutLogGetsAnErrorInsteadOfZeros(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	h, _ := f.connect(smallLimits)
	f.print(letters(0, 1000))
	log, _, err := openConsoleLog(f.state, "web", h, 0)
	must(t, err)
	defer log.Close()
	f.print(letters(1000, 100_000))
	h.update()
	_, err = log.Read(make([]byte, 10))
	mustFail(t, err, vm.CodeUnavailable)
}

func TestAVMThatNeverRanHasAnEmptyLog(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	for _, id := range []string{"other", "../web"} {
		log, end, err := openConsoleLog(f.state, id, nil, 0)
		if id != "other" {
			mustFail(t, err, vm.CodeNotFound)
			continue
		}
		must(t, err)
		if got, err := io.ReadAll(log); len(got) != 0 || end != 0 || err != nil {
			t.Errorf("the log has %q up to %d, %v", got, end, err)
		}
		must(t, log.Close())
	}
}

func TestATruncatedLogContinues(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	h, _ := f.connect(smallLimits)
	f.print(letters(0, 1000))
	h.update()
	c, err := h.join(vm.ConsoleOptions{})
	must(t, err)
	defer c.Close()
	must(t, f.log.Truncate(0))
	f.print([]byte("more"))
	h.awaitEnd(t, 4) // c follows it
	_, err = c.Read(make([]byte, 10))
	mustFail(t, err, vm.CodeUnavailable)
}

func TestOnAFullDiskALogReusesItsOwnSpace(t *testing.T) {
	dir := tempDir(t)
	smallDisk(t, dir, 1*mib)
	f := newFakeSerial(t, dir)
	h, _ := f.connect(smallLimits)
	var printed int64
	print := func() {
		f.print(letters(printed, 1000))
		printed += 1000
		h.update()
	}
	for range 40 {
		print()
	}
	hog, err := f.state.Create("hog")
	must(t, err)
	defer hog.Close()
	for err == nil {
		_, err = hog.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for range 200 {
		print() // f.print reports bytes that were not kept
	}
}

func TestALogIsFollowedWithoutInotify(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	w := newSerialWatch(testLog(t))
	must(t, w.inotify.Close())
	w.inotify = nil // as if the kernel had none left
	h, _ := f.connectWatched(smallLimits, w)
	c, err := h.join(vm.ConsoleOptions{})
	must(t, err)
	defer c.Close()
	f.print([]byte("hello"))
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
		t.Errorf("the reader gets %q, %v", buf, err)
	}
}

func TestALogIsWatchedOnlyWhileItHasFollowers(t *testing.T) {
	f := newFakeSerial(t, tempDir(t))
	h, end := f.connect(smallLimits)
	watched := func() bool {
		h.watch.mu.Lock()
		defer h.watch.mu.Unlock()
		return len(h.watch.of) == 1 && h.watch.hubs[h] != noWatch
	}
	if !watched() {
		t.Error("the log is not watched for its first byte")
	}
	f.print([]byte("x"))
	await(t, "the first byte is seen", func() bool { return !watched() })
	for range 2 {
		one, err := h.join(vm.ConsoleOptions{})
		must(t, err)
		two, err := h.join(vm.ConsoleOptions{})
		must(t, err)
		one.Close()
		if !watched() {
			t.Error("the log is not watched although there is a reader")
		}
		two.Close()
		if watched() {
			t.Error("the log is watched although there is no reader")
		}
	}
	end(io.EOF)
	if n := len(h.watch.hubs); n != 0 {
		t.Errorf("%d hubs are left", n)
	}
}

func TestAGuestIsNeverBlockedByItsOutput(t *testing.T) {
	h := newHost(t)
	h.start("web", guestChatters)
	grown := func(what string, by int64) {
		t.Helper()
		begin := h.serialSize("web")
		await(t, what, func() bool { return h.serialSize("web") > begin+by })
	}
	grown("the log grows beyond a socket buffer", 300_000)
	h.reopen()
	grown("the log grows after a restart of vmand", 300_000)
}

func TestTheFirstByteOfARunIsMarked(t *testing.T) {
	h := newHost(t)
	h.start("mute", guestDeaf)
	h.start("web", guestChatters)
	await(t, "the first byte is marked", func() bool { return len(h.marksTold()) > 0 })
	grown := func() {
		t.Helper()
		begin := h.serialSize("web")
		await(t, "the guest continues to write", func() bool { return h.serialSize("web") > begin+10_000 })
	}
	grown()
	must(t, h.Reset(t.Context(), "web"))
	grown()
	h.reopen() // the next byte is not the first of the run
	grown()
	if got := h.marksTold(); !slices.Equal(got, []string{"web serial"}) {
		t.Errorf("the marks are %q", got)
	}
	must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil))
	h.start("web2", guestSaysHi)
	await(t, "the next run is marked", func() bool { return slices.Equal(h.marksTold(), []string{"web serial", "web2 serial"}) })
}

func (h *testHost) serialSize(id string) int64 {
	st, err := h.state.Stat(vmSerialLog(id))
	if err != nil {
		return 0
	}
	return st.Size()
}
