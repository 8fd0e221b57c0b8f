package harness

import (
	"strings"

	"github.com/google/nftables"
)

// Firewall returns a connection to nftables in the namespace.
func (n *Namespace) Firewall() *nftables.Conn {
	n.T.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(n.net.Fd())))
	if err != nil {
		n.T.Fatal(err)
	}
	return c
}

// Tables returns the nftables tables of vmand in the namespace.
func (n *Namespace) Tables() []*nftables.Table {
	n.T.Helper()
	all, err := n.Firewall().ListTables()
	if err != nil {
		n.T.Fatal(err)
	}
	var ours []*nftables.Table
	for _, t := range all {
		if strings.HasPrefix(t.Name, "vman") {
			ours = append(ours, t)
		}
	}
	return ours
}
