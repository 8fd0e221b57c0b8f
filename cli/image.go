package cli

import (
	"cmp"
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

// uploadRetries is the number of times that an upload is continued after its connection broke,
// without progress in between.
const uploadRetries = 5

func (a *app) images() resource[client.Image] {
	type image = client.Image
	return resource[image]{
		noun:  "image",
		name:  func(i image) string { return i.Name },
		state: func(i image) string { return string(i.State) },
		columns: []column[image]{
			{head: "NAME", cell: func(i image) string { return i.Name }},
			{head: "STATE", state: true, cell: func(i image) string { return string(i.State) }},
			{head: "FORMAT", cell: func(i image) string { return string(value(i.Format)) }},
			{head: "SIZE", cell: func(i image) string { return formatSize(value(i.VirtualSizeBytes)) }},
			{head: "STORED", cell: func(i image) string { return formatSize(cmp.Or(value(i.SizeBytes), value(i.UploadedBytes))) }},
			{head: "AGE", cell: func(i image) string { return formatAge(a.out.now(), i.CreatedAt) }},
			{head: "SOURCE", wide: true, cell: func(i image) string { return i.Source }},
			{head: "LABELS", wide: true, cell: func(i image) string { return formatLabels(i.Labels) }},
			{head: "SHA256", wide: true, cell: func(i image) string { return value(i.SHA256) }},
		},
		list: func() (*http.Request, error) {
			return client.NewListImagesRequest(server, &client.ListImagesParams{Limit: new(pageSize)})
		},
		get: func(name string) (*http.Request, error) { return client.NewGetImageRequest(server, name, nil) },
		remove: func(name string) (*http.Request, error) {
			return client.NewDeleteImageRequest(server, name, &client.DeleteImageParams{Force: &a.force})
		},
	}
}

func (a *app) imageCommand() *cobra.Command {
	r := a.images()
	e := editable[client.Image, client.UpdateImage]{r, func(name, tag string, body client.UpdateImage) (*http.Request, error) {
		return client.NewUpdateImageRequest(server, name, &client.UpdateImageParams{IfMatch: nonEmpty(tag)}, body)
	}}
	ls := r.listCommand(a)
	var label, state string
	ls.Flags().StringVarP(&label, "label", "l", "", "only images with the label KEY=VALUE")
	ls.Flags().StringVar(&state, "state", "", "only images in this state")
	a.completeFlag(ls, "state", fixed("importing", "uploading", "available", "error"))
	ls.RunE = func(c *cobra.Command, _ []string) error {
		req, err := client.NewListImagesRequest(server, &client.ListImagesParams{
			Label: given(c, "label", label),
			State: given(c, "state", client.ImageState(state)),
			Limit: new(pageSize),
		})
		return r.print(c.Context(), a, req, err, nil)
	}
	return group("image", "Manage images", ls, r.showCommand(a), a.importImage(), a.uploadImage(), a.downloadImage(),
		r.removeCommand(a, &a.force), e.setCommand(a), e.editCommand(a), a.catalogCommand())
}

// imageFlags are the flags of commands that make an image.
type imageFlags struct {
	sha256, sha512, format, description string
	labels                              []string
}

func (i *imageFlags) add(a *app, c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&i.sha256, "sha256", "", "the expected SHA-256 of the content")
	f.StringVar(&i.sha512, "sha512", "", "the expected SHA-512 of the content")
	f.StringVar(&i.format, "format", "", "the expected format: qcow2, raw, vmdk, vhdx, vdi or iso")
	f.StringVar(&i.description, "description", "", "the purpose of the image")
	a.completeFlag(c, "format", fixed("qcow2", "raw", "vmdk", "vhdx", "vdi", "iso"))
}

func (a *app) importImage() *cobra.Command {
	var flags imageFlags
	var from string
	c := &cobra.Command{
		Use:     "import NAME [URL]",
		Short:   "Make an image of a URL, a name of the catalog, or a disk",
		Example: "  vman image import debian-12\n  vman image import mine https://example.com/disk.qcow2 --sha256 …\n  vman image import golden --from-disk DISK",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				return names(1, 1)(c, args[:1])
			}
			return names(1, 2)(c, args)
		},
	}
	flags.add(a, c)
	c.Flags().StringVar(&from, "from-disk", "", "the disk to copy")
	c.Flags().StringArrayVarP(&flags.labels, "label", "l", nil, "a label KEY=VALUE")
	a.completeFlag(c, "from-disk", a.disks().complete(a, "available"))
	c.RunE = func(c *cobra.Command, args []string) error {
		labels, err := parseLabels(flags.labels)
		if err != nil {
			return err
		}
		body := client.CreateImage{
			Name:        args[0],
			FromDisk:    nonEmpty(from),
			SHA256:      nonEmpty(flags.sha256),
			SHA512:      nonEmpty(flags.sha512),
			Description: nonEmpty(flags.description),
		}
		if flags.format != "" {
			body.Format = new(client.ContentFormat(flags.format))
		}
		if len(labels) > 0 {
			body.Labels = (*client.Labels)(&labels)
		}
		switch {
		case len(args) == 2:
			body.URL = &args[1]
		case from == "":
			if err := a.fromCatalog(c.Context(), &body); err != nil {
				return err
			}
		}
		i, err := a.makeImage(c.Context(), body)
		if done, err := detached(err); done || err != nil {
			return err
		}
		return a.did("image "+args[0]+" is "+string(i.value.State), args[0], i.raw)
	}
	return c
}

// makeImage makes an image of a URL or a disk and waits until it is available.
func (a *app) makeImage(ctx context.Context, body client.CreateImage) (reply[client.Image], error) {
	i, err := change[client.Image](ctx, a)(client.NewCreateImageRequest(server, nil, body))
	return settle(ctx, a, "image "+body.Name, i, err, func() (*http.Request, error) { return a.images().get(body.Name) })
}

func (a *app) uploadImage() *cobra.Command {
	var flags imageFlags
	var name string
	var again bool
	c := &cobra.Command{
		Use:   "upload FILE",
		Short: "Upload an image",
		Long: "Upload an image. If the connection breaks, the upload continues by itself. If the command is\n" +
			"interrupted, the same command with --continue sends the rest of the same file. FILE - is standard\n" +
			"input, which cannot continue.",
		Example: "  vman image upload disk.qcow2 --name golden\n  xzcat disk.raw.xz | vman image upload - --name golden",
		Args:    names(1, 1),
	}
	flags.add(a, c)
	c.Flags().StringVar(&name, "name", "", "the name of the image; by default the name of the file without its ending")
	c.Flags().BoolVar(&again, "continue", false, "send the rest of an upload of the same file that was interrupted")
	c.RunE = func(c *cobra.Command, args []string) error {
		if name == "" && args[0] == "-" {
			return usagef("an upload of standard input needs --name")
		}
		if name == "" {
			name = imageName(args[0])
		}
		params := client.CreateImageParams{
			Name:        &name,
			SHA256:      nonEmpty(flags.sha256),
			SHA512:      nonEmpty(flags.sha512),
			Description: nonEmpty(flags.description),
		}
		if flags.format != "" {
			params.Format = new(client.ContentFormat(flags.format))
		}
		i, err := a.upload(c.Context(), args[0], params, again)
		if err != nil {
			return err
		}
		return a.did("image "+name+" is "+string(i.value.State), name, i.raw)
	}
	return c
}

// imageName returns the name of a file without its directory and endings.
func imageName(file string) string {
	name := strings.ToLower(filepath.Base(file))
	for _, ending := range []string{".gz", ".xz", ".zst", ".bz2", ".qcow2", ".img", ".raw", ".vmdk", ".vhdx", ".vdi", ".iso"} {
		name = strings.TrimSuffix(name, ending)
	}
	return name
}

// upload uploads a file, with again the rest of it if a part is stored already.
func (a *app) upload(ctx context.Context, file string, params client.CreateImageParams, again bool) (reply[client.Image], error) {
	var none reply[client.Image]
	if file == "-" {
		m := a.progress.meter("image "+*params.Name, 0, -1)
		r, err := client.NewCreateImageRequestWithBody(server, &params, "application/octet-stream", io.TeeReader(a.input(ctx), m))
		return exchange[client.Image](ctx, a, r, err, false)
	}
	f, err := os.Open(file)
	if err != nil {
		return none, usagef("%v", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return none, usagef("%s is not a file", file)
	}
	u := upload{a: a, file: f, size: info.Size(), params: params}
	// Without --continue an upload of that name may be one of another file.
	switch found, err := u.stored(ctx); {
	case err != nil:
		return none, u.interrupted(ctx, err)
	case found && !again:
		return none, failf(exitConflict, "an upload of image %s was interrupted after %s", *params.Name, formatSize(u.offset)).
			hint("--continue sends the rest of the same file, vman image rm %s gives it up", *params.Name)
	}
	for stuck := 0; ; stuck++ {
		begin, resumable := u.offset, u.resumable
		i, err := u.attempt(ctx)
		for err != nil {
			if ctx.Err() != nil || !temporary(err) || stuck >= uploadRetries || !pause(ctx, reconnectPause) {
				return i, u.interrupted(ctx, err)
			}
			found, failed := u.stored(ctx)
			if failed != nil {
				err = failed
				stuck++
				continue
			}
			if resumable && !found {
				return i, u.interrupted(ctx, err)
			}
			break
		}
		if err == nil {
			return i, nil
		}
		if u.offset > begin {
			stuck = 0
		}
	}
}

// temporary reports whether an upload may succeed when it is continued: the connection broke,
// the daemon is away or overloaded, or still has the request that broke.
func temporary(err error) bool {
	var f *failure
	if errors.As(err, &f) {
		return f.http == http.StatusServiceUnavailable || f.code == client.ProblemCodeBusy || f.code == client.ProblemCodePreconditionFailed
	}
	return broken(err) || errors.As(err, new(*dialError))
}

// An upload is the transfer of one file.
type upload struct {
	a         *app
	file      *os.File
	size      int64
	offset    int64 // the number of bytes that the daemon has
	resumable bool  // the daemon has begun to store the image
	params    client.CreateImageParams
}

// attempt sends the bytes that the daemon does not have.
func (u *upload) attempt(ctx context.Context) (reply[client.Image], error) {
	m := u.a.progress.meter("image "+*u.params.Name, u.offset, u.size)
	rest := io.NewSectionReader(u.file, u.offset, u.size-u.offset)
	body := struct{ io.Reader }{io.TeeReader(rest, m)}
	var r *http.Request
	var err error
	if u.resumable {
		r, err = client.NewContinueUploadRequestWithBody(server, *u.params.Name,
			&client.ContinueUploadParams{Offset: u.offset}, "application/octet-stream", body)
	} else {
		r, err = client.NewCreateImageRequestWithBody(server, &u.params, "application/octet-stream", body)
	}
	if err != nil {
		return reply[client.Image]{}, err
	}
	if r.ContentLength = u.size - u.offset; r.ContentLength == 0 {
		r.Body = http.NoBody
	}
	return attempt[client.Image](ctx, u.a, r)
}

// stored asks the daemon how many bytes of the upload it has, and reports whether there is
// an upload to continue.
func (u *upload) stored(ctx context.Context) (bool, error) {
	r, err := u.a.images().get(*u.params.Name)
	if err != nil {
		return false, err
	}
	i, err := attempt[client.Image](ctx, u.a, r)
	var f *failure
	switch {
	case errors.As(err, &f) && f.status == exitNotFound:
		return false, nil
	case err != nil:
		return false, err
	case i.value.State != client.ImageStateUploading:
		return false, failf(exitConflict, "image %s exists and is %s", *u.params.Name, i.value.State)
	case value(i.value.UploadedBytes) > u.size:
		return false, failf(exitConflict, "an upload of image %s has %s, which is more than the file has", *u.params.Name,
			formatSize(value(i.value.UploadedBytes))).hint("vman image rm %s gives it up", *u.params.Name)
	}
	u.offset, u.resumable = value(i.value.UploadedBytes), true
	return true, nil
}

// interrupted says how to continue an upload.
func (u *upload) interrupted(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errInterrupted) {
		return failf(exitInterrupted, "interrupted; the upload of image %s is not complete", *u.params.Name).
			hint("the same command with --continue continues it, vman image rm %s gives it up", *u.params.Name)
	}
	err = explain(ctx, err)
	var f *failure
	if errors.As(err, &f) && u.resumable && (f.status == exitTimedOut || f.status == exitNoDaemon) {
		f.hint("the same command with --continue continues the upload")
	}
	return err
}

func (a *app) downloadImage() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:               "download NAME",
		Short:             "Download an image; a partial file is continued",
		Args:              names(1, 1),
		ValidArgsFunction: a.images().complete(a, "available"),
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the file to write; - is standard output (default NAME.FORMAT)")
	c.RunE = func(c *cobra.Command, args []string) error { return a.download(c.Context(), args[0], file) }
	return c
}

func (a *app) download(ctx context.Context, name, file string) error {
	i, err := call[client.Image](ctx, a)(a.images().get(name))
	if err != nil {
		return err
	}
	if file == "" {
		file = name + "." + string(cmp.Or(value(i.value.Format), "img"))
	}
	if file == "-" {
		resp, err := a.content(ctx, name, "", 0)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		return a.save(ctx, "-", io.TeeReader(resp.Body, a.meterTo("-", "image "+name, resp.ContentLength)))
	}
	if _, err := os.Stat(file); err == nil {
		return failf(exitConflict, "%s exists", file).hint("remove it, or name another file with --file")
	}
	// The partial file is named by the content, so that a part of other content is never continued.
	partial := file + "." + value(i.value.SHA256)[:min(12, len(value(i.value.SHA256)))] + ".partial"
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return usagef("%v", err)
	}
	err = a.continueDownload(ctx, name, value(i.value.SHA256), f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(partial, file); err != nil {
		return err
	}
	return a.did("image "+name+" saved as "+file, file, nil)
}

// continueDownload writes the rest of an image's content to f. It connects again when the
// connection breaks, as long as that makes progress.
func (a *app) continueDownload(ctx context.Context, name, sum string, f *os.File) error {
	stuck := 0
	for {
		offset, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		resp, err := a.content(ctx, name, sum, offset)
		var failed *failure
		if errors.As(err, &failed) && failed.code == client.ProblemCodeRangeNotSatisfiable {
			return nil // the file is complete
		}
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusPartialContent && offset > 0 {
			if err := errors.Join(f.Truncate(0), seekStart(f)); err != nil {
				resp.Body.Close()
				return err
			}
			offset = 0
		}
		m := a.progress.meter("image "+name, offset, offset+resp.ContentLength)
		n, err := io.Copy(f, io.TeeReader(resp.Body, m))
		resp.Body.Close()
		if err == nil {
			return nil
		}
		if stuck++; n > 0 {
			stuck = 0
		}
		if stuck > uploadRetries || !broken(err) || !pause(ctx, reconnectPause) {
			return explain(ctx, err)
		}
	}
}

func seekStart(f *os.File) error {
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// content requests the content of an image from offset on, if it still has the sum.
func (a *app) content(ctx context.Context, name, sum string, offset int64) (*http.Response, error) {
	var params client.ReadImageParams
	if offset > 0 {
		params.Range, params.IfRange = new(fmt.Sprintf("bytes=%d-", offset)), new(`"`+sum+`"`)
	}
	r, err := client.NewReadImageRequest(server, name, &params)
	return a.stream(ctx, r, err)
}
