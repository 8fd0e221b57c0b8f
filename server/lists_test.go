package server

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"testing"

	"vmand/openapi"
	"vmand/vm"
)

// manyVMs is a reader with n generated VMs.
type manyVMs struct {
	Records
	n int64
}

func (m manyVMs) VMs(_ context.Context, f vm.VMFilter, p vm.Page) ([]vm.VM, error) {
	var vms []vm.VM
	for seq := p.After + 1; seq <= m.n && (p.Limit == 0 || len(vms) < p.Limit); seq++ {
		vms = append(vms, someVM(seq))
	}
	return vms, nil
}

func (m manyVMs) VM(_ context.Context, id string) (vm.VM, error) {
	v := someVM(17)
	v.ID = id
	return v, nil
}

var nextLink = regexp.MustCompile(`^<(/[^>]*)>; rel="next"$`)

func TestListsHavePages(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.d.Reader = manyVMs{n: 250} })
	tests := map[string][]int{
		"/vms?limit=100":                   {100, 100, 50},
		"/vms?limit=250":                   {250},
		"/vms?limit=249":                   {249, 1},
		"/vms?limit=1000":                  {250},
		"/vms?cursor=" + formatCursor(200): {50},
		"/vms?cursor=" + formatCursor(0):   {100, 100, 50},
		"/vms?cursor=" + formatCursor(999): {0},
		"/vms":                             {250},
	}
	for path, pages := range tests {
		seen := map[string]bool{}
		for i, want := range pages {
			r := a.want(t, 200, "GET", path, "")
			page := into[[]openapi.VM](t, r)
			if len(page) != want {
				t.Errorf("page %d of %s has %d VMs, want %d", i, path, len(page), want)
			}
			for _, v := range page {
				if seen[v.ID] {
					t.Fatalf("%s occurs twice", v.ID)
				}
				seen[v.ID] = true
			}
			link := nextLink.FindStringSubmatch(r.Header.Get("Link"))
			if last := i == len(pages)-1; last != (link == nil) {
				t.Fatalf("page %d of %s: Link %q", i, path, r.Header.Get("Link"))
			}
			if link != nil {
				path = link[1]
			}
		}
	}
}

func TestTheLinkKeepsTheFilters(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.d.Reader = manyVMs{n: 250} })
	r := a.want(t, 200, "GET", "/vms?limit=3&template_name=small&state=running&network=vman0", "")
	link := nextLink.FindStringSubmatch(r.Header.Get("Link"))
	if link == nil {
		t.Fatalf("Link %q", r.Header.Get("Link"))
	}
	u, err := url.Parse(link[1])
	if err != nil {
		t.Fatal(err)
	}
	if q := u.Query(); q.Get("limit") != "3" || q.Get("template_name") != "small" || q.Get("state") != "running" ||
		q.Get("network") != "vman0" || len(q) != 5 {
		t.Errorf("query %v", q)
	}
}

func TestALongListIsStreamed(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.d.Reader = manyVMs{n: 1500} })
	r := a.want(t, 200, "GET", "/vms", "")
	if n := len(into[[]openapi.VM](t, r)); n != 1500 {
		t.Errorf("%d VMs", n)
	}
	if r.ContentLength != -1 {
		t.Errorf("the list was buffered: Content-Length %d", r.ContentLength)
	}
}

func TestEveryListIsAnArrayEvenWhenEmpty(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, path := range []string{"/templates", "/vms", "/disks", "/operations", "/vms?limit=1"} {
		if r := a.want(t, 200, "GET", path, ""); string(r.body) != "[]\n" {
			t.Errorf("%s: %q", path, r.body)
		}
	}
}

func TestAListWhoseFirstPageFailsIsAProblem(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.d.Reader = failing{} })
	a.want(t, 503, "GET", "/vms", "")
	a.want(t, 503, "GET", "/vms?limit=3", "")
}

// failing is a reader with failing reads.
type failing struct{ Records }

func (failing) VMs(context.Context, vm.VMFilter, vm.Page) ([]vm.VM, error) {
	return nil, fmt.Errorf("read: %w", errors.Join(vm.ErrUnavailable))
}
