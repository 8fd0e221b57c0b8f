package dhcp

import (
	"bytes"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"vmand/vm"
)

// Sizes of a message in bytes.
const (
	minMaxMessage = 576    // every client accepts an IP packet of it (RFC 2131, section 2)
	usualMTU      = 1500   // of a network without a setting
	headers       = 20 + 8 // IP and UDP
	maxOption     = 255    // the value of an option
	maxFileField  = 127    // the field file without its final zero
)

// searchList4 returns the search list with as many of its domains as fit into size bytes, or nil
// if none fits.
func searchList4(domains []string, size int) []byte {
	for n := len(domains); n > 0; n-- {
		if b := vm.PackDomains(domains[:n], true); len(b) <= size {
			return b
		}
	}
	return nil
}

// addFree adds the options of a network that m requests, or that are always sent. Those that
// vmand has set stay.
func addFree(r, m *dhcpv4.DHCPv4, nw vm.Network) {
	for _, o := range nw.DHCPOptions {
		code := dhcpv4.GenericOptionCode(o.Code)
		if !o.Always && !isRequested(m, code) || r.Options.Has(code) {
			continue
		}
		if value, err := o.Encode(); err == nil {
			r.UpdateOption(dhcpv4.OptGeneric(code, value))
		}
	}
}

// isRequested reports whether m requests an option.
func isRequested(m *dhcpv4.DHCPv4, code dhcpv4.OptionCode) bool {
	return bytes.IndexByte(m.Options.Get(dhcpv4.OptionParameterRequestList), code.Code()) >= 0
}

// The classes of clients that boot from the network (option 60).
const (
	pxeClient  = "PXEClient"
	httpClient = "HTTPClient" // HTTP boot of UEFI firmware: it accepts only replies of this class
)

// addBoot adds the boot file for m if it comes from a client that boots from the network.
func addBoot(r, m *dhcpv4.DHCPv4, nw vm.Network) {
	var types []uint16
	for _, t := range m.ClientArch() {
		types = append(types, uint16(t))
	}
	file := nw.PXE.For(types...)
	class := m.ClassIdentifier()
	switch {
	case strings.HasPrefix(class, httpClient):
		if file.HTTPBootURL != "" {
			r.UpdateOption(dhcpv4.OptClassIdentifier(httpClient))
			setBootFile(r, file.HTTPBootURL)
		}
	case file.Filename == "":
	case strings.HasPrefix(class, pxeClient),
		isRequested(m, dhcpv4.OptionBootfileName),
		isRequested(m, dhcpv4.OptionTFTPServerName):
		if file.NextServer.IsValid() {
			r.ServerIPAddr = file.NextServer.AsSlice()
			r.UpdateOption(dhcpv4.OptTFTPServerName(file.NextServer.String()))
		}
		setBootFile(r, file.Filename)
	}
}

// setBootFile sets the boot file in the option, and in the field if it fits: old clients read
// only the field.
func setBootFile(r *dhcpv4.DHCPv4, name string) {
	r.UpdateOption(dhcpv4.OptBootFileName(name))
	if len(name) <= maxFileField {
		r.BootFileName = name
	}
}

// fit4 shortens r, the reply to m, to the size that the client accepts (RFC 2132, section 9.10)
// and that the MTU permits: a client would drop a longer message and get no address. It removes
// free options, the last ones first, and then domains from the search list. It returns the
// codes of the options that are incomplete.
func fit4(r, m *dhcpv4.DHCPv4, nw vm.Network) (incomplete []int) {
	limit := minMaxMessage
	if accepted, err := m.MaxMessageSize(); err == nil {
		limit = max(limit, int(accepted))
	}
	mtu := usualMTU
	if nw.MTU != 0 {
		mtu = nw.MTU
	}
	limit = min(limit, mtu) - headers
	for _, o := range slices.Backward(nw.DHCPOptions) {
		if len(r.ToBytes()) <= limit {
			return incomplete
		}
		code := dhcpv4.GenericOptionCode(o.Code)
		if r.Options.Has(code) {
			r.Options.Del(code)
			incomplete = append(incomplete, o.Code)
		}
	}
	over := len(r.ToBytes()) - limit
	list := r.Options.Get(dhcpv4.OptionDNSDomainSearchList)
	if over <= 0 || list == nil {
		return incomplete
	}
	if list = searchList4(nw.SearchList(), len(list)-over); list != nil {
		r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionDNSDomainSearchList, list))
	} else {
		r.Options.Del(dhcpv4.OptionDNSDomainSearchList)
	}
	return append(incomplete, int(dhcpv4.OptionDNSDomainSearchList.Code()))
}
