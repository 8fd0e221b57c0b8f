package store

import (
	"fmt"
	"slices"

	"vmand/vm"
)

// The words there are, the most usual first.
var (
	networkModes = []vm.NetworkMode{vm.NetworkNAT, vm.NetworkIsolated, vm.NetworkBridge, vm.NetworkUser}
	nicModels    = []vm.NICModel{vm.NICVirtio, vm.NICE1000e}
	nicStates    = []vm.NICState{vm.NICAttached, vm.NICAttaching, vm.NICDetaching}
	links        = []string{"up", "down"}
	protocols    = []vm.Protocol{vm.TCP, vm.UDP}
	sources      = []vm.AddressSource{vm.SourceNeighbour, vm.SourceAgent, vm.SourceAssigned}
)

// packNICs returns the column nics. What would not come back as it is, is a
// defect of the caller.
func packNICs(list []vm.NIC) (text, error) {
	var b []byte
	for _, n := range list {
		link := "up"
		if n.LinkDown {
			link = "down"
		}
		b = appendNumber(b, int64(n.Slot), ',')
		b = appendWord(b, n.Network, ',')
		b = appendWord(b, n.Mode, ',')
		b = appendWord(b, n.MAC, ',')
		b = appendWord(b, n.Model, ',')
		b = appendAddr(b, n.IP, ',')
		b = appendAddr(b, n.IPv6, ',')
		b = appendNumber(b, int64(n.RateIn), ',')
		b = appendNumber(b, int64(n.RateOut), ',')
		b = appendWord(b, link, ',')
		b = appendWord(b, n.State, ',')
		b = appendFreeText(b, n.Reason, ';')
	}
	var back nics
	if err := back.Scan(string(b)); err != nil || !slices.Equal(list, []vm.NIC(back)) {
		return "", fmt.Errorf("the NICs %+v cannot be recorded, they would come back as %+v, %v", list, back, err)
	}
	return text(b), nil
}

// nics are read from the column of that name.
type nics []vm.NIC

// Scan implements [sql.Scanner].
func (l *nics) Scan(src any) error {
	*l = nil // not the slice there is: the VM before has it
	c := unpack(src)
	for c.more() {
		*l = append(*l, vm.NIC{
			Slot:     int(c.number(',', vm.MaxNICs-1)),
			Network:  c.word(','),
			Mode:     oneOf(&c, ',', networkModes),
			MAC:      c.word(','),
			Model:    oneOf(&c, ',', nicModels),
			IP:       c.addr(','),
			IPv6:     c.addr(','),
			RateIn:   int(c.number(',', maxNumber)),
			RateOut:  int(c.number(',', maxNumber)),
			LinkDown: oneOf(&c, ',', links) == "down",
			State:    oneOf(&c, ',', nicStates),
			Reason:   c.freeText(';'),
		})
	}
	return c.err
}

// packForwards returns the column forwards, as packNICs does.
func packForwards(list []vm.PortForward) (text, error) {
	var b []byte
	for _, f := range list {
		b = appendWord(b, f.ID, ',')
		b = appendNumber(b, int64(f.Slot), ',')
		b = appendWord(b, f.Protocol, ',')
		b = appendAddr(b, f.HostAddress, ',')
		b = appendNumber(b, int64(f.HostPort), ',')
		b = appendNumber(b, int64(f.GuestPort), ';')
	}
	var back forwards
	if err := back.Scan(string(b)); err != nil || !slices.Equal(list, []vm.PortForward(back)) {
		return "", fmt.Errorf("the port forwards %+v cannot be recorded, they would come back as %+v, %v", list, back, err)
	}
	return text(b), nil
}

// forwards are read from the column of that name.
type forwards []vm.PortForward

// Scan implements [sql.Scanner].
func (l *forwards) Scan(src any) error {
	*l = nil
	c := unpack(src)
	for c.more() {
		*l = append(*l, vm.PortForward{
			ID:          c.word(','),
			Slot:        int(c.number(',', vm.MaxNICs-1)),
			Protocol:    oneOf(&c, ',', protocols),
			HostAddress: c.addr(','),
			HostPort:    int(c.number(',', maxPort)),
			GuestPort:   int(c.number(';', maxPort)),
		})
	}
	return c.err
}
