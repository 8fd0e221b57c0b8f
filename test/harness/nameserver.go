package harness

import (
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// ServeDNS runs a name server in the namespace until the test ends.
func (n *Namespace) ServeDNS() {
	n.T.Helper()
	n.Must("listen for DNS", func() error {
		packets, err := net.ListenPacket("udp4", ":53")
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp4", ":53")
		if err != nil {
			packets.Close()
			return err
		}
		for _, s := range []*dns.Server{{PacketConn: packets}, {Listener: listener}} {
			s.Handler = dns.HandlerFunc(answerName)
			served := make(chan error, 1)
			go func() { served <- s.ActivateAndServe() }()
			n.T.Cleanup(func() {
				packets.Close()
				listener.Close()
				<-served
			})
		}
		return nil
	})
}

// answerName answers one query.
func answerName(w dns.ResponseWriter, r *dns.Msg) {
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable = true
	if len(r.Question) != 1 || !strings.HasSuffix(r.Question[0].Name, "example.") {
		m.Rcode = dns.RcodeNameError
		_ = w.WriteMsg(m)
		return
	}
	q := r.Question[0]
	head := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 60}
	peer, _, _ := net.SplitHostPort(w.RemoteAddr().String()) // a peer always has a port
	switch q.Qtype {
	case dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: head, A: net.ParseIP(OutsideAddress)}}
	case dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: head, AAAA: net.ParseIP("2001:db8::2")}}
	case dns.TypeTXT:
		m.Answer = []dns.RR{&dns.TXT{Hdr: head, Txt: []string{peer}}}
	}
	_ = w.WriteMsg(m)
}

// QueryDNS sends a query to a name server from the namespace and returns the sorted
// answers and the response code. A, AAAA and PTR records are returned as their values,
// others as whole records.
func (n *Namespace) QueryDNS(server, name string, kind uint16) ([]string, int, error) {
	var reply *dns.Msg
	err := n.Try(func() error {
		// dns.Client.Exchange may dial in another goroutine, outside of the namespace.
		conn, err := dns.DialTimeout("udp", net.JoinHostPort(server, "53"), 3*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)); err != nil {
			return err
		}
		reply, err = conn.ReadMsg()
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	var found []string
	for _, rr := range reply.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			found = append(found, rr.A.String())
		case *dns.AAAA:
			found = append(found, rr.AAAA.String())
		case *dns.PTR:
			found = append(found, rr.Ptr)
		default:
			found = append(found, rr.String())
		}
	}
	slices.Sort(found)
	return found, reply.Rcode, nil
}
