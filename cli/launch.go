package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

func (a *app) launchCommand() *cobra.Command {
	var v vmFlags
	var name string
	c := &cobra.Command{
		Use:   "launch [IMAGE|NAME]",
		Short: "Create and start a VM",
		Long: "Create and start a VM, and show each step of its boot. IMAGE is an image of the daemon, or a name of\n" +
			"vman image catalog, which is downloaded first. The public SSH key of the user is installed with\n" +
			"cloud-init, and the command waits until SSH answers. Another word is the NAME of a VM without an image,\n" +
			"with the default boot disk of the daemon.",
		Example: "  vman launch debian-12 --name web\n  vman launch debian-12 --name db --cpus 2 --memory 4G --disk 40G --ssh-key key.pub",
		GroupID: groupVM,
		Args:    names(0, 1),
	}
	v.add(a, c)
	c.Flags().StringVar(&name, "name", "", "the name of the VM; by default a name is made up")
	c.Flags().StringVar(&v.image, "image", "", "the image, if the argument is a name")
	c.ValidArgsFunction = a.completeImages()
	a.completeFlag(c, "image", a.completeImages())
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			isImage, err := a.isImage(c.Context(), args[0])
			switch {
			case err != nil:
				return err
			case isImage && v.image == "":
				v.image = args[0]
			case name == "":
				name = args[0]
			default:
				return a.unknownImage(args[0])
			}
		}
		return a.launch(c.Context(), c, &v, name)
	}
	return c
}

// completeImages completes images of the daemon and of the catalog.
func (a *app) completeImages() cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		out, directive := a.images().complete(a, "available")(c, args, word)
		entries, err := readCatalog()
		if err == nil {
			for _, name := range sortedKeys(entries) {
				out = append(out, cobra.CompletionWithDesc(name, "catalog"))
			}
		}
		return out, directive
	}
}

// isImage reports whether a word names an image of the daemon or of the catalog.
func (a *app) isImage(ctx context.Context, word string) (bool, error) {
	entries, err := readCatalog()
	if err != nil {
		return false, err
	}
	if _, ok := entries[word]; ok {
		return true, nil
	}
	_, err = call[client.Image](ctx, a)(a.images().get(word))
	var f *failure
	if errors.As(err, &f) && (f.status == exitNotFound || f.status == exitUsage) {
		return false, nil
	}
	return err == nil, err
}

func (a *app) unknownImage(word string) error {
	f := failf(exitNotFound, "there is no image %q", word)
	if entries, err := readCatalog(); err == nil {
		if near := nearest(word, sortedKeys(entries)); near != "" {
			f.hint("did you mean %s?", near)
		}
	}
	return f.hint("vman image ls and vman image catalog list images")
}

// launch makes the image available, creates the VM and starts it.
func (a *app) launch(ctx context.Context, c *cobra.Command, v *vmFlags, name string) error {
	noWait := a.noWait
	a.noWait = false // the steps before the start depend on one another
	user := ""
	if v.image != "" {
		var err error
		if user, err = a.ensureImage(ctx, v.image); err != nil {
			return err
		}
		if len(v.keys) == 0 {
			v.keys = ownKeys()
		}
	}
	made, err := v.create(ctx, a, c, name)
	if err != nil {
		return err
	}
	id := made.value.ID
	a.progress.step("VM "+id, "created")
	if v.condition == "" && len(v.keys) > 0 && v.image != "" && made.value.ReachableFromHost {
		v.condition = "port:22"
	}
	a.noWait = noWait
	started, err := a.startVM(ctx, id, v.condition)
	if done, err := detached(err); done || err != nil {
		return err
	}
	text := "VM " + id + " is " + string(started.value.State)
	if ip := value(started.value.LocalIP); ip != "" && started.value.ReachableFromHost {
		text += " at " + ip
	}
	if user != "" && v.condition == "port:22" {
		text += fmt.Sprintf("; log in with: ssh %s@%s", user, value(started.value.LocalIP))
	} else {
		text += "; its console: vman console " + id
	}
	return a.did(text, id, started.raw)
}

// ensureImage makes an image available, and returns the account that gets SSH keys; empty if
// that is not known.
func (a *app) ensureImage(ctx context.Context, name string) (user string, err error) {
	entries, err := readCatalog()
	if err != nil {
		return "", err
	}
	user = entries[name].User
	i, err := call[client.Image](ctx, a)(a.images().get(name))
	var f *failure
	switch {
	case errors.As(err, &f) && f.status == exitNotFound:
		if _, known := entries[name]; !known {
			return "", a.unknownImage(name)
		}
		body := client.CreateImage{Name: name}
		if err := a.fromCatalog(ctx, &body); err != nil {
			return "", err
		}
		_, err = a.makeImage(ctx, body)
		return user, err
	case err != nil:
		return "", err
	case i.value.State == client.ImageStateImporting: // another command downloads it
		return user, a.awaitImage(ctx, name)
	}
	return user, nil
}

// awaitImage waits until an image is no longer being imported.
func (a *app) awaitImage(ctx context.Context, name string) error {
	ctx, stop := a.limited(ctx)
	defer stop()
	a.progress.step("image "+name, "waiting for its import")
	_, err := watch(ctx, a, client.ListEventsParams{Resource: new("images/" + name)},
		func() (*http.Request, error) { return a.images().get(name) },
		func(i client.Image) (bool, error) { return i.State != client.ImageStateImporting, nil })
	return err
}
