package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

const (
	defaultCPUs   = 1
	defaultMemory = gib
	// maxUserData is the maximum size of user data in bytes.
	maxUserData = 512 << 10
	// maxKeys is the maximum size of a file with SSH keys in bytes.
	maxKeys = 64 << 10
)

// vmFlags are the flags of create and launch.
type vmFlags struct {
	template, image, description, restart, hostname string
	userData, networkConfig                         string // files
	condition                                       string
	cpus                                            int
	memory, disk                                    sizeFlag
	labels, networks, keys, cdroms                  []string
	autostart, fullClone                            bool
}

func (v *vmFlags) add(a *app, c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&v.template, "template", "", "the template with the size of the VM, instead of --cpus and --memory")
	f.IntVar(&v.cpus, "cpus", defaultCPUs, "the number of CPUs")
	v.memory = defaultMemory
	f.Var(&v.memory, "memory", "the size of the memory, such as 2G")
	f.Var(&v.disk, "disk", "the size of the root disk, such as 20G")
	f.StringArrayVarP(&v.labels, "label", "l", nil, "a label KEY=VALUE")
	f.StringVar(&v.description, "description", "", "the purpose of the VM")
	f.StringVar(&v.restart, "restart-policy", "", "never, on-failure or always")
	f.BoolVar(&v.autostart, "autostart", false, "start the VM when the host boots")
	f.StringArrayVar(&v.networks, "network", nil, "a network to connect to; the first one has slot 0")
	f.StringArrayVar(&v.keys, "ssh-key", nil, "a file with public SSH keys for the default user")
	f.StringVar(&v.hostname, "hostname", "", "the host name for cloud-init")
	f.StringVar(&v.userData, "user-data", "", "a file with user data for cloud-init; - is standard input")
	f.StringVar(&v.networkConfig, "network-config", "", "a file with the network configuration for cloud-init")
	f.StringArrayVar(&v.cdroms, "cdrom", nil, "an image of a CD-ROM")
	f.BoolVar(&v.fullClone, "full-clone", false, "copy the image instead of making an overlay")
	a.conditionFlag(c, &v.condition)
	c.MarkFlagsMutuallyExclusive("template", "cpus")
	c.MarkFlagsMutuallyExclusive("template", "memory")
	a.completeFlag(c, "template", a.templates().complete(a))
	a.completeFlag(c, "network", a.networks().complete(a))
	a.completeFlag(c, "cdrom", a.images().complete(a))
	a.completeFlag(c, "restart-policy", fixed("never", "on-failure", "always"))
}

// body returns the request that creates the VM.
func (v *vmFlags) body(ctx context.Context, a *app, c *cobra.Command, name string) (client.CreateVM, error) {
	body := client.CreateVM{
		Name:        nonEmpty(name),
		Image:       nonEmpty(v.image),
		Description: nonEmpty(v.description),
		FullClone:   given(c, "full-clone", v.fullClone),
		Autostart:   given(c, "autostart", v.autostart),
	}
	if v.restart != "" {
		body.RestartPolicy = new(client.RestartPolicy(v.restart))
	}
	if v.disk > 0 {
		body.RootDiskSizeBytes = new(int64(v.disk))
	}
	labels, err := parseLabels(v.labels)
	if err != nil {
		return body, err
	}
	if len(labels) > 0 {
		body.Labels = (*client.Labels)(&labels)
	}
	var nics []client.CreateNIC
	for _, network := range v.networks {
		nics = append(nics, client.CreateNIC{Network: &network})
	}
	if len(nics) > 0 {
		body.NICs = &nics
	}
	var cdroms []client.CreateCDROM
	for _, image := range v.cdroms {
		cdroms = append(cdroms, client.CreateCDROM{Image: image})
	}
	if len(cdroms) > 0 {
		body.CDROMs = &cdroms
	}
	if body.CloudInit, err = v.cloudInit(ctx, a); err != nil {
		return body, err
	}
	body.TemplateName, err = v.templateName(ctx, a)
	return body, err
}

// cloudInit returns the cloud-init data; nil for none.
func (v *vmFlags) cloudInit(ctx context.Context, a *app) (*client.CloudInit, error) {
	var data client.CloudInit
	keys, err := readKeys(v.keys)
	if err != nil {
		return nil, err
	}
	if len(keys) > 0 {
		data.SSHAuthorizedKeys = &keys
	}
	data.Hostname = nonEmpty(v.hostname)
	if v.userData != "" {
		if data.UserData, err = a.readText(ctx, v.userData, maxUserData); err != nil {
			return nil, err
		}
	}
	if v.networkConfig != "" {
		if data.NetworkConfig, err = a.readText(ctx, v.networkConfig, maxKeys); err != nil {
			return nil, err
		}
	}
	if data == (client.CloudInit{}) {
		return nil, nil
	}
	return &data, nil
}

// readText returns the content of a file, of standard input for -.
func (a *app) readText(ctx context.Context, name string, limit int64) (*string, error) {
	in := a.input(ctx)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, usagef("%v", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, usagef("%v", err)
	}
	if int64(len(text)) > limit {
		return nil, usagef("%s is larger than %s", name, formatSize(limit))
	}
	return new(string(text)), nil
}

// readKeys returns the public SSH keys in files. It refuses private keys.
func readKeys(files []string) ([]string, error) {
	var keys []string
	for _, file := range files {
		text, err := new(app).readText(context.Background(), file, maxKeys)
		if err != nil {
			return nil, err
		}
		if strings.Contains(*text, "PRIVATE KEY") {
			return nil, usagef("%s is a private key, which must not leave this machine", file).hint("use %s.pub", file)
		}
		before := len(keys)
		for line := range strings.Lines(*text) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				keys = append(keys, line)
			}
		}
		if len(keys) == before {
			return nil, usagef("%s has no SSH keys", file)
		}
	}
	return keys, nil
}

// ownKeys returns the files of the user's public SSH keys, the preferred one first.
func ownKeys() []string {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil
	}
	for _, name := range []string{"id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"} {
		path := filepath.Join(home, ".ssh", name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return []string{path}
		}
	}
	return nil
}

// templateName returns the template for the size of the VM. It makes one if none has that
// size.
func (v *vmFlags) templateName(ctx context.Context, a *app) (string, error) {
	if v.template != "" {
		return v.template, nil
	}
	memory, err := v.memory.mebibytes()
	if err != nil {
		return "", err
	}
	templates, err := all[client.Template](ctx, a)(a.templates().list())
	if err != nil {
		return "", err
	}
	for _, t := range templates {
		if t.CPUCount == v.cpus && t.RAMAmount == memory {
			return t.Name, nil
		}
	}
	name := fmt.Sprintf("cpu%d-mem%s", v.cpus, strings.ToLower(formatExact(memory)))
	body := client.CreateTemplate{Name: name, CPUCount: v.cpus, RAMAmount: memory}
	_, err = change[client.Template](ctx, a)(client.NewCreateTemplateRequest(server, body))
	var f *failure
	if errors.As(err, &f) && f.status == exitConflict { // another command was faster
		t, err := call[client.Template](ctx, a)(client.NewGetTemplateRequest(server, name, nil))
		if err == nil && (t.value.CPUCount != v.cpus || t.value.RAMAmount != memory) {
			err = failf(exitConflict, "template %s has another size than its name says", name).hint("use --template")
		}
		return name, err
	}
	return name, err
}

// formatExact returns a size in the largest unit in which it is whole.
func formatExact(mebibytes int) string {
	if mebibytes%1024 == 0 {
		return fmt.Sprintf("%dG", mebibytes/1024)
	}
	return fmt.Sprintf("%dM", mebibytes)
}

func (a *app) createVM() *cobra.Command {
	var v vmFlags
	var start bool
	c := &cobra.Command{
		Use:     "create [NAME]",
		Short:   "Create a VM",
		GroupID: groupVM,
		Args:    names(0, 1),
		Example: "  vman create db --cpus 2 --memory 4G --disk 40G --image debian-12\n  vman create web --template small --start",
	}
	v.add(a, c)
	c.Flags().StringVar(&v.image, "image", "", "the image that the root disk is made from")
	c.Flags().BoolVar(&start, "start", false, "start the VM")
	a.completeFlag(c, "image", a.images().complete(a))
	c.RunE = func(c *cobra.Command, args []string) error {
		if v.condition != "" && !start {
			return usagef("--for requires --start")
		}
		made, err := v.create(c.Context(), a, c, strings.Join(args, ""))
		if err == nil && start {
			made, err = a.startVM(c.Context(), made.value.ID, v.condition)
		}
		if done, err := detached(err); done || err != nil {
			return err
		}
		if start {
			return a.did("VM "+made.value.ID+" is "+string(made.value.State), made.value.ID, made.raw)
		}
		return a.did("VM "+made.value.ID+" created", made.value.ID, made.raw)
	}
	return c
}

// create creates a stopped VM.
func (v *vmFlags) create(ctx context.Context, a *app, c *cobra.Command, name string) (reply[client.VM], error) {
	body, err := v.body(ctx, a, c, name)
	if err != nil {
		return reply[client.VM]{}, err
	}
	subject := "VM " + name
	a.progress.step(strings.TrimSpace(subject), "creating")
	made, err := change[client.VM](ctx, a)(client.NewCreateVMRequest(server, nil, body))
	id := made.value.ID
	return settle(ctx, a, subject, made, err, func() (*http.Request, error) { return getVM(id) })
}

// startVM starts a VM and waits for the condition; empty for none.
func (a *app) startVM(ctx context.Context, id, condition string) (reply[client.VM], error) {
	request := func(id string) (*http.Request, error) {
		return client.NewStartVMRequest(server, id, &client.StartVMParams{WaitFor: a.waitFor(condition)}, client.EmptyRequest{})
	}
	if condition != "" && !a.noWait {
		return a.hold(ctx, "VM "+id, id, condition, request)
	}
	v, err := change[client.VM](ctx, a)(request(id))
	return settle(ctx, a, "VM "+id, v, err, func() (*http.Request, error) { return getVM(id) })
}
