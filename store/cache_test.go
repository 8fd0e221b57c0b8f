package store

import (
	"sync"
	"testing"

	"vmand/vm"
)

func (s *Store) mustVM(t testing.TB, id string) vm.VM {
	t.Helper()
	v, err := s.VM(t.Context(), id)
	must(t, err)
	return v
}

func TestAVMReadTwiceIsNeverOlderThanItsLastChange(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	apply(t, s, vm.Change{NewVM: &v})
	for i := range 100 {
		v := s.mustVM(t, v.ID)
		if again := s.mustVM(t, v.ID); again.Revision != v.Revision {
			t.Fatalf("read as %d and as %d", v.Revision, again.Revision)
		}
		apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
		if now := s.mustVM(t, v.ID); now.Revision != v.Revision+1 {
			t.Fatalf("change %d: read as revision %d; want %d", i, now.Revision, v.Revision+1)
		}
	}
	apply(t, s, vm.Change{DeleteVM: v.ID})
	_, err := s.VM(t.Context(), v.ID)
	wantFault(t, err, vm.CodeNotFound)
}

func TestReadersBesideAWriterSeeNothingOlderThanWhatWasAcknowledged(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	apply(t, s, vm.Change{NewVM: &v})
	var mu sync.Mutex
	acknowledged := int64(1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				least := acknowledged
				mu.Unlock()
				got, err := s.VM(t.Context(), v.ID)
				if err != nil || got.Revision < least {
					t.Errorf("read revision %d, %v, after %d was acknowledged", got.Revision, err, least)
					return
				}
			}
		})
	}
	for range 200 {
		now := s.mustVM(t, v.ID)
		apply(t, s, vm.Change{VM: &vm.VMUpdate{From: now.State, VM: now}})
		mu.Lock()
		acknowledged++
		mu.Unlock()
	}
	close(stop)
	wg.Wait()
}

func TestAListMakesForeignWritesSeen(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	apply(t, s, vm.Change{NewVM: &v})
	s.mustVM(t, v.ID)
	other := openAt(t, s.path)
	now := other.mustVM(t, v.ID)
	now.ReasonDetail = "written by another"
	apply(t, other, vm.Change{VM: &vm.VMUpdate{From: now.State, VM: now}})
	if _, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{}); err != nil {
		t.Fatal(err)
	}
	if got := s.mustVM(t, v.ID); got.ReasonDetail != "written by another" {
		t.Errorf("read %q", got.ReasonDetail)
	}
	// And so does time.
	now = other.mustVM(t, v.ID)
	now.ReasonDetail = "and again"
	apply(t, other, vm.Change{VM: &vm.VMUpdate{From: now.State, VM: now}})
	s.cache.looked.Add(-int64(foreignCheck))
	if got := s.mustVM(t, v.ID); got.ReasonDetail != "and again" {
		t.Errorf("read %q", got.ReasonDetail)
	}
}
