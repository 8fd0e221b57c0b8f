package server

import (
	"fmt"
	"net/netip"

	"vmand/openapi"
	"vmand/vm"
)

// The functions in this file convert the names, DHCP options and boot files of networks.

// dhcpOptions returns nil if the property is absent.
func (p *addressParser) dhcpOptions(field string, list *openapi.DHCPOptions) *[]vm.DHCPOption {
	if list == nil {
		return nil
	}
	out := make([]vm.DHCPOption, len(*list))
	for i := range *list {
		o := &(*list)[i]
		out[i] = vm.DHCPOption{
			Code:      o.Code,
			Addresses: value(p.addrs(fmt.Sprintf("%s/%d/addresses", field, i), o.Addresses)),
			Text:      value(o.Text),
			Hex:       value(o.Hex),
			UInt8:     optionalInt64(o.UInt8),
			UInt16:    optionalInt64(o.UInt16),
			UInt32:    o.UInt32,
			Always:    value(o.Always),
		}
	}
	return &out
}

// optionalInt64 returns nil for nil.
func optionalInt64(n *int) *int64 {
	if n == nil {
		return nil
	}
	w := int64(*n)
	return &w
}

// pxe returns nil if the property is absent, and a pointer to nil for an object without
// properties.
func (p *addressParser) pxe(field string, b *openapi.PXE) **vm.PXE {
	if b == nil {
		return nil
	}
	var out *vm.PXE
	if b.NextServer == nil && b.Filename == nil && b.HTTPBootURL == nil && b.Architectures == nil {
		return &out
	}
	out = &vm.PXE{BootFile: p.bootFile(field, b.NextServer, b.Filename, b.HTTPBootURL)}
	for i, a := range value(b.Architectures) {
		out.Architectures = append(out.Architectures, vm.ArchitectureBoot{
			Architecture: vm.BootArchitecture(a.Architecture),
			BootFile: p.bootFile(fmt.Sprintf("%s/architectures/%d", field, i),
				a.NextServer, a.Filename, a.HTTPBootURL),
		})
	}
	return &out
}

func (p *addressParser) bootFile(field string, server, filename, url *string) vm.BootFile {
	return vm.BootFile{
		NextServer:  value(p.addr(field+"/next_server", server)),
		Filename:    value(filename),
		HTTPBootURL: value(url),
	}
}

// dnsRecords returns nil if the property is absent.
func dnsRecords(list *openapi.DNSRecords) *[]vm.DNSRecord {
	if list == nil {
		return nil
	}
	out := make([]vm.DNSRecord, len(*list))
	for i, r := range *list {
		out[i] = vm.DNSRecord{Name: r.Name, Type: vm.DNSRecordType(r.Type), Value: r.Value, TTL: vm.DefaultRecordTTL}
		if r.TTL != nil {
			out[i].TTL = *r.TTL
		}
	}
	return &out
}

// forwarders returns nil if the property is absent.
func (p *addressParser) forwarders(field string, list *openapi.DNSForwarders) *[]vm.DNSForwarder {
	if list == nil {
		return nil
	}
	out := make([]vm.DNSForwarder, len(*list))
	for i, f := range *list {
		out[i] = vm.DNSForwarder{Domain: f.Domain, Servers: make([]netip.AddrPort, len(f.Servers))}
		for j, s := range f.Servers {
			var ok bool
			if out[i].Servers[j], ok = vm.ParseDNSServer(s); !ok {
				p.fault(fmt.Sprintf("%s/%d/servers/%d", field, i, j),
					"must be an IP address with or without a port, such as 10.1.1.1 or [fd00::1]:5353")
			}
		}
	}
	return &out
}

func apiDHCPOptions(list []vm.DHCPOption) []openapi.DHCPOption {
	out := make([]openapi.DHCPOption, len(list))
	for i := range list {
		o := &list[i]
		out[i] = openapi.DHCPOption{
			Code:   o.Code,
			Text:   optional(&o.Text),
			Hex:    optional(&o.Hex),
			UInt8:  optionalInt(o.UInt8),
			UInt16: optionalInt(o.UInt16),
			UInt32: o.UInt32,
			Always: &o.Always,
		}
		if len(o.Addresses) > 0 {
			addresses := apiAddrs(o.Addresses)
			out[i].Addresses = &addresses
		}
	}
	return out
}

func optionalInt(n *int64) *int {
	if n == nil {
		return nil
	}
	i := int(*n)
	return &i
}

func apiPXE(p *vm.PXE) *openapi.PXE {
	if p == nil {
		return nil
	}
	out := &openapi.PXE{
		NextServer:  optionalAddr(p.NextServer),
		Filename:    optional(&p.Filename),
		HTTPBootURL: optional(&p.HTTPBootURL),
	}
	if len(p.Architectures) == 0 {
		return out
	}
	list := make([]openapi.ArchitectureBoot, len(p.Architectures))
	for i := range p.Architectures {
		a := &p.Architectures[i]
		list[i] = openapi.ArchitectureBoot{
			Architecture: openapi.ArchitectureBootArchitecture(a.Architecture),
			NextServer:   optionalAddr(a.NextServer),
			Filename:     optional(&a.Filename),
			HTTPBootURL:  optional(&a.HTTPBootURL),
		}
	}
	out.Architectures = &list
	return out
}

func apiDNSRecords(list []vm.DNSRecord) []openapi.DNSRecord {
	out := make([]openapi.DNSRecord, len(list))
	for i := range list {
		r := &list[i]
		out[i] = openapi.DNSRecord{Name: r.Name, Type: openapi.DNSRecordType(r.Type), Value: r.Value, TTL: &r.TTL}
	}
	return out
}

func apiForwarders(list []vm.DNSForwarder) []openapi.DNSForwarder {
	out := make([]openapi.DNSForwarder, len(list))
	for i, f := range list {
		out[i] = openapi.DNSForwarder{Domain: f.Domain, Servers: make([]string, len(f.Servers))}
		for j, s := range f.Servers {
			out[i].Servers[j] = vm.DNSServerText(s)
		}
	}
	return out
}

// bootDeviceDisk is the name of [vm.BootDisk] in the API.
const bootDeviceDisk = string(openapi.BootDeviceDisk)

// bootDevice returns nil for nil.
func bootDevice(b *openapi.BootDevice) *vm.BootDevice {
	if b == nil {
		return nil
	}
	d := vm.BootDevice(*b)
	if *b == openapi.BootDeviceDisk {
		d = vm.BootDisk
	}
	return &d
}
