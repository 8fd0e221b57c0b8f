package config

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// vmand accepts the environment of VMAN, the system that it replaces, where both have the
// same setting: settings have an alias and a spelling for that.

// successors maps the variables of VMAN without such a setting to what replaces them.
var successors = map[string]string{
	"VMAN_LOG_FILE":    "vmand logs to stderr, which systemd keeps in the journal (journalctl -u vmand)",
	"VMAN_LOG_DIR":     "vmand logs to stderr, which systemd keeps in the journal (journalctl -u vmand)",
	"VMAN_BRIDGE_NAME": `create the network with POST /networks {"mode": "bridge", "bridge": …}`,
	"VMAN_VLAN_ID":     `create the network with POST /networks {"mode": "bridge", "vlan_id": …}`,
	"VMAN_SUBNET":      `create the network with POST /networks {"mode": "nat", "subnet": …}`,
	"VMAN_GATEWAY":     `create the network with POST /networks {"mode": "nat", "gateway": …}`,
	"VMAN_DNS":         `create the network with POST /networks {"mode": "nat", "dns": […]}`,
}

// lowerWord returns a word of VMAN in lower case.
func lowerWord(value string) string { return strings.ToLower(value) }

// levelWord returns the log level of vmand for one of VMAN, such as INFO or WARNING.
func levelWord(value string) string {
	switch word := strings.ToLower(value); word {
	case "warning":
		return "warn"
	case "critical":
		return "error"
	default:
		return word
	}
}

// secondsWord returns the duration for a number of seconds.
func secondsWord(value string) string {
	if n, err := strconv.ParseFloat(value, 64); err == nil && n >= 0 {
		return value + "s"
	}
	return value
}

// value returns the value of a setting. A value of the environment in the spelling of VMAN
// is translated, with a warning.
func (in input) value(s setting) (value any, warning string) {
	value = in.viper.Get(s.key)
	text, isText := value.(string)
	source := in.source(s)
	fromAlias := s.alias != "" && source == s.alias
	if !isText || !fromAlias && source != s.variable() {
		return value, ""
	}
	translated := text
	if s.spelling != nil {
		translated = s.spelling(text)
	}
	switch {
	case fromAlias:
		warning = fmt.Sprintf("%s (environment): is the name of VMAN; write %s=%s", s.alias, s.variable(), translated)
	case translated != text:
		warning = fmt.Sprintf("%s=%s (environment): is the spelling of VMAN; write %s=%s", s.variable(), text, s.variable(), translated)
	}
	return translated, warning
}

// source returns where the value of a setting comes from: a flag, a variable, the file or
// the defaults.
func (in input) source(s setting) string {
	if in.flags.Changed(s.flag()) {
		return "--" + s.flag()
	}
	for _, name := range s.variables() {
		if _, ok := os.LookupEnv(name); ok {
			return name
		}
	}
	if holds(in.given, s.key) {
		return in.file
	}
	return "default"
}
