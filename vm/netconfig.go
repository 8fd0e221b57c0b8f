package vm

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"go.yaml.in/yaml/v3"
)

// checkNetworkConfig returns a [Fault] of code [CodeInvalid] if config is not a network config of
// version 1 or 2 that cloud-init can apply. An empty config is valid.
func checkNetworkConfig(field, config string) error {
	if config == "" {
		return nil
	}
	if err := checkText(field, config, maxNetworkConfig); err != nil {
		return err
	}
	n, err := parseYAML(config)
	if err == nil {
		err = checkNetwork(n)
	}
	if err != nil {
		return InvalidField(field, "%v", err)
	}
	return nil
}

// checkNetwork checks the root of a network config.
func checkNetwork(n *yaml.Node) error {
	if inner := valueOf(n, "network"); inner != nil {
		n = inner
	}
	if err := mustBe(n, yaml.MappingNode, "the document"); err != nil {
		return err
	}
	config, version := valueOf(n, "config"), valueOf(n, "version")
	switch {
	case config != nil && config.Value == "disabled":
		return nil
	case version == nil:
		return lineFaultf(n.Line, "version: 1 or version: 2 must be here or under the key network")
	case yamlTag(version) != "int" || version.Value != "1" && version.Value != "2":
		return lineFaultf(version.Line, "version must be 1 or 2")
	}
	if err := checkNumbers(n); err != nil {
		return err
	}
	if version.Value == "1" {
		return checkNetworkV1(n, config)
	}
	return checkNetworkV2(n)
}

// kindNames names the kinds of nodes in errors.
var kindNames = map[yaml.Kind]string{
	yaml.MappingNode:  "a mapping",
	yaml.SequenceNode: "a list",
}

// mustBe returns an error unless n is of a kind.
func mustBe(n *yaml.Node, kind yaml.Kind, what string) error {
	if n = resolve(n); n.Kind != kind {
		return lineFaultf(n.Line, "%s must be %s", what, kindNames[kind])
	}
	return nil
}

// checkNumbers returns an error if a value with colons, such as a hardware address, is a number
// to YAML 1.1. No setting of a network is a number of the base 60.
func checkNumbers(n *yaml.Node) error {
	if tag := yamlTag(n); n.Kind == yaml.ScalarNode && (tag == "int" || tag == "float") && base60.MatchString(n.Value) {
		return lineFaultf(n.Line, "%s without quotes is a number of the base 60 to cloud-init: write %q", n.Value, n.Value)
	}
	for _, c := range n.Content {
		if err := checkNumbers(c); err != nil {
			return err
		}
	}
	return nil
}

// eachPair calls f for every key and value of a mapping until it fails.
func eachPair(n *yaml.Node, f func(key, value *yaml.Node) error) error {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if err := f(resolve(n.Content[i]), resolve(n.Content[i+1])); err != nil {
			return err
		}
	}
	return nil
}

// The keys of a network config of version 2: those of netplan, to which cloud-init passes the
// config where it is installed, and which ignores the whole config if it does not know one.
var (
	devicesV2 = []string{"ethernets", "bonds", "bridges", "vlans", "wifis", "tunnels", "vrfs", "modems",
		"dummy-devices", "virtual-ethernets", "nm-devices"}
	keysV2     = append([]string{"version", "renderer", "openvswitch"}, devicesV2...)
	deviceKeys = strings.Fields("renderer dhcp4 dhcp6 ipv6-mtu ipv6-privacy link-local ignore-carrier critical " +
		"dhcp-identifier dhcp4-overrides dhcp6-overrides accept-ra addresses ipv6-address-generation " +
		"ipv6-address-token gateway4 gateway6 nameservers macaddress mtu optional optional-addresses " +
		"activation-mode routes routing-policy match set-name wakeonlan emit-lldp receive-checksum-offload " +
		"transmit-checksum-offload tcp-segmentation-offload tcp6-segmentation-offload " +
		"generic-segmentation-offload generic-receive-offload large-receive-offload openvswitch auth link " +
		"virtual-function-count embedded-switch-mode delay-virtual-functions-rebind infiniband-mode " +
		"regulatory-domain networkmanager interfaces parameters id access-points wakeonwlan mode local remote " +
		"ttl key keys peers mark port type-of-service mac-learning ageing aging limit arp-proxy short-circuit " +
		"notifications checksums extensions flow-label do-not-fragment hardware-offload neigh-suppress " +
		"table peer ra-overrides apn auto-config device-id network-id number password pin sim-id " +
		"sim-operator-id username hairpin port-mac-learning bond_interfaces")
	matchKeys = []string{"macaddress", "name", "driver", "path"}
)

// knownKey returns an error if key is none of the known ones.
func knownKey(key *yaml.Node, known []string, what string) error {
	if slices.Contains(known, key.Value) {
		return nil
	}
	hint := ""
	if near := nearestWord(key.Value, known); near != "" {
		hint = ": did you mean " + near + "?"
	}
	return lineFaultf(key.Line, "%.60q is not a key of %s%s", key.Value, what, hint)
}

// nearestWord returns the known word that differs least from word, in at most a third of its
// letters, or "".
func nearestWord(word string, known []string) string {
	best, distance := "", min(len(word), 60)/3+1
	for _, k := range known {
		if d := levenshtein.ComputeDistance(word[:min(len(word), 60)], k); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// checkNetworkV2 checks a network config of version 2.
func checkNetworkV2(n *yaml.Node) error {
	return eachPair(n, func(key, value *yaml.Node) error {
		if err := knownKey(key, keysV2, "a network config of version 2"); err != nil {
			return err
		}
		if !slices.Contains(devicesV2, key.Value) {
			return nil
		}
		if err := mustBe(value, yaml.MappingNode, key.Value); err != nil {
			return err
		}
		return eachPair(value, checkDevice)
	})
}

// checkDevice checks a device of a network config of version 2.
func checkDevice(name, n *yaml.Node) error {
	what := "the device " + fmt.Sprintf("%.60s", name.Value)
	if n.Kind != yaml.MappingNode {
		return lineFaultf(n.Line, "%s must be a mapping: write {} for one without settings", what)
	}
	return eachPair(n, func(key, value *yaml.Node) error {
		if err := knownKey(key, deviceKeys, "a device"); err != nil {
			return err
		}
		return checkSetting(key, value)
	})
}

// checkSetting checks a setting of a device of version 2.
func checkSetting(key, value *yaml.Node) error {
	switch key.Value {
	case "match":
		if err := mustBe(value, yaml.MappingNode, "match"); err != nil {
			return err
		}
		return eachPair(value, func(key, value *yaml.Node) error {
			if err := knownKey(key, matchKeys, "match"); err != nil {
				return err
			}
			if key.Value == "macaddress" {
				return checkMAC(key, value)
			}
			return nil
		})
	case "macaddress":
		if slices.Contains([]string{"permanent", "random", "stable", "preserve", "stable-ssid"}, value.Value) {
			return nil
		}
		return checkMAC(key, value)
	case "addresses":
		return eachEntry(key, value, func(e *yaml.Node) error {
			if e.Kind == yaml.MappingNode && len(e.Content) > 0 { // an address with options
				e = resolve(e.Content[0])
			}
			return checkAddress(key, e)
		})
	case "gateway4", "gateway6":
		return checkAddress(key, value)
	case "nameservers":
		if err := mustBe(value, yaml.MappingNode, "nameservers"); err != nil {
			return err
		}
		return eachPair(value, func(key, value *yaml.Node) error {
			if err := knownKey(key, []string{"addresses", "search"}, "nameservers"); err != nil {
				return err
			}
			return eachEntry(key, value, func(e *yaml.Node) error {
				if key.Value == "search" {
					return nil
				}
				return checkAddress(key, e)
			})
		})
	case "routes":
		return eachEntry(key, value, func(e *yaml.Node) error { return checkRoute(e, "to") })
	case "parameters", "dhcp4-overrides", "dhcp6-overrides":
		return mustBe(value, yaml.MappingNode, key.Value)
	case "interfaces":
		return mustBe(value, yaml.SequenceNode, key.Value)
	}
	return nil
}

// eachEntry calls f for every entry of a list.
func eachEntry(key, n *yaml.Node, f func(e *yaml.Node) error) error {
	if err := mustBe(n, yaml.SequenceNode, key.Value); err != nil {
		return err
	}
	for _, e := range n.Content {
		if err := f(resolve(e)); err != nil {
			return err
		}
	}
	return nil
}

// checkRoute checks a route. to is the key of its destination.
func checkRoute(n *yaml.Node, to string) error {
	if err := mustBe(n, yaml.MappingNode, "a route"); err != nil {
		return err
	}
	target := valueOf(n, to)
	switch {
	case target == nil:
		return lineFaultf(n.Line, "a route must have the key %s", to)
	case target.Value == "default":
		return nil
	}
	return checkAddress(&yaml.Node{Value: to}, target)
}

// checkMAC checks a hardware address.
func checkMAC(key, n *yaml.Node) error {
	if _, err := net.ParseMAC(n.Value); err != nil || yamlTag(n) != "str" {
		return lineFaultf(n.Line, "%s must be a hardware address in quotes, such as \"52:54:00:12:34:56\"", key.Value)
	}
	return nil
}

// checkAddress checks an IP address with or without the length of its prefix or a netmask.
func checkAddress(key, n *yaml.Node) error {
	address, mask, hasMask := strings.Cut(n.Value, "/")
	a, err := netip.ParseAddr(address)
	ok := n.Kind == yaml.ScalarNode && err == nil
	if ok && hasMask {
		_, err := netip.ParsePrefix(n.Value)
		_, asMask := netip.ParseAddr(mask)
		ok = err == nil || asMask == nil
	}
	if !ok || a.Zone() != "" {
		return lineFaultf(n.Line, "%s: %.60q is not an IP address such as 192.0.2.10/24", key.Value, n.Value)
	}
	return nil
}

// requiredV1 has the keys that an entry of each type must have in a network config of version 1.
var requiredV1 = map[string][]string{
	"physical":   {"name"},
	"loopback":   {"name"},
	"infiniband": {"name"},
	"vlan":       {"name", "vlan_id", "vlan_link"},
	"bond":       {"name", "bond_interfaces", "params"},
	"bridge":     {"name", "bridge_interfaces"},
	"nameserver": {"address"},
	"route":      {"destination"},
}

// checkNetworkV1 checks a network config of version 1. config is its list of entries, or nil.
func checkNetworkV1(n, config *yaml.Node) error {
	if config == nil {
		return lineFaultf(n.Line, "a network config of version 1 must have the key config")
	}
	return eachEntry(&yaml.Node{Value: "config"}, config, checkEntryV1)
}

// checkEntryV1 checks an entry of a network config of version 1.
func checkEntryV1(n *yaml.Node) error {
	if err := mustBe(n, yaml.MappingNode, "an entry of config"); err != nil {
		return err
	}
	kind := valueOf(n, "type")
	if kind == nil || requiredV1[kind.Value] == nil {
		return lineFaultf(n.Line, "the type of an entry must be one of %s", strings.Join(sortedKeys(requiredV1), ", "))
	}
	for _, key := range requiredV1[kind.Value] {
		if valueOf(n, key) == nil {
			return lineFaultf(n.Line, "an entry of type %s must have the key %s", kind.Value, key)
		}
	}
	if kind.Value == "route" {
		return checkRoute(n, "destination")
	}
	return eachPair(n, func(key, value *yaml.Node) error {
		switch key.Value {
		case "mac_address":
			return checkMAC(key, value)
		case "params":
			return mustBe(value, yaml.MappingNode, key.Value)
		case "subnets":
			return eachEntry(key, value, checkSubnet)
		}
		return nil
	})
}

// checkSubnet checks a subnet of an entry of version 1.
func checkSubnet(n *yaml.Node) error {
	if err := mustBe(n, yaml.MappingNode, "a subnet"); err != nil {
		return err
	}
	kind, address := valueOf(n, "type"), valueOf(n, "address")
	switch {
	case kind == nil || yamlTag(kind) != "str":
		return lineFaultf(n.Line, "a subnet must have the key type, such as dhcp or static")
	case address == nil && (kind.Value == "static" || kind.Value == "static6"):
		return lineFaultf(n.Line, "a subnet of type %s must have the key address", kind.Value)
	case address != nil:
		if err := checkAddress(&yaml.Node{Value: "address"}, address); err != nil {
			return err
		}
	}
	if routes := valueOf(n, "routes"); routes != nil {
		return eachEntry(&yaml.Node{Value: "routes"}, routes, func(e *yaml.Node) error {
			if valueOf(e, "network") != nil {
				return checkRoute(e, "network")
			}
			return checkRoute(e, "destination")
		})
	}
	return nil
}

// sortedKeys returns the keys of m in order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
