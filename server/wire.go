package server

import (
	"cmp"
	"net/netip"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

// This file writes a VM and its parts with a [jsonBuffer]: the same bytes as
// encoding/json makes of the generated types, which a test asserts.

// A wireVM is a VM with the state of its guest agent, as the API shows it.
type wireVM struct {
	*vm.VM
	agent vm.Agent
}

// wire returns v together with the state of its guest agent.
func (s *Server) wire(v *vm.VM) *wireVM { return &wireVM{v, s.Guests.Agent(v.ID)} }

func (v *wireVM) appendJSON(b jsonBuffer) jsonBuffer {
	b = append(b, '{')
	b = b.nullableString("accel", string(v.Accel))
	b = b.nullableString("accel_reason", v.AccelReason)
	b = b.object("agent")
	b = b.nullableTime("last_seen_at", v.agent.LastSeenAt)
	b = b.string("state", string(v.agent.State))
	b = b.nullableString("version", v.agent.Version)
	b = b.end()
	b = b.bool("autostart", v.Autostart.Enabled)
	b = b.int("autostart_delay", int(v.Autostart.Delay/time.Second))
	b = b.int("autostart_order", v.Autostart.Order)
	b = appendBoot(b, &v.Boot)
	b = b.string("boot_device", cmp.Or(string(v.BootDevice), bootDeviceDisk))
	b = appendArray(b, "cdroms", v.CDROMs, appendCDROM)
	b = b.time("created_at", v.CreatedAt)
	b = b.string("description", v.Description)
	b = b.string("desired_state", string(v.Desired))
	b = b.string("id", v.ID)
	b = b.nullableString("image", v.Root.Image)
	b = b.stringMap("labels", v.Labels)
	ip, source := v.LocalIP()
	b = b.nullableAddr("local_ip", ip)
	b = b.nullableString("local_ip_source", string(source))
	b = b.nullableString("machine_type", v.Machine)
	b = b.nullableTime("next_restart_at", v.RestartAt)
	b = appendArray(b, "nics", v.NICs, appendNIC)
	b = appendArray(b, "port_forwards", v.Forwards, appendForward)
	b = b.bool("reachable_from_host", v.ReachableFromHost())
	b = b.int("restart_count", v.Restarts)
	b = b.string("restart_policy", string(v.Restart))
	b = b.float("root_disk_size", gib(v.Root.Bytes()))
	b = b.int("root_disk_size_bytes", int(v.Root.Bytes()))
	shutdown := v.Shutdown.OrDefault()
	b = b.string("shutdown_action", string(shutdown.Action))
	b = b.int("shutdown_timeout", int(shutdown.Timeout/time.Second))
	b = b.nullableTime("started_at", v.StartedAt)
	b = b.string("state", string(v.State))
	b = b.nullableString("state_reason", string(v.Reason))
	b = b.nullableString("state_reason_detail", v.ReasonDetail)
	b = b.time("updated_at", v.UpdatedAt)
	b = b.string("uuid", v.UUID)
	b = b.object("vm_template")
	b = b.int("cpu_count", v.Template.CPUCount)
	b = b.string("name", v.Template.Name)
	b = b.int("ram_amount", v.Template.RAMMiB)
	b = b.end()
	return b.end()
}

// appendBoot appends the member boot of a VM.
func appendBoot(b jsonBuffer, boot *vm.Boot) jsonBuffer {
	at, result := cloudInitOf(boot)
	b = b.object("boot")
	b = b.nullableTime("agent_at", boot.Agent)
	b = b.nullableTime("cloud_init_at", at)
	b = b.nullableString("cloud_init_result", string(result))
	b = b.nullableTime("dhcp_ack_at", boot.DHCP)
	b = b.nullableTime("first_serial_at", boot.Serial)
	b = b.nullableTime("first_tcp_at", boot.TCP)
	b = b.nullableTime("qmp_ready_at", boot.Monitor)
	b = b.nullableTime("spawned_at", boot.Spawned)
	return b.end()
}

// cloudInitOf returns when cloud-init ended and its result, or zero values if it
// has not ended.
func cloudInitOf(boot *vm.Boot) (at time.Time, result openapi.BootCloudInitResult) {
	switch {
	case !boot.CloudInit.IsZero():
		return boot.CloudInit, openapi.BootCloudInitResultDone
	case !boot.CloudInitFailed.IsZero():
		return boot.CloudInitFailed, openapi.BootCloudInitResultError
	}
	return at, result
}

func appendCDROM(b jsonBuffer, c *vm.CDROM) jsonBuffer {
	b = append(b, '{')
	if c.BootIndex == 0 {
		b = b.null("boot_index")
	} else {
		b = b.int("boot_index", c.BootIndex)
	}
	b = b.string("id", c.ID)
	b = b.nullableString("image", c.Image)
	return b.end()
}

func appendNIC(b jsonBuffer, n *vm.NIC) jsonBuffer {
	link := openapi.NICLinkUp
	if n.LinkDown {
		link = openapi.NICLinkDown
	}
	b = append(b, '{')
	b = appendArray(b, "extra_addresses", n.Extra, func(b jsonBuffer, p *netip.Prefix) jsonBuffer {
		return append(p.AppendTo(append(b, '"')), '"')
	})
	b = b.nullableAddr("ip", n.IP)
	b = b.nullableAddr("ipv6", n.IPv6)
	b = b.string("link", string(link))
	b = b.string("mac", n.MAC)
	b = b.string("mode", string(n.Mode))
	b = b.string("model", string(n.Model))
	b = b.string("network", n.Network)
	b = b.int("rate_in", n.RateIn)
	b = b.int("rate_out", n.RateOut)
	b = b.nullableString("reason", n.Reason)
	b = b.int("slot", n.Slot)
	b = b.string("state", string(n.State))
	return b.end()
}

func appendForward(b jsonBuffer, f *vm.PortForward) jsonBuffer {
	b = append(b, '{')
	b = b.int("guest_port", f.GuestPort)
	b = b.nullableAddr("host_address", f.HostAddress)
	b = b.int("host_port", f.HostPort)
	b = b.string("id", f.ID)
	b = b.int("nic", f.Slot)
	b = b.int("ports", f.Count())
	b = b.string("protocol", string(f.Protocol))
	return b.end()
}
