package store

import (
	"fmt"
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

func TestACachedVMIsNeverOlderThanItsLastChange(t *testing.T) {
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

func TestReadersBesideAWriterSeeAcknowledgedRevisions(t *testing.T) {
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

func TestForeignWritesAreSeenAfterAListAndAfterASecond(t *testing.T) {
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
	// So are they after foreignCheck.
	now = other.mustVM(t, v.ID)
	now.ReasonDetail = "and again"
	apply(t, other, vm.Change{VM: &vm.VMUpdate{From: now.State, VM: now}})
	s.foreign.looked.Add(-int64(foreignCheck))
	if got := s.mustVM(t, v.ID); got.ReasonDetail != "and again" {
		t.Errorf("read %q", got.ReasonDetail)
	}
}

func TestAChangeForgetsOnlyItsVM(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v, w := makeVM(0), makeVM(1)
	apply(t, s, vm.Change{NewVM: &v})
	apply(t, s, vm.Change{NewVM: &w})
	cached := func(id string) bool {
		_, _, ok := s.cache.get(id)
		return ok
	}
	s.mustVM(t, v.ID)
	s.mustVM(t, w.ID)
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
	makeTemplate(t, s, "other")
	if cached(v.ID) || !cached(w.ID) {
		t.Errorf("after a change of the first VM: cached %t, %t; want only the second", cached(v.ID), cached(w.ID))
	}
	// A row read before a change is not kept after it.
	_, epoch, _ := s.cache.get(v.ID)
	old := s.mustVM(t, v.ID)
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
	s.cache.put(epoch, old)
	if cached(v.ID) {
		t.Error("a row from before the change is kept")
	}
}

func TestACachedPageIsUsedOnlyIfEachRevisionIsCurrent(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	for i := range 4 {
		v := withLists(i)
		apply(t, s, vm.Change{NewVM: &v})
	}
	page := func() []vm.VM {
		t.Helper()
		list, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{After: 1, Limit: 2})
		must(t, err)
		return list
	}
	first := page()
	first[0].CDROMs[0].ID = "changed"
	_, err := s.writer.Exec(`UPDATE vms SET reason_detail = 'behind the cache'`) // to detect a read of the row
	must(t, err)
	if again := page(); len(again) != 2 || again[0].ReasonDetail != "" || again[0].CDROMs[0].ID != vm.SeedCDROM {
		t.Errorf("read %+v; want the cached page, with separate lists", again)
	}
	_, err = s.writer.Exec(`UPDATE vms SET revision = revision + 1 WHERE seq = 3`)
	must(t, err)
	if again := page(); again[0].ReasonDetail == "" || again[1].ReasonDetail == "" || again[1].Revision != 2 {
		t.Errorf("read %+v; want the recorded page", again)
	}
}

// withLists returns a VM with a CD-ROM drive.
func withLists(i int) vm.VM {
	v := makeVM(i)
	v.CDROMs = []vm.CDROM{{ID: vm.SeedCDROM}}
	return v
}

func TestTheCacheIsBounded(t *testing.T) {
	var c vmCache
	c.clear()
	_, epoch, _ := c.get("none")
	for i := range maxCached + 100 {
		c.put(epoch, vm.VM{ID: fmt.Sprint(i)})
	}
	if len(c.vms) != maxCached {
		t.Errorf("%d VMs are cached; want %d", len(c.vms), maxCached)
	}
	if _, _, ok := c.get(fmt.Sprint(maxCached + 99)); !ok {
		t.Error("the newest VM is not cached")
	}
}
