package vm

import (
	"strings"
	"testing"
	"time"
)

func TestImageOverlay(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	image := func(format ImageFormat, mib int64) Image {
		return Image{
			Name:         "debian-12",
			State:        ImageAvailable,
			ImageContent: ImageContent{SHA256: sum, Layout: format, VirtualMiB: mib},
		}
	}
	for _, c := range []struct {
		name    string
		image   Image
		sizeMiB int64
		want    int64  // MiB
		field   string // of the fault; empty: valid
		says    string // a part of the detail
	}{
		{"the size of the image", image(FormatQcow2, 2048), 0, 2048, "", ""},
		{"the same size", image(FormatVMDK, 2048), 2048, 2048, "", ""},
		{"a larger size", image(FormatRaw, 2048), 4096, 4096, "", ""},
		{"a smaller size", image(FormatQcow2, 2560), 2048, 0, "/size", "2.5 GiB, the size of image debian-12"},
		{"the maximum", image(FormatQcow2, 1), MaxDiskMiB, MaxDiskMiB, "", ""},
		{"above the maximum", image(FormatQcow2, 1), MaxDiskMiB + 1, 0, "/size", "16384 GiB"},
		{"an ISO image", image(FormatISO, 300), 0, 0, "/image", "image debian-12 is an ISO image"},
	} {
		got, err := c.image.Overlay(c.sizeMiB, "/size", "/image")
		wantField(t, c.name, err, "", c.field, c.says)
		want := DiskFile{
			SizeMiB:    c.want,
			Image:      "debian-12",
			Base:       "sha256:" + sum,
			BaseFormat: string(c.image.Layout),
		}
		if err == nil && got != want {
			t.Errorf("%s: got %+v; want %+v", c.name, got, want)
		}
		if content, ok := got.Content(); !ok || content != sum {
			t.Errorf("%s: Content = %s, %t; want %s", c.name, content, ok, sum)
		}
	}
}

func TestADiskOfAnImageHasExactlyItsSizeUnlessAnotherIsGiven(t *testing.T) {
	for _, bytes := range []int64{512, 1 << 20, 1<<20 + 512, 3<<30 - 512} {
		i := Image{Name: "debian-12", ImageContent: ImageContent{Layout: FormatRaw, SHA256: strings.Repeat("0a", 32)}}
		i.SetVirtualBytes(bytes)
		if got, err := i.Overlay(0, "/size", "/image"); err != nil || got.Bytes() != bytes || i.VirtualBytes() != bytes {
			t.Errorf("%d bytes: got %+v, %v", bytes, got, err)
		}
		got, err := i.Overlay(4096, "/size", "/image")
		if err != nil || got.Bytes() != 4<<30 {
			t.Errorf("%d bytes, 4 GiB asked for: got %+v, %v", bytes, got, err)
		}
	}
	i := Image{Name: "debian-12"}
	i.SetVirtualBytes(1<<30 + 512)
	_, err := i.Overlay(1024, "/size", "/image")
	wantField(t, "a smaller size", err, "", "/size", "must be at least 1073742336 bytes, the size of image debian-12")
}

func TestNewImageRecord(t *testing.T) {
	at := time.Unix(1700000000, 0).UTC()
	n := NewImage{
		Name:        "debian-12",
		Sum:         ImageSum{SHA256: strings.Repeat("0A", 32)},
		Format:      FormatQcow2,
		Description: "stable",
		Labels:      map[string]string{"os": "debian"},
	}
	i, err := n.Record(ImageImporting, "https://example.org/", at)
	if err != nil || i.Name != n.Name || i.State != ImageImporting || i.Source != "https://example.org/" ||
		i.Sum != n.Sum || i.Format != n.Format || !i.CreatedAt.Equal(at) ||
		i.Description != "stable" || i.Labels["os"] != "debian" {
		t.Errorf("Record = %+v, %v", i, err)
	}
	for _, c := range []struct {
		name  string
		image NewImage
		field string
		says  string
	}{
		{"no name", NewImage{}, "/name", "63"},
		{"a slash", NewImage{Name: "a/b"}, "/name", "a-z"},
		{"a short checksum", NewImage{Name: "a", Sum: ImageSum{SHA256: "0a"}}, "/sha256", "64"},
		{"not hex", NewImage{Name: "a", Sum: ImageSum{SHA512: strings.Repeat("x", 128)}}, "/sha512", "128"},
		{"a long description", NewImage{Name: "a", Description: strings.Repeat("a", 4097)}, "/description", "4096"},
		{"a label", NewImage{Name: "a", Labels: map[string]string{"A": ""}}, "/labels", "a-z"},
	} {
		_, err := c.image.Record(ImageUploading, "upload", at)
		wantField(t, c.name, err, "", c.field, c.says)
	}
}

func TestOnlyAnAvailableImageIsUsable(t *testing.T) {
	for state, want := range map[ImageState]string{
		ImageAvailable: "",
		ImageImporting: "image a is not available: its state is importing",
		ImageUploading: "image a is not available: its state is uploading",
		ImageError:     "image a is not available: its state is error",
	} {
		err := Image{Name: "a", State: state}.CheckAvailable()
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("state %s: got %v; want %q", state, err, want)
		}
	}
}
