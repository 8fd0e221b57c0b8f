package server

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"vmand/openapi"
	"vmand/vm"
)

// An appender writes its own JSON.
type appender interface {
	appendJSON(b []byte) []byte
}

// encode appends the JSON of v to what e has gathered.
func (e *encoder) encode(v any) error {
	if a, ok := v.(appender); ok {
		e.buf.Write(a.appendJSON(e.buf.AvailableBuffer()))
		return nil
	}
	return e.json.Encode(v)
}

// A wireVM is a VM as the API spells it: byte for byte what encoding/json makes
// of the [openapi.VM] with its values, which a test asserts. It is written by
// hand because VMs are what is read most, and the general encoder takes longer
// over a list of them than the database does.
type wireVM struct {
	*vm.VM
	agent vm.Agent
}

// wire returns v with what is known of its agent.
func (s *Server) wire(v *vm.VM) *wireVM { return &wireVM{v, s.Guests.Agent(v.ID)} }

func (v *wireVM) appendJSON(b []byte) []byte {
	b = appendNullable(append(b, `{"accel":`...), string(v.Accel))
	b = appendNullableTime(append(b, `,"agent":{"last_seen_at":`...), v.agent.LastSeenAt)
	b = appendString(append(b, `,"state":`...), string(v.agent.State))
	b = appendNullable(append(b, `,"version":`...), v.agent.Version)
	b = append(b, '}')
	b = strconv.AppendBool(append(b, `,"autostart":`...), v.Autostart.Enabled)
	b = strconv.AppendInt(append(b, `,"autostart_delay":`...), int64(v.Autostart.Delay/time.Second), 10)
	b = strconv.AppendInt(append(b, `,"autostart_order":`...), int64(v.Autostart.Order), 10)
	b = appendBoot(append(b, `,"boot":`...), &v.Boot)
	b = appendList(append(b, `,"cdroms":`...), v.CDROMs, appendCDROM)
	b = appendTime(append(b, `,"created_at":`...), v.CreatedAt)
	b = appendString(append(b, `,"description":`...), v.Description)
	b = appendString(append(b, `,"desired_state":`...), string(v.Desired))
	b = appendString(append(b, `,"id":`...), v.ID)
	b = appendNullable(append(b, `,"image":`...), v.Root.Image)
	b = appendLabels(append(b, `,"labels":`...), v.Labels)
	ip, source := v.LocalIP()
	b = appendAddr(append(b, `,"local_ip":`...), ip)
	b = appendNullable(append(b, `,"local_ip_source":`...), string(source))
	b = appendNullable(append(b, `,"machine_type":`...), v.Machine)
	b = appendNullableTime(append(b, `,"next_restart_at":`...), v.RestartAt)
	b = appendList(append(b, `,"nics":`...), v.NICs, appendNIC)
	b = appendList(append(b, `,"port_forwards":`...), v.Forwards, appendForward)
	b = strconv.AppendBool(append(b, `,"reachable_from_host":`...), v.ReachableFromHost())
	b = strconv.AppendInt(append(b, `,"restart_count":`...), int64(v.Restarts), 10)
	b = appendString(append(b, `,"restart_policy":`...), string(v.Restart))
	b = strconv.AppendFloat(append(b, `,"root_disk_size":`...), gib(v.Root.SizeMiB), 'f', -1, 64)
	b = appendNullableTime(append(b, `,"started_at":`...), v.StartedAt)
	b = appendString(append(b, `,"state":`...), string(v.State))
	b = appendNullable(append(b, `,"state_reason":`...), string(v.Reason))
	b = appendNullable(append(b, `,"state_reason_detail":`...), v.ReasonDetail)
	b = appendTime(append(b, `,"updated_at":`...), v.UpdatedAt)
	b = appendString(append(b, `,"uuid":`...), v.UUID)
	b = strconv.AppendInt(append(b, `,"vm_template":{"cpu_count":`...), int64(v.Template.CPUCount), 10)
	b = appendString(append(b, `,"name":`...), v.Template.Name)
	b = strconv.AppendInt(append(b, `,"ram_amount":`...), int64(v.Template.RAMMiB), 10)
	return append(b, "}}\n"...)
}

// appendBoot appends the times of a boot, as they are in a VM.
func appendBoot(b []byte, boot *vm.Boot) []byte {
	b = appendNullableTime(append(b, `{"agent_at":`...), boot.Agent)
	at, result := cloudInitOf(boot)
	b = appendNullableTime(append(b, `,"cloud_init_at":`...), at)
	b = appendNullable(append(b, `,"cloud_init_result":`...), string(result))
	b = appendNullableTime(append(b, `,"dhcp_ack_at":`...), boot.DHCP)
	b = appendNullableTime(append(b, `,"first_serial_at":`...), boot.Serial)
	b = appendNullableTime(append(b, `,"first_tcp_at":`...), boot.TCP)
	b = appendNullableTime(append(b, `,"qmp_ready_at":`...), boot.Monitor)
	b = appendNullableTime(append(b, `,"spawned_at":`...), boot.Spawned)
	return append(b, '}')
}

// cloudInitOf returns when cloud-init was through, and how that ended.
func cloudInitOf(boot *vm.Boot) (at time.Time, result openapi.BootCloudInitResult) {
	switch {
	case !boot.CloudInit.IsZero():
		return boot.CloudInit, openapi.BootCloudInitResultDone
	case !boot.CloudInitFailed.IsZero():
		return boot.CloudInitFailed, openapi.BootCloudInitResultError
	}
	return at, result
}

// A wireCDROM is a CD-ROM drive, and wireCDROMs are those of a VM, as [wireVM] has
// them.
type (
	wireCDROM  vm.CDROM
	wireCDROMs []vm.CDROM
)

func (c *wireCDROM) appendJSON(b []byte) []byte { return append(appendCDROM(b, (*vm.CDROM)(c)), '\n') }
func (c wireCDROMs) appendJSON(b []byte) []byte { return append(appendList(b, c, appendCDROM), '\n') }

func appendCDROM(b []byte, c *vm.CDROM) []byte {
	b = append(b, `{"boot_index":`...)
	if c.BootIndex == 0 {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendInt(b, int64(c.BootIndex), 10)
	}
	b = appendString(append(b, `,"id":`...), c.ID)
	b = appendNullable(append(b, `,"image":`...), c.Image)
	return append(b, '}')
}

// A wireNIC is a NIC, and wireNICs are those of a VM, as [wireVM] has them.
type (
	wireNIC  vm.NIC
	wireNICs []vm.NIC
)

func (n *wireNIC) appendJSON(b []byte) []byte { return append(appendNIC(b, (*vm.NIC)(n)), '\n') }
func (n wireNICs) appendJSON(b []byte) []byte { return append(appendList(b, n, appendNIC), '\n') }

func appendNIC(b []byte, n *vm.NIC) []byte {
	link := openapi.NICLinkUp
	if n.LinkDown {
		link = openapi.NICLinkDown
	}
	b = appendAddr(append(b, `{"ip":`...), n.IP)
	b = appendAddr(append(b, `,"ipv6":`...), n.IPv6)
	b = appendString(append(b, `,"link":`...), string(link))
	b = appendString(append(b, `,"mac":`...), n.MAC)
	b = appendString(append(b, `,"mode":`...), string(n.Mode))
	b = appendString(append(b, `,"model":`...), string(n.Model))
	b = appendString(append(b, `,"network":`...), n.Network)
	b = strconv.AppendInt(append(b, `,"rate_in":`...), int64(n.RateIn), 10)
	b = strconv.AppendInt(append(b, `,"rate_out":`...), int64(n.RateOut), 10)
	b = appendNullable(append(b, `,"reason":`...), n.Reason)
	b = strconv.AppendInt(append(b, `,"slot":`...), int64(n.Slot), 10)
	b = appendString(append(b, `,"state":`...), string(n.State))
	return append(b, '}')
}

// A wireForward is a port forward, and wireForwards are those of a VM, as
// [wireVM] has them.
type (
	wireForward  vm.PortForward
	wireForwards []vm.PortForward
)

func (f *wireForward) appendJSON(b []byte) []byte {
	return append(appendForward(b, (*vm.PortForward)(f)), '\n')
}
func (f wireForwards) appendJSON(b []byte) []byte {
	return append(appendList(b, f, appendForward), '\n')
}

func appendForward(b []byte, f *vm.PortForward) []byte {
	b = strconv.AppendInt(append(b, `{"guest_port":`...), int64(f.GuestPort), 10)
	b = appendAddr(append(b, `,"host_address":`...), f.HostAddress)
	b = strconv.AppendInt(append(b, `,"host_port":`...), int64(f.HostPort), 10)
	b = appendString(append(b, `,"id":`...), f.ID)
	b = strconv.AppendInt(append(b, `,"nic":`...), int64(f.Slot), 10)
	b = appendString(append(b, `,"protocol":`...), string(f.Protocol))
	return append(b, '}')
}

// appendList appends an array.
func appendList[T any](b []byte, list []T, one func([]byte, *T) []byte) []byte {
	b = append(b, '[')
	for i := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = one(b, &list[i])
	}
	return append(b, ']')
}

// appendAddr appends an address, or null for the zero one.
func appendAddr(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(b, "null"...)
	}
	return append(a.AppendTo(append(b, '"')), '"')
}

// appendNullable appends a string, or null for an empty one.
func appendNullable(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	return appendString(b, s)
}

// appendString appends a JSON string. What needs no escaping, which is nearly
// everything, is copied.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == 0x7f || c == '<' || c == '>' || c == '&' {
			e := getEncoder()
			defer e.free()
			_ = e.json.Encode(s) // a string can always be encoded
			return append(b, e.buf.Bytes()[:e.buf.Len()-1]...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// appendLabels appends an object in the order of its keys.
func appendLabels(b []byte, labels map[string]string) []byte {
	if len(labels) == 0 {
		return append(b, "{}"...)
	}
	comma := byte('{')
	for _, key := range sortedNames(labels) {
		b = appendString(append(b, comma), key)
		b = appendString(append(b, ':'), labels[key])
		comma = ','
	}
	return append(b, '}')
}

// appendNullableTime appends a time, or null for the zero time.
func appendNullableTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, "null"...)
	}
	return appendTime(b, t)
}

// appendTime appends a time as [openapi.Time] spells it.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	b = appendDigits(append(b, '"'), year, 4)
	b = appendDigits(append(b, '-'), int(month), 2)
	b = appendDigits(append(b, '-'), day, 2)
	b = appendDigits(append(b, 'T'), hour, 2)
	b = appendDigits(append(b, ':'), minute, 2)
	b = appendDigits(append(b, ':'), second, 2)
	b = appendDigits(append(b, '.'), t.Nanosecond()/1e6, 3)
	return append(b, `Z"`...)
}

// appendDigits appends the last width digits of n.
func appendDigits(b []byte, n, width int) []byte {
	var digits [4]byte
	for i := width - 1; i >= 0; i-- {
		digits[i] = byte('0' + n%10)
		n /= 10
	}
	return append(b, digits[:width]...)
}

// rawJSON is JSON that is sent as it is.
type rawJSON []byte

func (r rawJSON) appendJSON(b []byte) []byte { return append(b, r...) }

var (
	_ appender = (*wireVM)(nil)
	_ appender = (*wireCDROM)(nil)
	_ appender = wireCDROMs(nil)
	_ appender = (*wireNIC)(nil)
	_ appender = wireNICs(nil)
	_ appender = (*wireForward)(nil)
	_ appender = wireForwards(nil)
	_ appender = rawJSON(nil)
)
