package test

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Addresses of the lab, of the blocks for documentation (RFC 5737, RFC 3849).
const (
	hostAddress    = "203.0.113.1"
	outsideAddress = "203.0.113.2"
	otherAddress   = "203.0.113.3"
	farAddress     = "198.51.100.1" // of outside too, behind its gateway
)

// A lab is a small world: a host for the daemon, the outside with its servers,
// which the host's default route leads to, and another host beside it.
//
//	host (up0) ── outside (lan0) ── other (up0)
type lab struct {
	host, outside, other *namespace
}

// newLab makes a lab. Outside answers as `vmt serve` says, and knows names: A and
// AAAA of *.example, and TXT of who.example, which is the asker's address.
func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes networks; run the tests as root")
	}
	l := &lab{host: newNamespace(t, "host"), outside: newNamespace(t, "outside"), other: newNamespace(t, "other")}
	l.outside.bridge("lan0")
	l.outside.address("lan0", outsideAddress+"/24", "2001:db8::2/64")
	l.outside.address("lo", farAddress+"/32")
	for i, n := range []*namespace{l.host, l.other} {
		n.plug("up0", l.outside, "lan0")
		n.address("up0", []string{hostAddress, otherAddress}[i]+"/24", []string{"2001:db8::1/64", "2001:db8::3/64"}[i])
		n.route("", outsideAddress)
	}
	l.host.replace("/etc/resolv.conf", "nameserver "+outsideAddress+"\n")
	l.host.write("net/ipv4/ip_forward", "0") // the kernel may copy it from where the test runs
	l.outside.serve()
	l.outside.names()
	return l
}

// daemon returns a daemon in the lab's host that answers, with the default
// network on a bridge of its own and guests that have a network.
func (l *lab) daemon(t testing.TB, env ...string) *daemon {
	t.Helper()
	d := newDaemon(t, append([]string{"VMAN_NETWORK_MODE=bridge", bootDisk("net")}, env...)...)
	d.host = l.host
	d.start()
	d.template()
	return d
}

// part runs a part of a test: what fails in it is the part's, also of the
// namespaces, the daemon and its guests.
func (l *lab) part(d *daemon, name string, f func(t *testing.T)) {
	group, ok := d.t.(*testing.T)
	if !ok {
		d.t.Fatal("only a test has parts")
	}
	group.Run(name, func(t *testing.T) {
		defer l.tells(d, group)
		l.tells(d, t)
		f(t)
	})
}

// tells makes t the test that the failures are of.
func (l *lab) tells(d *daemon, t testing.TB) {
	d.tells(t)
	l.host.t, l.outside.t, l.other.t = t, t, t
}

// serve runs the services of `vmt serve` in the namespace until the test ends.
func (n *namespace) serve() {
	n.t.Helper()
	cmd := n.background("serve")
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.start(cmd); err != nil {
		n.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		n.t.Fatalf("%s: the services said %q: %v", n.name, line, err)
	}
}

// names runs a name server in the namespace until the test ends.
func (n *namespace) names() {
	n.t.Helper()
	n.must("listen for DNS", func() error {
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
			n.t.Cleanup(func() {
				packets.Close()
				listener.Close()
				<-served
			})
		}
		return nil
	})
}

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
		m.Answer = []dns.RR{&dns.A{Hdr: head, A: net.ParseIP(outsideAddress)}}
	case dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: head, AAAA: net.ParseIP("2001:db8::2")}}
	case dns.TypeTXT:
		m.Answer = []dns.RR{&dns.TXT{Hdr: head, Txt: []string{peer}}}
	}
	_ = w.WriteMsg(m)
}

// ask asks the name server at an address, from the namespace, and returns the
// answers as text: of an address or a name, that; of another type, the record.
func (n *namespace) ask(server, name string, kind uint16) ([]string, int, error) {
	var reply *dns.Msg
	err := n.try(func() error {
		// Not in a goroutine of its own, as of dns.Client.Exchange by a name.
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

// A sniffer has what arrived on an interface since it was made.
type sniffer struct {
	mu     sync.Mutex
	frames [][]byte
}

// sniff captures what arrives on an interface of the namespace until the test ends.
func (n *namespace) sniff(name string) *sniffer {
	n.t.Helper()
	cmd := n.background("capture", name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.start(cmd); err != nil {
		n.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() || lines.Text() != "capturing" {
		n.t.Fatalf("%s: the capture on %s said %q", n.name, name, lines.Text())
	}
	s := &sniffer{}
	go func() {
		for lines.Scan() {
			frame, err := hex.DecodeString(lines.Text())
			if err != nil {
				continue
			}
			s.mu.Lock()
			s.frames = append(s.frames, frame)
			s.mu.Unlock()
		}
	}()
	return s
}

// saw reports how many frames had the words in them.
func (s *sniffer) saw(words string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return count(s.frames, words)
}

func count(frames [][]byte, words string) int {
	n := 0
	for _, f := range frames {
		if strings.Contains(string(f), words) {
			n++
		}
	}
	return n
}

// answers waits until the HTTP server at an address answers the namespace, and
// returns what.
func (n *namespace) answers(address string) string {
	n.t.Helper()
	var body string
	eventually(n.t, 20*time.Second, fmt.Sprintf("%s to get an answer of %s", n.name, address), func() error {
		var err error
		body, err = n.get(address)
		return err
	})
	return body
}

// TestTheLabIsASmallWorld is about the tests' own ground: what they make of
// namespaces does what they think.
func TestTheLabIsASmallWorld(t *testing.T) {
	l := newLab(t)
	for _, n := range []*namespace{l.host, l.other, l.outside} {
		if got, err := n.get(farAddress + ":80"); err != nil {
			t.Errorf("%s does not reach far away: %v", n.name, err)
		} else if n == l.other && got[len(got)-len(otherAddress):] != otherAddress {
			t.Errorf("other is seen as %q", got)
		}
	}
	if got, _, err := l.other.ask(outsideAddress, "www.example", dns.TypeA); err != nil || !slices.Equal(got, []string{outsideAddress}) {
		t.Errorf("www.example is %v, %v", got, err)
	}
	if _, code, err := l.other.ask(outsideAddress, "www.nowhere", dns.TypeA); err != nil || code != dns.RcodeNameError {
		t.Errorf("www.nowhere answers %d, %v", code, err)
	}
	if l.host.sysctl("net/ipv4/ip_forward") != "0" {
		t.Error("the host forwards before anybody asked it to")
	}
	s := l.outside.sniff("lan0")
	frame := []byte("\xff\xff\xff\xff\xff\xff\x52\x00\x00\x00\x00\x01\x88\xb5 a frame of the lab's own.")
	if _, err := l.other.vmt(hex.EncodeToString(frame), "send", "up0"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the frame to arrive", func() error {
		if s.saw("of the lab's own") == 0 {
			return errNotYet
		}
		return nil
	})
}
