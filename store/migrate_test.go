package store

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"testing"
	"testing/fstest"
	"time"

	"vmand/vm"
)

// firstRows are what a vmand of the first version has written.
const firstRows = `
	INSERT INTO templates (name, cpu_count, ram_mib, created_at) VALUES ('old', 1, 1, 1), ('small', 2, 2048, 1741064767089);
	DELETE FROM templates WHERE name = 'old';
	INSERT INTO vms (id, uuid, template_name, cpu_count, ram_mib, state, reason, reason_detail, desired, local_ip, root_size_mib, root_base,
		root_base_format, machine, accel, created_at, updated_at, started_at, revision, description, labels, policy)
	VALUES ('gone', 'u0', 'small', 2, 2048, 'stopped', 'created', NULL, 'stopped', NULL, 1, NULL, NULL, NULL, NULL, 1, 1, 0, 1, NULL, NULL, NULL),
		('full', 'u1', 'small', 2, 2048, 'running', 'requested', 'why', 'running', '10.0.0.17', 10240, '/base.qcow2', 'qcow2', 'pc-q35-7.2', 'kvm',
			1741064767089, 1741064767090, 1741064767091, 7, 'two' || char(10) || 'lines', '{"tier":"web"}', '{"restart":"always","restarts":3}'),
		('bare', 'u2', 'small', 2, 2048, 'stopped', 'created', NULL, 'stopped', NULL, 1024, NULL, NULL, NULL, NULL, 1741064767089, 1741064767089, 0, 1, NULL, NULL, NULL);
	DELETE FROM vms WHERE id = 'gone';
	INSERT INTO disks (id, size_mib, mount_point, slot, state, vm_id, created_at, updated_at, revision)
	VALUES ('d', 1024, '/dev/vdb', 1, 'attached', 'full', 1741064767089, 1741064767089, 2);
	INSERT INTO operations (id, kind, resource, state, step, requested_by, request_id, created_at, started_at, finished_at, log, key, fingerprint)
	VALUES ('op', 'vm.start', 'vms/full', 'succeeded', '', 'me', 'r', 1741064767089, 0, 1741064767089, '[]', 'k', 'f');
	INSERT INTO replies (operation, status, body) VALUES (1, 202, x'7b7d');
	INSERT INTO events (at, type, resource, data) VALUES (1741064767089, 'vm.state', 'vms/full', '{}');
	INSERT INTO notes (name, value) VALUES ('boot', 'b');
	INSERT INTO tokens (name, role, hash, created_at) VALUES ('a', 'admin', zeroblob(32), 1741064767089);`

func TestADatabaseOfTheFirstVersionKeepsAllItHas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vman.db")
	all, err := readMigrations(embedded)
	must(t, err)
	must(t, reopen(t.Context(), path, fstest.MapFS{all[0].name: &fstest.MapFile{Data: []byte(all[0].sql)}}))
	run(t, path, firstRows)

	s := openAt(t, path)
	if version, err := inspect(t.Context(), path+".before-v2"); version != 1 || err != nil {
		t.Errorf("the backup is of version %d, %v; want 1", version, err)
	}
	ms := func(n int) time.Time { return at.Add(time.Duration(n) * time.Millisecond) }
	small := vm.Template{Name: "small", CPUCount: 2, RAMMiB: 2048}
	want := []vm.VM{
		{Seq: 2, ID: "full", UUID: "u1", Template: small, State: vm.Running, Reason: vm.ReasonRequested, ReasonDetail: "why", Desired: vm.DesiredRunning,
			Root: vm.DiskFile{SizeMiB: 10240, Base: "/base.qcow2", BaseFormat: "qcow2"}, Machine: "pc-q35-7.2", Accel: vm.KVM,
			CreatedAt: at, UpdatedAt: ms(1), StartedAt: ms(2), Revision: 7, Description: "two\nlines", Labels: map[string]string{"tier": "web"},
			Restart: vm.RestartAlways, Restarts: 3},
		{Seq: 3, ID: "bare", UUID: "u2", Template: small, State: vm.Stopped, Reason: vm.ReasonCreated, Desired: vm.DesiredStopped,
			Root: vm.DiskFile{SizeMiB: 1024}, CreatedAt: at, UpdatedAt: at, Revision: 1, Restart: vm.RestartNever},
	}
	if vms, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{}); err != nil || !reflect.DeepEqual(vms, want) {
		t.Errorf("the VMs are %+v, %v; want %+v", vms, err, want)
	}
	if d, err := s.Disk(t.Context(), "d"); err != nil || d.VMID != "full" || d.Revision != 2 {
		t.Errorf("the disk is %+v, %v", d, err)
	}
	if o, reply, err := s.OperationByKey(t.Context(), "me", "k"); err != nil || o.ID != "op" || reply == nil || reply.Status != 202 {
		t.Errorf("the operation is %+v, %+v, %v", o, reply, err)
	}
	if events, err := s.Events(t.Context(), vm.EventFilter{Type: "vm."}, vm.Page{}); err != nil || len(events) != 1 {
		t.Errorf("the events are %+v, %v", events, err)
	}
	if value, err := s.Note(t.Context(), "boot"); err != nil || value != "b" {
		t.Errorf("the note is %q, %v", value, err)
	}
	if tokens, err := s.Tokens(t.Context()); err != nil || len(tokens) != 1 {
		t.Errorf("the tokens are %+v, %v", tokens, err)
	}

	// It goes on as it would have, and an old VM can get what is new.
	wantFault(t, s.Apply(t.Context(), vm.Change{DeleteTemplate: "small"}), vm.CodeInUse)
	wantFault(t, s.Apply(t.Context(), vm.Change{DeleteVM: "full"}), vm.CodeInUse)
	makeNetwork(t, s, "lan")
	full := want[0]
	full.NICs = []vm.NIC{makeNIC(0, "lan", "10.0.0.7")}
	full.Forwards = []vm.PortForward{makeForward("pf-a", vm.TCP, "0.0.0.0:80")}
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: vm.Running, VM: full}, Learned: []vm.Learned{{VMID: "full", Boot: vm.Boot{DHCP: at}}}})
	if got := s.mustVM(t, "full"); got.Revision != 9 || !reflect.DeepEqual(got.NICs, full.NICs) || !reflect.DeepEqual(got.Forwards, full.Forwards) || !got.Boot.DHCP.Equal(at) {
		t.Errorf("read %+v; want what was given to it", got)
	}
	v := makeVM(1)
	apply(t, s, vm.Change{NewVM: &v})
	if got := s.mustVM(t, v.ID); got.Seq != 4 {
		t.Errorf("the next VM is number %d; want 4, which none ever was", got.Seq)
	}
	if ip, err := s.FreeIP(t.Context(), "lan", netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("10.0.0.9"), nil); err != nil || ip.String() != "10.0.0.8" {
		t.Errorf("the next address is %s, %v", ip, err)
	}
	schema := func(s *Store) (text string) {
		must(t, s.reader.Get(&text, `SELECT group_concat(name || ' ' || tbl_name, char(10)) FROM (SELECT * FROM sqlite_schema ORDER BY type, name)`))
		return text
	}
	if migrated, fresh := schema(s), schema(open(t)); migrated != fresh {
		t.Errorf("a migrated database has %s\na new one %s", migrated, fresh)
	}
	var finding string
	must(t, s.reader.Get(&finding, `PRAGMA integrity_check`))
	if finding != "ok" {
		t.Errorf("the integrity check finds %s", fmt.Sprint(finding))
	}
}
