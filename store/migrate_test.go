package store

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"testing"
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
	s := migrated(t, 1, firstRows)
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
	wantFault(t, s.applyErr(t.Context(), vm.Change{DeleteTemplate: "small"}), vm.CodeInUse)
	wantFault(t, s.applyErr(t.Context(), vm.Change{DeleteVM: "full"}), vm.CodeInUse)
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
	wantWhole(t, s)
}

// migrated opens a database that was of a version and had rows in it.
func migrated(t *testing.T, version int, rows string) *Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vman.db")
	must(t, reopen(t.Context(), path, versions(t, version)))
	run(t, path, rows)
	s := openAt(t, path)
	all, err := readMigrations(embedded)
	must(t, err)
	if got, err := inspect(t.Context(), fmt.Sprintf("%s.before-v%d", path, len(all))); got != version || err != nil {
		t.Errorf("the backup is of version %d, %v; want %d", got, err, version)
	}
	return s
}

// wantWhole fails the test unless the database of s has all that a new one has.
func wantWhole(t *testing.T, s *Store) {
	t.Helper()
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
		t.Errorf("the integrity check finds %s", finding)
	}
}

// secondRows are what a vmand of the second version has written.
const secondRows = `
	INSERT INTO templates (name, cpu_count, ram_mib, created_at) VALUES ('small', 2, 2048, 1741064767089);
	INSERT INTO networks (name, mode, bridge, subnet, gateway, mtu, vlan, isolate_vms, restricted, created_at, updated_at, revision)
	VALUES ('lan', 'nat', 'lan', '10.0.0.0/16', '10.0.0.1', 1500, 0, 0, 0, 1741064767089, 1741064767089, 1);
	INSERT INTO vms (id, uuid, template_name, cpu_count, ram_mib, state, reason, desired, root_size_mib, root_base,
		root_base_format, machine, accel, created_at, updated_at, started_at, revision, nics, forwards, facts)
	VALUES ('full', 'u1', 'small', 2, 2048, 'running', 'requested', 'running', 10240, '/base.qcow2', 'qcow2', 'pc-q35-7.2', 'kvm',
			1741064767089, 1741064767090, 1741064767091, 7, '0,lan,nat,52:00:00:00:00:01,virtio,10.0.0.7,,0,0,up,attached,0:;',
			'pf-a,0,tcp,127.0.0.1,8080,80;', '1,2,3,4,5,6;0,10.0.0.9,neighbour,7;'),
		('bare', 'u2', 'small', 2, 2048, 'stopped', 'created', 'stopped', 1024, NULL, NULL, NULL, NULL, 1741064767089, 1741064767089, 0, 1, NULL, NULL, NULL);
	INSERT INTO addresses (vm_id, slot, network, mac, ip) VALUES ('full', 0, 'lan', '52:00:00:00:00:01', 167772167);
	INSERT INTO host_ports (vm_id, id, protocol, host_address, host_port) VALUES ('full', 'pf-a', 'tcp', '127.0.0.1', 8080);
	INSERT INTO disks (id, size_mib, mount_point, slot, state, vm_id, created_at, updated_at, revision)
	VALUES ('d', 1024, '/dev/vdb', 1, 'attached', 'full', 1741064767089, 1741064767089, 2);`

func TestADatabaseOfTheSecondVersionKeepsAllItHas(t *testing.T) {
	s := migrated(t, 2, secondRows)
	ms := func(n int64) time.Time { return time.UnixMilli(n).UTC() }
	small := vm.Template{Name: "small", CPUCount: 2, RAMMiB: 2048}
	want := []vm.VM{
		{Seq: 1, ID: "full", UUID: "u1", Template: small, State: vm.Running, Reason: vm.ReasonRequested, Desired: vm.DesiredRunning,
			Root: vm.DiskFile{SizeMiB: 10240, Base: "/base.qcow2", BaseFormat: "qcow2"}, Machine: "pc-q35-7.2", Accel: vm.KVM,
			CreatedAt: at, UpdatedAt: at.Add(time.Millisecond), StartedAt: at.Add(2 * time.Millisecond), Revision: 7, Restart: vm.RestartNever,
			NICs:     []vm.NIC{{Network: "lan", Mode: vm.NetworkNAT, MAC: "52:00:00:00:00:01", Model: vm.NICVirtio, IP: netip.MustParseAddr("10.0.0.7"), State: vm.NICAttached}},
			Forwards: []vm.PortForward{{ID: "pf-a", Protocol: vm.TCP, HostAddress: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, GuestPort: 80}},
			Boot:     vm.Boot{Spawned: ms(1), Monitor: ms(2), Serial: ms(3), DHCP: ms(4), TCP: ms(5), Agent: ms(6)},
			Learned:  []vm.LearnedAddress{{IP: netip.MustParseAddr("10.0.0.9"), Source: vm.SourceNeighbour, At: ms(7)}}},
		{Seq: 2, ID: "bare", UUID: "u2", Template: small, State: vm.Stopped, Reason: vm.ReasonCreated, Desired: vm.DesiredStopped,
			Root: vm.DiskFile{SizeMiB: 1024}, CreatedAt: at, UpdatedAt: at, Revision: 1, Restart: vm.RestartNever},
	}
	if vms, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{}); err != nil || !reflect.DeepEqual(vms, want) {
		t.Errorf("the VMs are %+v, %v; want %+v", vms, err, want)
	}
	d := vm.Disk{Seq: 1, ID: "d", DiskFile: vm.DiskFile{SizeMiB: 1024}, MountPoint: "/dev/vdb", State: vm.DiskAttached, VMID: "full",
		CreatedAt: at, UpdatedAt: at, Revision: 2}
	if got, err := s.Disk(t.Context(), "d"); err != nil || got != d {
		t.Errorf("the disk is %+v, %v; want %+v", got, err, d)
	}
	if l, err := s.LeaseByName(t.Context(), "lan", "full"); err != nil || l.IP.String() != "10.0.0.7" {
		t.Errorf("the lease is %+v, %v", l, err)
	}

	// And an old VM can get what is new.
	i := makeImage("debian", someSum)
	full := want[0]
	full.CDROMs = []vm.CDROM{{ID: vm.SeedCDROM}, {ID: "cd-1", Image: "debian", SHA256: someSum}}
	d.DiskFile = madeOf("debian", someSum)
	apply(t, s, vm.Change{NewImage: &i, VM: &vm.VMUpdate{From: vm.Running, VM: full}, Seed: &vm.Seed{VMID: "full", Instance: 1},
		Disks:   []vm.DiskUpdate{{From: vm.DiskAttached, Disk: d}},
		Learned: []vm.Learned{{VMID: "full", Boot: vm.Boot{CloudInit: at}}}})
	if got := s.mustVM(t, "full"); !reflect.DeepEqual(got.CDROMs, full.CDROMs) || !got.Boot.CloudInit.Equal(at) || !got.Boot.Agent.Equal(ms(6)) ||
		!reflect.DeepEqual(got.Learned, full.Learned) {
		t.Errorf("read %+v; want what was given to it", got)
	}
	if f := wantFault(t, s.applyErr(t.Context(), vm.Change{DeleteImage: "debian"}), vm.CodeInUse); f.Detail != "image debian is in use by 1 VM(s) and 1 disk(s)" {
		t.Errorf("the detail is %q", f.Detail)
	}
	wantWhole(t, s)
}
