package store

import (
	"database/sql/driver"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vmand/vm"
)

// The lists a VM has are JSON columns, NULL for none, which sqlite3 reads with
// json_each and ->>. The structs below have the fields of those in package vm, so
// that a field added there does not compile until it has a name here.
type (
	nicJSON struct {
		Slot     int            `json:"slot"`
		Network  string         `json:"network"`
		Mode     vm.NetworkMode `json:"mode"`
		MAC      string         `json:"mac"`
		Model    vm.NICModel    `json:"model"`
		IP       netip.Addr     `json:"ip,omitzero"`
		IPv6     netip.Addr     `json:"ipv6,omitzero"`
		Extra    []netip.Prefix `json:"extra,omitzero"`
		RateIn   int            `json:"rate_in_kbit,omitzero"`
		RateOut  int            `json:"rate_out_kbit,omitzero"`
		LinkDown bool           `json:"link_down,omitzero"`
		State    vm.NICState    `json:"state"`
		Reason   string         `json:"reason,omitzero"`
	}
	forwardJSON struct {
		ID          string      `json:"id"`
		Slot        int         `json:"slot"`
		Protocol    vm.Protocol `json:"protocol"`
		HostAddress netip.Addr  `json:"host_address"`
		HostPort    int         `json:"host_port"`
		GuestPort   int         `json:"guest_port"`
		Ports       int         `json:"ports,omitzero"`
	}
	cdromJSON struct {
		ID        string `json:"id"`
		Image     string `json:"image,omitzero"`
		SHA256    string `json:"sha256,omitzero"`
		BootIndex int    `json:"boot_index,omitzero"`
	}
	learnedJSON struct {
		Slot   int              `json:"slot"`
		IP     netip.Addr       `json:"ip"`
		Source vm.AddressSource `json:"source"`
		At     int64            `json:"at"` // Unix milliseconds
	}
)

// nics, forwards, cdroms and learnedAddresses are the columns of these names.
type (
	nics             []vm.NIC
	forwards         []vm.PortForward
	cdroms           []vm.CDROM
	learnedAddresses []vm.LearnedAddress
)

// Value implements [driver.Valuer].
func (l nics) Value() (driver.Value, error) {
	return encodeList(l, func(n vm.NIC) nicJSON { return nicJSON(n) })
}

// Scan implements [sql.Scanner].
func (l *nics) Scan(src any) (err error) {
	*l, err = decodeList(src, func(n nicJSON) vm.NIC { return vm.NIC(n) })
	return err
}

// Value implements [driver.Valuer].
func (l forwards) Value() (driver.Value, error) {
	return encodeList(l, func(f vm.PortForward) forwardJSON { return forwardJSON(f) })
}

// Scan implements [sql.Scanner].
func (l *forwards) Scan(src any) (err error) {
	*l, err = decodeList(src, func(f forwardJSON) vm.PortForward { return vm.PortForward(f) })
	return err
}

// Value implements [driver.Valuer].
func (l cdroms) Value() (driver.Value, error) {
	return encodeList(l, func(d vm.CDROM) cdromJSON { return cdromJSON(d) })
}

// Scan implements [sql.Scanner].
func (l *cdroms) Scan(src any) (err error) {
	*l, err = decodeList(src, func(d cdromJSON) vm.CDROM { return vm.CDROM(d) })
	return err
}

// Value implements [driver.Valuer].
func (l learnedAddresses) Value() (driver.Value, error) {
	return encodeList(l, func(a vm.LearnedAddress) learnedJSON {
		return learnedJSON{Slot: a.Slot, IP: a.IP, Source: a.Source, At: millis(a.At)}
	})
}

// Scan implements [sql.Scanner].
func (l *learnedAddresses) Scan(src any) (err error) {
	*l, err = decodeList(src, func(a learnedJSON) vm.LearnedAddress {
		return vm.LearnedAddress{Slot: a.Slot, IP: a.IP, Source: a.Source, At: timeOf(a.At)}
	})
	return err
}

// boot is stored as a JSON object of Unix milliseconds by [vm.BootMark], without
// the marks that were not reached.
type boot vm.Boot

// Value implements [driver.Valuer].
func (b boot) Value() (driver.Value, error) {
	marks := make(map[vm.BootMark]int64, len(vm.BootMarks))
	for _, m := range vm.BootMarks {
		if at := *(*vm.Boot)(&b).At(m); !at.IsZero() {
			marks[m] = millis(at)
		}
	}
	if len(marks) == 0 {
		return nil, nil
	}
	return encode(marks)
}

// Scan implements [sql.Scanner].
func (b *boot) Scan(src any) error {
	*b = boot{}
	if src == nil {
		return nil
	}
	var marks map[vm.BootMark]int64
	if err := decode(src, &marks); err != nil {
		return err
	}
	for m, at := range marks {
		*(*vm.Boot)(b).At(m) = timeOf(at)
	}
	return nil
}

// encodeList returns a JSON array of what row makes of each element, NULL for an
// empty list.
func encodeList[T, J any](list []T, row func(T) J) (driver.Value, error) {
	if len(list) == 0 {
		return nil, nil
	}
	rows := make([]J, len(list))
	for i, v := range list {
		rows[i] = row(v)
	}
	return encode(rows)
}

// decodeList returns what element makes of each element of a JSON array, nil for
// NULL.
func decodeList[T, J any](src any, element func(J) T) ([]T, error) {
	if src == nil {
		return nil, nil
	}
	var rows []J
	if err := decode(src, &rows); err != nil || len(rows) == 0 {
		return nil, err
	}
	list := make([]T, len(rows))
	for i, r := range rows {
		list[i] = element(r)
	}
	return list, nil
}

// millis and timeOf convert between a time and Unix milliseconds, 0 for the zero
// time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func timeOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// checkVM returns an error if the lists of v are invalid, which is a defect of the caller. A
// CHECK of the schema cannot check values inside JSON.
func checkVM(v vm.VM) error {
	for _, n := range v.NICs {
		if !validNIC(n) {
			return fmt.Errorf("VM %s: NIC %+v cannot be recorded", v.ID, n)
		}
	}
	for _, f := range v.Forwards {
		if !validForward(f) {
			return fmt.Errorf("VM %s: port forward %+v cannot be recorded", v.ID, f)
		}
	}
	for _, d := range v.CDROMs {
		if d.ID == "" || d.BootIndex < 0 || d.SHA256 != "" && !vm.ValidContent(d.SHA256) {
			return fmt.Errorf("VM %s: CD-ROM drive %+v cannot be recorded", v.ID, d)
		}
	}
	return nil
}

func validNIC(n vm.NIC) bool {
	modes := []vm.NetworkMode{vm.NetworkNAT, vm.NetworkIsolated, vm.NetworkBridge, vm.NetworkUser}
	states := []vm.NICState{vm.NICAttached, vm.NICAttaching, vm.NICDetaching}
	return validSlot(n.Slot) && n.Network != "" && n.MAC != "" && n.RateIn >= 0 && n.RateOut >= 0 &&
		slices.Contains(modes, n.Mode) && slices.Contains(states, n.State) &&
		(n.Model == vm.NICVirtio || n.Model == vm.NICE1000e)
}

func validForward(f vm.PortForward) bool {
	return f.ID != "" && validSlot(f.Slot) && (f.Protocol == vm.TCP || f.Protocol == vm.UDP) &&
		f.HostAddress.IsValid() && validPort(f.HostPort) && validPort(f.GuestPort) && 0 <= f.Ports && f.Ports <= vm.MaxPorts &&
		validPort(f.HostPort+f.Count()-1) && validPort(f.GuestPort+f.Count()-1)
}

func validLearned(a vm.LearnedAddress) bool {
	sources := []vm.AddressSource{vm.SourceNeighbour, vm.SourceAgent, vm.SourceAssigned}
	return validSlot(a.Slot) && a.IP.IsValid() && slices.Contains(sources, a.Source)
}

func validSlot(n int) bool { return 0 <= n && n < vm.MaxNICs }

func validPort(n int) bool { return 0 < n && n < 1<<16 }
