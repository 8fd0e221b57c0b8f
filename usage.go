package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// A commandLine is what vmand was called with.
type commandLine struct {
	settings *pflag.FlagSet
	file     string // --config
	check    bool   // --check-config
	version  bool
	help     bool
	command  string // such as backup, empty to serve
	operand  string // the command's FILE or VM
	console  consoleFlags
}

// parseArgs reads the command line. What the settings' flags are given is looked
// at together with their other sources.
func parseArgs(args []string) (commandLine, error) {
	c := commandLine{settings: pflag.NewFlagSet("vmand", pflag.ContinueOnError)}
	c.settings.Usage = func() {}
	c.settings.StringVar(&c.file, "config", "", "")
	c.settings.BoolVar(&c.check, "check-config", false, "")
	c.settings.BoolVar(&c.version, "version", false, "")
	c.settings.BoolVarP(&c.help, "help", "h", false, "")
	c.settings.BoolVar(&c.console.readOnly, "read-only", false, "")
	c.settings.BoolVar(&c.console.takeOver, "take-over", false, "")
	for _, s := range settings {
		c.settings.String(s.flag(), "", "")
		if _, isSwitch := s.to(new(Config)).(*bool); isSwitch {
			c.settings.Lookup(s.flag()).NoOptDefVal = "true"
		}
	}
	if err := c.settings.Parse(args); err != nil {
		return c, fmt.Errorf("%w; vmand --help lists the flags", err)
	}
	words := c.settings.Args()
	switch {
	case c.console != (consoleFlags{}) && (len(words) == 0 || words[0] != consoleCommand):
		return c, errors.New("--read-only and --take-over are for vmand console; see vmand --help")
	case c.console.readOnly && c.console.takeOver:
		return c, errors.New("--read-only and --take-over exclude each other; see vmand --help")
	case len(words) == 0:
	case commands[words[0]] == nil && words[0] != consoleCommand:
		return c, fmt.Errorf("unexpected argument %q; vmand --help lists the flags", words[0])
	case len(words) != 2 || words[1] == "":
		return c, fmt.Errorf("vmand %s takes one more word; see vmand --help", words[0])
	default:
		c.command, c.operand = words[0], words[1]
	}
	return c, nil
}

// answer returns what --help or --version asks for, empty for neither.
func (c commandLine) answer() string {
	switch {
	case c.help:
		return usage()
	case c.version:
		return "vmand " + version + "\n"
	}
	return ""
}

const usageHead = `Usage: vmand [flags]
       vmand backup FILE [flags]
       vmand restore FILE [flags]
       vmand network teardown [flags]
       vmand console VM [flags]

vmand runs the QEMU virtual machines of this host and serves the REST API by which
they are managed. It needs no configuration. Stopping it stops no VM.

backup copies the database, all that is recorded of VMs and disks but not what is on
them, to a new FILE, whether a vmand runs or not.

restore puts such a FILE in the database's place and keeps what was there beside it, as
vman.db.before-restore-TIME. The vmand that uses the database has to be stopped, VMs need
not be: the next vmand finds those that run. What is newer than FILE it reports as
orphans in GET /observer/status and leaves alone.

network teardown removes from the host all that vmand has made for its networks: bridges,
taps, firewall rules. VMs that run lose their connections; the next vmand makes it again.

console connects the terminal to the serial console of a VM, through the socket of the
vmand that runs. Enter ~ . leaves it, Enter ~ ? tells what else there is. What is no
terminal is passed on as it is, until the VM's run is over.

  --read-only      of console: show what the guest prints, and type nothing
  --take-over      of console: type in the place of whoever does; they are cut off

  --config FILE    read settings from FILE, not from ` + defaultConfigFile + `
  --check-config   say whether the configuration can be used, and do nothing else
  --version        print the version
  -h, --help       print this

Each setting is a flag, an environment variable and a key of the file; the first of
them that is given counts, in this order.
`

// usage returns the text of --help. What it says of the settings are the
// comments of config.yaml, so there is one place to say it.
func usage() string {
	var b strings.Builder
	b.WriteString(usageHead)
	nodes := settingNodes()
	for _, s := range settings {
		value := " VALUE"
		if _, isSwitch := s.to(new(Config)).(*bool); isSwitch {
			value = ""
		}
		n := nodes[s.key]
		fmt.Fprintf(&b, "\n  --%s%s, %s, %s (default %s)\n", s.flag(), value, s.variable(), s.key, n.value)
		for line := range strings.Lines(n.comment) {
			fmt.Fprintf(&b, "      %s", strings.TrimPrefix(strings.TrimPrefix(line, "#"), " "))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// A settingNode is what config.yaml says of a setting.
type settingNode struct{ value, comment string }

func settingNodes() map[string]settingNode {
	nodes := map[string]settingNode{}
	var document yaml.Node
	if yaml.Unmarshal(defaultConfig, &document) == nil && len(document.Content) == 1 { // a test reads it
		addNodes(nodes, "", document.Content[0])
	}
	return nodes
}

func addNodes(to map[string]settingNode, prefix string, mapping *yaml.Node) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		if value.Kind == yaml.MappingNode {
			addNodes(to, prefix+key.Value+".", value)
			continue
		}
		text := value.Value
		if text == "" {
			text = "empty"
		}
		to[prefix+key.Value] = settingNode{value: text, comment: key.HeadComment}
	}
}
