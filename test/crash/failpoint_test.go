package crash

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmand/manager"
	"vmand/test/harness"
	"vmand/test/need"
	"vmand/vm"
)

// failBinary returns the path of a vmand that is built with fail points.
var failBinary = sync.OnceValues(func() (string, error) {
	if given := os.Getenv("VMAN_TEST_FAILPOINT_BINARY"); given != "" {
		return given, nil
	}
	file := harness.File("build", "vmand-failpoints")
	return file, harness.Build(file, "-tags", "failpoints")
})

const (
	// parallelDaemons is how many daemons are killed at the same time, and how many VMs
	// start at the same time: most of the time is spent waiting for processes and for the
	// observer. Under an emulated KVM it is one, because many guests that boot at the same
	// time end the outer guest.
	parallelDaemons = 4
	// chainLength is how many points one daemon is killed at, unless its guests boot
	// Linux, which takes seconds: then it is one.
	chainLength = 5
)

// lanes returns how many daemons or VMs a test runs at the same time.
func lanes() int {
	if need.Accel() != "tcg" {
		return 1
	}
	return parallelDaemons
}

// TestEveryOperationSurvivesAKillAtEverySeam kills the daemon at each seam of each
// operation and starts it again. Two passes of the observer later, everything must be
// settled, and it must be possible to repeat the request.
func TestEveryOperationSurvivesAKillAtEverySeam(t *testing.T) {
	if _, err := failBinary(); err != nil {
		t.Fatal(err)
	}
	var tried, passed atomic.Int64
	todo := make(chan *chain)
	var wg sync.WaitGroup
	for range lanes() {
		wg.Go(func() {
			for c := range todo {
				t.Run(c.name, func(t *testing.T) {
					for _, point := range c.points {
						tried.Add(1)
						if c.survives(t, point) {
							passed.Add(1)
						}
					}
					c.finish()
				})
			}
		})
	}
	for _, c := range everyChain() {
		todo <- c
	}
	close(todo)
	wg.Wait()
	fmt.Printf("fail points: %d pairs, %d passed\n", tried.Load(), passed.Load())
}

// TestEveryFailPointIsInTheMatrix compares the fail points in the source with those that
// the verbs name, and the points of each verb with those of its operations in the matrix.
func TestEveryFailPointIsInTheMatrix(t *testing.T) {
	named, tried := map[string]bool{}, map[vm.Kind][]string{}
	for _, op := range everyOperation() {
		tried[vm.Kind(op.kind())] = append(tried[vm.Kind(op.kind())], op.inner...)
	}
	for kind, points := range manager.FailPoints() {
		for _, point := range points {
			named[point] = true
			if !slices.Contains(tried[kind], point) {
				t.Errorf("no operation of kind %s in the matrix has fail point %q of its verb", kind, point)
			}
		}
		for _, point := range tried[kind] {
			if !slices.Contains(points, point) {
				t.Errorf("the verb of kind %s does not name fail point %q of the matrix", kind, point)
			}
		}
		delete(tried, kind)
	}
	for kind := range tried {
		t.Errorf("no verb has kind %s of the matrix", kind)
	}
	call := regexp.MustCompile(`\bfailpoint\.Hit\((?:[^"\n]* \+ )?(?:"([^"]+)")?`)
	found := 0
	for _, file := range harness.GoFiles(t) {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, harness.File("failpoint")) {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllSubmatch(text, -1) {
			found++
			if name := string(m[1]); !named[name] && !slices.Contains(seams, name) {
				t.Errorf("%s: no verb names fail point %q", file, name)
			}
		}
	}
	if found < 10 {
		t.Errorf("found only %d fail points", found)
	}
}

// A chain is a part of the points of an operation, at which one daemon is killed, one
// after the other.
type chain struct {
	operation
	points []string
	d      *harness.Daemon // nil before the first point, and after one that has failed
	n      int             // how many targets were made
}

// everyChain splits the matrix into chains, those that take longest first, so that
// none is left alone at the end.
func everyChain() []*chain {
	var long, short []*chain
	for _, op := range everyOperation() {
		list, length := &short, chainLength
		if op.guest != "" {
			list, length = &long, 1
		}
		for points := range slices.Chunk(op.points(), length) {
			*list = append(*list, &chain{operation: op, points: points})
		}
	}
	return slices.Concat(long, short)
}

// begin returns the daemon to kill. It is a new one if the last point has failed,
// because that may have left anything.
func (c *chain) begin(t *testing.T) *harness.Daemon {
	t.Helper()
	if c.d == nil {
		c.d = harness.NewDaemon(t, append(slices.Clone(c.env), "VMAN_OBSERVER_INTERVAL=250ms")...)
		c.d.Binary, _ = failBinary()
		if c.guest != "" {
			c.d.Env = append(c.d.Env, harness.BootDisk(c.guest))
		}
		if c.nat {
			c.d.Host = harness.NewNamespace(t, "host")
			c.d.Env = append(c.d.Env, "VMAN_NETWORK_MODE=bridge")
		}
		c.d.Start()
		c.d.CreateTemplate()
	}
	return c.d
}

// finish fails the test if anything is left of the points.
func (c *chain) finish() {
	if c.d != nil {
		c.d.DeleteAll()
		c.d.AssertEmpty()
	}
}

// survives kills the daemon at a point and reports whether all was well afterwards.
func (c *chain) survives(group *testing.T, point string) bool {
	d := c.begin(group)
	ok := group.Run(point, func(t *testing.T) {
		defer d.SetT(d.SetT(t))
		c.n++
		x := target{vm: fmt.Sprintf("vm-%d", c.n), n: c.n}
		if c.prepare != nil {
			c.prepare(d, &x)
		}
		d.Kill()
		if c.tamper != nil {
			c.tamper(d, x)
		}
		begun := time.Now().Truncate(time.Millisecond)
		dieAt(d, point, func() (harness.Answer, error) {
			method, path, body := c.request(x)
			return d.Try(method, path, body, harness.Wait)
		})
		d.Start()
		d.WaitPasses(2)
		c.check(d, x, point, begun)
		c.repeat(d, x)
		removeTarget(d, x)
	})
	if !ok {
		c.d = nil
	}
	return ok
}
