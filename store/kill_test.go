package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"vmand/vm"
)

// writeForever is the environment variable with the path of the database that the test
// binary, started as a child, writes to until it is killed.
const writeForever = "VMAND_STORE_TEST_WRITE"

func TestMain(m *testing.M) {
	if path := os.Getenv(writeForever); path != "" {
		fmt.Fprintln(os.Stderr, writeUntilKilled(path))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writeUntilKilled records VMs and prints the id of each once it is recorded.
func writeUntilKilled(path string) error {
	s, err := Open(context.Background(), Options{Path: path})
	if err != nil {
		return err
	}
	failed := make(chan error)
	var out sync.Mutex
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				v := makeVM(0)
				v.ID = fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				v.UUID = v.ID
				if err := s.applyErr(context.Background(), vm.Change{NewVM: &v,
					Operation: &vm.Operation{ID: v.ID, Kind: vm.VMCreate, Resource: vm.VMResource(v.ID), State: vm.OpRunning}}); err != nil {
					failed <- err
					return
				}
				out.Lock()
				fmt.Println(v.ID)
				out.Unlock()
			}
		}()
	}
	return <-failed
}

func TestAcknowledgedWritesSurviveAKill(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "vman.db")
	s, err := Open(t.Context(), Options{Path: path})
	must(t, err)
	makeTemplate(t, s, "small")
	must(t, s.Close())

	var acknowledged []string
	for round := range 6 {
		ids := killedAfter(t, path, 50+37*round)
		acknowledged = append(acknowledged, ids...)
		s, err := Open(t.Context(), Options{Path: path})
		must(t, err)
		for _, id := range acknowledged {
			if _, err := s.VM(t.Context(), id); err != nil {
				t.Fatalf("round %d: VM %s was acknowledged: %v", round, id, err)
			}
		}
		vms, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{})
		must(t, err)
		ops, err := s.Operations(t.Context(), vm.OperationFilter{}, vm.Page{})
		must(t, err)
		if len(vms) != len(ops) || len(vms) > len(acknowledged)+4*(round+1) {
			t.Errorf("round %d: %d VMs and %d operations for %d acknowledgements", round, len(vms), len(ops), len(acknowledged))
		}
		must(t, s.Close())
	}
}

// killedAfter starts a child that writes and kills it after n acknowledgements. It
// returns all acknowledgements of the child.
func killedAfter(t *testing.T, path string, n int) []string {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), writeForever+"="+path)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	var ids []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if ids = append(ids, lines.Text()); len(ids) == n {
			must(t, child.Process.Kill())
		}
	}
	var exit *exec.ExitError
	if err := child.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("the child ended with %v; want it killed", err)
	}
	return ids
}
