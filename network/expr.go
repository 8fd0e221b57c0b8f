package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The functions of this file build nftables matches as expressions of the kernel's
// register machine. A key of several parts lies in registers of four bytes: the first
// part begins in register 1; the part after an interface name (16 bytes) in register 12.
const (
	reg       = 1
	regSecond = 9  // bytes 4 to 7 of a key
	regThird  = 10 // bytes 8 to 11 of a key
	regAfter  = 12 // after an interface name
)

type match = []expr.Any

// all concatenates matches: the result holds if every part holds.
func all(parts ...match) match {
	var m match
	for _, p := range parts {
		m = append(m, p...)
	}
	return m
}

func load(e ...expr.Any) match { return e }

// The functions from here to transportField load a field of a packet into a register.
func iifname() match { return load(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}) }
func oifname() match { return load(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}) }

// fromTo loads the incoming and the outgoing interface of a packet.
func fromTo() match {
	return all(iifname(), load(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: regAfter}))
}

func field(base expr.PayloadBase, offset, length, to uint32) match {
	return load(&expr.Payload{DestRegister: to, Base: base, Offset: offset, Len: length})
}

func etherField(offset, length, to uint32) match {
	return field(expr.PayloadBaseLLHeader, offset, length, to)
}
func netField(offset, length, to uint32) match {
	return field(expr.PayloadBaseNetworkHeader, offset, length, to)
}
func transportField(offset, length, to uint32) match {
	return field(expr.PayloadBaseTransportHeader, offset, length, to)
}

func equal(data ...byte) match {
	return load(&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data})
}
func differs(data ...byte) match {
	return load(&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data})
}
func masked(mask ...byte) match {
	return load(&expr.Bitwise{
		SourceRegister: reg,
		DestRegister:   reg,
		Len:            uint32(len(mask)),
		Mask:           mask,
		Xor:            make([]byte, len(mask)),
	})
}
func in(set string) match {
	return load(&expr.Lookup{SourceRegister: reg, SetName: set})
}
func notIn(set string) match {
	return load(&expr.Lookup{SourceRegister: reg, SetName: set, Invert: true})
}

// mapped replaces the key in the register by its value in a map. The rule does not match
// if the map has no such key.
func mapped(name string) match {
	return load(&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: name})
}

// jumpBy applies the verdict that a verdict map has for the key in the register.
func jumpBy(name string) match {
	return load(&expr.Lookup{SourceRegister: reg, DestRegister: 0, IsDestRegSet: true, SetName: name})
}

func verdict(kind expr.VerdictKind, chain string) match {
	return load(&expr.Verdict{Kind: kind, Chain: chain})
}

func accept() match            { return verdict(expr.VerdictAccept, "") }
func drop() match              { return verdict(expr.VerdictDrop, "") }
func leaveChain() match        { return verdict(expr.VerdictReturn, "") }
func jump(chain string) match  { return verdict(expr.VerdictJump, chain) }
func goTo(chain string) match  { return verdict(expr.VerdictGoto, chain) }
func masquerade() match        { return load(&expr.Masq{}) }
func etherType(t uint16) match { return all(etherField(12, 2, reg), equal(byte(t>>8), byte(t))) }

func family(f byte) match {
	return all(load(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}), equal(f))
}

func protocol(p byte) match {
	return all(load(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}), equal(p))
}

// laterFragment holds for an IPv6 fragment with a non-zero offset.
func laterFragment() match {
	offset := &expr.Exthdr{
		DestRegister: reg,
		Type:         unix.IPPROTO_FRAGMENT,
		Offset:       2,
		Len:          2,
		Op:           expr.ExthdrOpIpv6,
	}
	return all(load(offset), masked(0xff, 0xf8), differs(0, 0))
}

func udpFrom(port uint16) match {
	return all(protocol(unix.IPPROTO_UDP), transportField(0, 2, reg), equal(byte(port>>8), byte(port)))
}

func icmpType(t byte) match {
	return all(protocol(unix.IPPROTO_ICMP), transportField(0, 1, reg), equal(t))
}

func icmpv6Type(t byte) match {
	return all(protocol(unix.IPPROTO_ICMPV6), transportField(0, 1, reg), equal(t))
}

// conntrack holds if any of the bits is set.
func conntrack(key expr.CtKey, bits uint32) match {
	return load(
		&expr.Ct{Register: reg, Key: key},
		&expr.Bitwise{
			SourceRegister: reg,
			DestRegister:   reg,
			Len:            4,
			Mask:           binaryutil.NativeEndian.PutUint32(bits),
			Xor:            make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	)
}

// ipsDstNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const ipsDstNAT = 1 << 5

func forwarded() match { return conntrack(expr.CtKeySTATUS, ipsDstNAT) }

func established() match {
	return conntrack(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// toHost holds for a packet to an address of the host.
func toHost() match {
	return load(
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	)
}

// toGuest translates the destination to the address in bytes 0 to 3 of the registers and
// the port in bytes 4 to 7.
func toGuest() match {
	return load(&expr.NAT{
		Type:        expr.NATTypeDestNAT,
		Family:      unix.NFPROTO_IPV4,
		RegAddrMin:  reg,
		RegProtoMin: regSecond,
	})
}

// toGuest6 translates the destination to the address in bytes 0 to 15 of the registers and the
// port in bytes 16 to 19.
func toGuest6() match {
	return load(&expr.NAT{
		Type:        expr.NATTypeDestNAT,
		Family:      unix.NFPROTO_IPV6,
		RegAddrMin:  reg,
		RegProtoMin: regAfter,
	})
}

// ifname returns the name of an interface as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// portKey returns a protocol and a port as parts of a key, four bytes each.
func portKey(proto byte, port int) []byte {
	return append([]byte{proto, 0, 0, 0}, portPart(port)...)
}

func portPart(port int) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(port)), 0, 0)
}

func bytesOf(a netip.Addr) []byte { return a.AsSlice() }
