package cli

import (
	"strings"
	"testing"

	"vmand/openapi/client"
)

func TestParseForward(t *testing.T) {
	for arg, want := range map[string]client.CreatePortForward{
		"8080:80":               {HostPort: 8080, GuestPort: 80},
		"5353:53/udp":           {HostPort: 5353, GuestPort: 53, Protocol: new(client.CreatePortForwardProtocolUdp)},
		"127.0.0.1:8080:80":     {HostPort: 8080, GuestPort: 80, HostAddress: new("127.0.0.1")},
		"[::]:8080:80":          {HostPort: 8080, GuestPort: 80, HostAddress: new("::")},
		"8000-8009:80":          {HostPort: 8000, GuestPort: 80, Ports: new(10)},
		"8000-8009:9000-9009":   {HostPort: 8000, GuestPort: 9000, Ports: new(10)},
		"[fd00::1]:8000-8001:1": {HostPort: 8000, GuestPort: 1, Ports: new(2), HostAddress: new("fd00::1")},
	} {
		got, err := parseForward(arg)
		if err != nil {
			t.Errorf("%s: %v", arg, err)
			continue
		}
		if got.HostPort != want.HostPort || got.GuestPort != want.GuestPort || value(got.Ports) != value(want.Ports) ||
			value(got.HostAddress) != value(want.HostAddress) || value(got.Protocol) != value(want.Protocol) {
			t.Errorf("%s: %+v, want %+v", arg, got, want)
		}
	}
	for arg, want := range map[string]string{
		"80":              "is not a port forward",
		"0:80":            "not a port",
		"80:x":            "not a port",
		"80:70000":        "not a port",
		"90-80:1":         "ends before it begins",
		"80-90:1-5":       "11 ports of the host",
		"80-:1":           "not a port",
		"a:b:c:1-2-3:1-2": "not a port",
	} {
		if _, err := parseForward(arg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", arg, err, want)
		}
	}
}
