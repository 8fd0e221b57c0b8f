package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"vmand/test/need"
)

// A member is a file of a tar archive. Its type is that of a regular file unless kind is set.
type member struct {
	name    string
	content string
	kind    byte
}

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(m.content)), Format: tar.FormatGNU}
		if m.kind != 0 {
			h.Typeflag, h.Size, h.Linkname = m.kind, 0, "/etc/shadow"
			m.content = ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(m.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ovfOf returns a descriptor as VirtualBox and VMware write it, with a CD-ROM drive, and with
// disks in files. The drive of disk n has the address last-n, so the system has the disks in the
// reverse order of the descriptor.
func ovfOf(files ...string) string {
	var references, disks, items strings.Builder
	for i, file := range files {
		fmt.Fprintf(&references, `<File ovf:id="file%d" ovf:href="%s" ovf:size="1"/>`, i, file)
		fmt.Fprintf(&disks, `<Disk ovf:capacity="8" ovf:diskId="vmdisk%d" ovf:fileRef="file%d"/>`, i, i)
		fmt.Fprintf(&items, `<Item><rasd:AddressOnParent>%d</rasd:AddressOnParent><rasd:ElementName>disk</rasd:ElementName>`+
			`<rasd:HostResource>ovf:/disk/vmdisk%d</rasd:HostResource><rasd:InstanceID>%d</rasd:InstanceID>`+
			`<rasd:Parent>4</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>`, len(files)-1-i, i, i+10)
	}
	return `<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
<References>` + references.String() + `<File ovf:id="iso" ovf:href="tools.iso"/></References>
<DiskSection><Info>disks</Info>` + disks.String() + `<Disk ovf:capacity="1" ovf:diskId="empty"/></DiskSection>
<VirtualSystem ovf:id="vm"><Info>a VM</Info><VirtualHardwareSection>
<Item><rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>` + items.String() + `
<Item><rasd:HostResource>ovf:/file/iso</rasd:HostResource><rasd:Parent>4</rasd:Parent>
<rasd:ResourceType>15</rasd:ResourceType></Item>
</VirtualHardwareSection></VirtualSystem></Envelope>`
}

func TestDiskOfAnArchiveIsImported(t *testing.T) {
	t.Parallel()
	disk, other := string(noise(2*mib)), string(noise(mib))
	vmdk, ovf := string(goodVMDK()), ovfOf("a-disk1.vmdk")
	two := ovfOf("a-disk1.img", "a-disk2.img")
	manifest := fmt.Sprintf("SHA256(a.ovf)= %s\nSHA1(a-disk1.vmdk)= %x\r\n\n", sumOf([]byte(ovf)), sha1.Sum([]byte(vmdk)))
	packed := string(gzipped(t, []byte(vmdk)))
	for name, c := range map[string]struct {
		archive []byte
		disk    string
		want    string
		format  Format
	}{
		"OVA":                     {tarOf(t, member{"a.ovf", ovf, 0}, member{"a-disk1.vmdk", vmdk, 0}), "", vmdk, VMDK},
		"OVA with the disk named": {tarOf(t, member{"a.ovf", ovf, 0}, member{"a-disk1.vmdk", vmdk, 0}), "a-disk1.vmdk", vmdk, VMDK},
		"OVA with a manifest": {
			tarOf(t, member{"a.ovf", ovf, 0}, member{"a.mf", manifest, 0}, member{"a-disk1.vmdk", vmdk, 0}), "", vmdk, VMDK,
		},
		"OVA with a manifest at the end": {
			tarOf(t, member{"a.ovf", ovf, 0}, member{"a-disk1.vmdk", vmdk, 0}, member{"a.mf", manifest, 0}, member{"a.cert", "x", 0}),
			"", vmdk, VMDK,
		},
		"OVA with SHA-512 and other files": {
			tarOf(t, member{"./", "", tar.TypeDir}, member{"./A.OVF", ovf, 0},
				member{"./a.mf", fmt.Sprintf("SHA512 (a-disk1.vmdk) = %X\n", sha512.Sum512([]byte(vmdk))), 0},
				member{"./tools.iso", other, 0}, member{"./a-disk1.vmdk", vmdk, 0}),
			"", vmdk, VMDK,
		},
		"OVA with a compressed disk": {tarOf(t, member{"a.ovf", ovf, 0}, member{"a-disk1.vmdk", packed, 0}), "", vmdk, VMDK},
		"compressed OVA":             {gzipped(t, tarOf(t, member{"a.ovf", ovf, 0}, member{"a-disk1.vmdk", vmdk, 0})), "", vmdk, VMDK},
		"OVA, first of two disks": {
			tarOf(t, member{"a.ovf", two, 0}, member{"a-disk1.img", disk, 0}, member{"a-disk2.img", other, 0}), "a-disk1.img", disk, Raw,
		},
		"OVA, second of two disks": {
			tarOf(t, member{"a.ovf", two, 0}, member{"a-disk1.img", disk, 0}, member{"a-disk2.img", other, 0}), "a-disk2.img", other, Raw,
		},
		"tar":                          {tarOf(t, member{"disk.raw", disk, 0}), "", disk, Raw},
		"tar with a directory":         {tarOf(t, member{"x/", "", tar.TypeDir}, member{"x/disk.raw", disk, 0}), "disk.raw", disk, Raw},
		"tar with a compressed disk":   {tarOf(t, member{"disk.raw.gz", string(gzipped(t, []byte(disk))), 0}), "", disk, Raw},
		"tar compressed with zstd":     {zstded(t, tarOf(t, member{"disk.raw", disk, 0})), "", disk, Raw},
		"tar with bytes after its end": {append(tarOf(t, member{"disk.raw", disk, 0}), make([]byte, mib)...), "", disk, Raw},
	} {
		i, dir := testImporter(t, Options{})
		want := Want{Sum: Sum{SHA256: sumOf(c.archive)}, Disk: c.disk, Format: c.format}
		got, err := i.Import(t.Context(), bytes.NewReader(c.archive), want)
		if err != nil || got.SHA256 != sumOf([]byte(c.want)) || got.Format != c.format {
			t.Errorf("%s: got %+v, %v; want a %s of %d bytes", name, got, err, c.format, len(c.want))
		}
		sendPieces(t, i, "upload", c.archive, 3)
		if again, err := i.Finish(t.Context(), "upload", want); err != nil || again != got {
			t.Errorf("%s: uploaded: got %+v, %v", name, again, err)
		}
		wantFiles(t, dir, got.SHA256)
	}
}

func TestSparseTarIsImported(t *testing.T) {
	t.Parallel()
	need.Programs(t, "tar")
	dir := t.TempDir()
	disk := make([]byte, 64*mib)
	copy(disk[3*mib:], noise(mib))
	copy(disk[63*mib:], noise(4096))
	if err := os.WriteFile(filepath.Join(dir, "disk.raw"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "disk.raw"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{3 * mib, 63 * mib} {
		if _, err := f.WriteAt(disk[at:at+mib], at); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"oldgnu", "gnu", "pax"} {
		b := run(t, dir, "tar", "--format="+format, "-S", "-c", "disk.raw")
		i, _ := testImporter(t, Options{})
		if got, err := i.Import(t.Context(), bytes.NewReader(b), Want{}); err != nil || got.SHA256 != sumOf(disk) {
			t.Errorf("%s: got %+v, %v", format, got, err)
		}
	}
}

// patched returns an archive with a changed first header and the checksum that fits.
func patched(b []byte, change func(header []byte)) []byte {
	b = bytes.Clone(b)
	change(b)
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// sparseMember returns an archive with one file, which is a hole of 1 MiB in the format of tar.
func sparseMember(t testing.TB, pax bool) []byte {
	if !pax {
		return patched(tarOf(t, member{"b.img", "", 0}), func(h []byte) {
			h[156] = tar.TypeGNUSparse
			copy(h[483:], "00004000000\x00")
		})
	}
	var records strings.Builder
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=b.img", "GNU.sparse.realsize=1048576"} {
		fmt.Fprintf(&records, "%d %s\n", len(r)+4, r)
	}
	b := tarOf(t, member{"PaxHeaders/b.img", records.String(), 0}, member{"b.img", "0\n" + strings.Repeat("\x00", 510), 0})
	return patched(b, func(h []byte) { h[156] = tar.TypeXHeader })
}

// hostileArchives returns archives that must be refused, by what is wrong with them.
func hostileArchives(t testing.TB) map[string]struct {
	archive []byte
	flaw    Flaw
	reason  string
} {
	disk, vmdk := string(noise(2*mib)), string(goodVMDK())
	ovf, two := ovfOf("a.vmdk"), ovfOf("a.vmdk", "b.vmdk")
	ova := func(ovf string, more ...member) []byte {
		return tarOf(t, append([]member{{"a.ovf", ovf, 0}}, more...)...)
	}
	// withSparse appends a sparse file to an OVA that ends with two sectors of zeros.
	withSparse := func(pax bool) []byte {
		b := ova(ovf, member{"a.vmdk", vmdk, 0})
		return append(b[:len(b)-2*sectorBytes:len(b)-2*sectorBytes], sparseMember(t, pax)...)
	}
	plain := tarOf(t, member{"disk.raw", disk, 0})
	many := make([]member, 0, maxMembers+1)
	for n := range maxMembers + 1 {
		many = append(many, member{fmt.Sprintf("d%d/", n), "", tar.TypeDir})
	}
	return map[string]struct {
		archive []byte
		flaw    Flaw
		reason  string
	}{
		"symbolic link":          {tarOf(t, member{"disk.raw", "", tar.TypeSymlink}), Hostile, "link"},
		"hard link":              {tarOf(t, member{"disk.raw", "", tar.TypeLink}), Hostile, "link"},
		"device":                 {tarOf(t, member{"disk.raw", "", tar.TypeBlock}), Hostile, "device"},
		"named pipe":             {tarOf(t, member{"disk.raw", "", tar.TypeFifo}), Hostile, "device"},
		"name with ..":           {tarOf(t, member{"../disk.raw", disk, 0}), Hostile, "outside"},
		"name with .. later":     {tarOf(t, member{"a/../../disk.raw", disk, 0}), Hostile, "outside"},
		"absolute name":          {tarOf(t, member{"/etc/shadow", disk, 0}), Hostile, "outside"},
		"name with a backslash":  {tarOf(t, member{`..\disk.raw`, disk, 0}), Hostile, "outside"},
		"long name":              {tarOf(t, member{strings.Repeat("a/", 600) + "b", disk, 0}), Hostile, "name of"},
		"name twice":             {ova(ovf, member{"a.vmdk", vmdk, 0}, member{"./a.vmdk", vmdk, 0}), Hostile, "twice"},
		"thousands of members":   {tarOf(t, many...), Hostile, "more than"},
		"cut off in a member":    {plain[:mib], Damaged, "cut off"},
		"cut off in a header":    {plain[:512+2*mib+100], Damaged, "cut off"},
		"negative size":          {patched(plain, func(h []byte) { copy(h[124:], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") }), Damaged, "malformed"},
		"wrong checksum":         {append([]byte("x"), plain[1:]...), Damaged, "malformed"},
		"no file":                {tarOf(t, member{"d/", "", tar.TypeDir}), Unsupported, "no file"},
		"two files":              {tarOf(t, member{"a.raw", disk, 0}, member{"b.raw", disk, 0}), Unsupported, `"a.raw", "b.raw"`},
		"tar in a tar":           {tarOf(t, member{"a.tar", string(plain), 0}), Unsupported, "tar"},
		"tar of a web page":      {tarOf(t, member{"a.raw", "<!DOCTYPE html>" + disk[:497], 0}), Unsupported, "web page"},
		"tar of a backing file":  {tarOf(t, member{"a.qcow2", string(hostileQcow2InTar()), 0}), Hostile, "backing"},
		"disk before the ovf":    {tarOf(t, member{"a.vmdk", vmdk, 0}, member{"a.ovf", ovf, 0}), Unsupported, "begin"},
		"two descriptors":        {ova(ovf, member{"b.ovf", ovf, 0}), Unsupported, "two descriptors"},
		"two disks":              {ova(two, member{"a.vmdk", vmdk, 0}), Unsupported, "b.vmdk, a.vmdk"},
		"missing disk":           {ova(ovf), Damaged, "lacks the disk"},
		"ovf without a disk":     {ova(ovfOf()), Unsupported, "no disk"},
		"ovf that is cut off":    {ova(ovf[:600], member{"a.vmdk", vmdk, 0}), Damaged, "cannot be read"},
		"ovf with an entity":     {ova(`<!DOCTYPE x [<!ENTITY a "b">]><Envelope>&a;</Envelope>`), Damaged, "cannot be read"},
		"ovf in another charset": {ova(`<?xml version="1.0" encoding="UTF-16"?><Envelope/>`), Damaged, "cannot be read"},
		"ovf that is large":      {ova(ovf + strings.Repeat(" ", maxOVF)), Unsupported, "more than"},
		"ovf with .. in a name":  {ova(ovfOf("../../etc/shadow")), Hostile, "outside"},
		"ovf with a path":        {ova(ovfOf("/etc/shadow")), Hostile, "outside"},
		"ovf with a URL":         {ova(ovfOf("http://192.0.2.1/disk.vmdk")), Hostile, "outside"},
		"ovf with a parent":      {ova(strings.Replace(ovf, `ovf:capacity="8"`, `ovf:parentRef="x"`, 1)), Hostile, "parent"},
		"ovf with chunks":        {ova(strings.Replace(ovf, `ovf:size="1"`, `ovf:chunkSize="1"`, 1)), Unsupported, "chunks"},
		"ovf with a lost file":   {ova(strings.Replace(ovf, `ovf:fileRef="file0"`, `ovf:fileRef="x"`, 1)), Damaged, "does not list"},
		"manifest that differs": {
			ova(ovf, member{"a.mf", "SHA256(a.vmdk)= " + sumOf([]byte(disk)) + "\n", 0}, member{"a.vmdk", vmdk, 0}), Damaged, "manifest",
		},
		"manifest at the end that differs": {
			ova(ovf, member{"a.vmdk", vmdk, 0}, member{"a.mf", "SHA1(a.ovf)= 00\n", 0}), Damaged, "SHA1",
		},
		"manifest of a missing file": {
			ova(ovf, member{"a.vmdk", vmdk, 0}, member{"a.mf", "SHA1(b.vmdk)= 00\n", 0}), Damaged, "lacks the file",
		},
		"manifest with MD5":          {ova(ovf, member{"a.mf", "MD5(a.vmdk)= 00\n", 0}), Damaged, "line 1"},
		"manifest with a name twice": {ova(ovf, member{"a.mf", "SHA1(a)= 00\nSHA1(./a)= 00\n", 0}), Damaged, "line 2"},
		"OVA with a sparse file":     {withSparse(false), Unsupported, "sparse"},
		"OVA with a PAX sparse file": {withSparse(true), Unsupported, "sparse"},
		"two manifests":              {ova(ovf, member{"a.mf", "", 0}, member{"b.mf", "", 0}), Unsupported, "two manifests"},
	}
}

func hostileQcow2InTar() []byte {
	for _, h := range hostileImages("/etc/shadow") {
		if h.name == "qcow2 with a backing file" {
			return h.content
		}
	}
	return nil
}

func TestHostileArchivesAreRefused(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	all := hostileArchives(t)
	t.Logf("%d hostile archives", len(all))
	for name, c := range all {
		for kind, b := range map[string][]byte{"plain": c.archive, "compressed": gzipped(t, c.archive)} {
			got, err := i.Import(t.Context(), bytes.NewReader(b), Want{})
			var r *Rejected
			if !errors.As(err, &r) || r.Flaw != c.flaw || !strings.Contains(r.Reason, c.reason) {
				t.Errorf("%s, %s: got %+v, %v; want %v, %q", name, kind, got, err, c.flaw, c.reason)
			}
		}
		sendPieces(t, i, "upload", c.archive, 1)
		var r *Rejected
		if _, err := i.Finish(t.Context(), "upload", Want{}); !errors.As(err, &r) || r.Flaw != c.flaw {
			t.Errorf("%s, uploaded: %v; want %v", name, err, c.flaw)
		}
	}
	wantFiles(t, dir)
}

// This test is not parallel: it measures the allocations of the process.
func TestArchivesAreBounded(t *testing.T) {
	i, dir := testImporter(t, Options{MaxBytes: 16 * mib})
	plain := tarOf(t, member{"disk.raw", string(noise(mib)), 0})
	ova := func(more ...member) []byte {
		return tarOf(t, append([]member{{"a.ovf", ovfOf("a.vmdk"), 0}}, more...)...)
	}
	sparse := func(size string) []byte {
		return patched(plain, func(h []byte) {
			h[156] = tar.TypeGNUSparse
			copy(h[386:], "00000000000\x0000000001000\x00")
			copy(h[483:], size+"\x00")
		})
	}
	for name, c := range map[string]struct {
		archive []byte
		tooBig  bool
	}{
		"declared size":          {patched(plain, func(h []byte) { copy(h[124:], "77777777777\x00") }), true},
		"sparse declared size":   {sparse("77777777777"), true},
		"zeros after the end":    {gzipped(t, append(plain, make([]byte, 32*mib)...)), true},
		"other members":          {gzipped(t, ova(member{"x.iso", string(make([]byte, 12*mib)), 0}, member{"a.vmdk", string(make([]byte, 12*mib)), 0})), true},
		"bomb in a member":       {tarOf(t, member{"disk.gz", string(repeated(t, 'x', 96*mib)), 0}), true},
		"a million elements":     {tarOf(t, member{"a.ovf", "<Envelope><References>" + strings.Repeat("<File/>", 149000) + "</References></Envelope>", 0}), false},
		"elements in each other": {tarOf(t, member{"a.ovf", strings.Repeat("<a>", 340000), 0}), false},
		"long names": {func() []byte {
			var all []member
			for n := range 100 {
				all = append(all, member{fmt.Sprintf("%d%s/", n, strings.Repeat("/x", 100<<10)), "", tar.TypeDir})
			}
			return tarOf(t, all...)
		}(), false},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := i.Import(context.Background(), bytes.NewReader(c.archive), Want{})
		runtime.ReadMemStats(&after)
		allocated := (after.TotalAlloc - before.TotalAlloc) >> 20
		t.Logf("%s: %d MiB allocated: %v", name, allocated, err)
		if err == nil || c.tooBig != errors.As(err, new(*TooLarge)) {
			t.Errorf("%s: got %+v, %v; want too large: %v", name, got, err, c.tooBig)
		}
		if allocated > 100 {
			t.Errorf("%s: %d MiB allocated, want at most 100", name, allocated)
		}
	}
	wantFiles(t, dir)
}

func TestDiskOfFileThatIsNoArchiveIsRefused(t *testing.T) {
	t.Parallel()
	for name, b := range map[string][]byte{"raw": goodRaw(), "compressed": gzipped(t, goodRaw())} {
		i, dir := testImporter(t, Options{})
		want := Want{Disk: "a.vmdk"}
		var r *Rejected
		_, err := i.Import(t.Context(), bytes.NewReader(b), want)
		if !errors.As(err, &r) || r.Flaw != Unsupported || !strings.Contains(r.Reason, "no archive") {
			t.Errorf("%s: %v", name, err)
		}
		sendPieces(t, i, "upload", b, 1)
		if _, err := i.Finish(t.Context(), "upload", want); !errors.As(err, &r) || !strings.Contains(r.Reason, "no archive") {
			t.Errorf("%s, uploaded: %v", name, err)
		}
		if err := i.Drop("upload"); err != nil {
			t.Error(err)
		}
		wantFiles(t, dir)
	}
}

// A file of an OVA that is not the disk is hashed for the manifest. Its bytes count, as those of
// the disk do, and a request that ends does not wait for it.
func TestOtherFilesOfArchiveAreBounded(t *testing.T) {
	t.Parallel()
	need.Programs(t, "bzip2")
	i, dir := testImporter(t, Options{})
	head := tarOf(t, member{"a.ovf", ovfOf("a.vmdk"), 0}, member{"x.iso", "", 0})
	head = head[:len(head)-2*sectorBytes]
	copy(head[len(head)-sectorBytes:], patched(head[len(head)-sectorBytes:], func(h []byte) {
		copy(h[124:], "77777777777\x00") // 8 GiB
	}))
	path := filepath.Join(t.TempDir(), "head")
	if err := os.WriteFile(path, head, 0o600); err != nil {
		t.Fatal(err)
	}
	bomb := append(run(t, ".", "bzip2", "-c", path), bytes.Repeat(bzip2Zeros(t), 4)...)
	var r *Rejected
	if _, err := i.Import(t.Context(), bytes.NewReader(bomb), Want{}); !errors.As(err, &r) || r.Flaw != Hostile ||
		!strings.Contains(r.Reason, "expand to") {
		t.Errorf("%d bytes that expand to 180 MB: %v", len(bomb), err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	rest := bytes.NewReader(bomb)
	in := readerFunc(func(p []byte) (int, error) {
		n, err := rest.Read(p)
		cancel(gone) // all bytes are in a buffer
		return n, err
	})
	if _, err := i.Import(ctx, in, Want{}); !errors.Is(err, gone) {
		t.Errorf("after the request ended: %v", err)
	}
	if len(i.turns) != 0 {
		t.Error("a turn is not given back")
	}
	wantFiles(t, dir)
}

func FuzzArchive(f *testing.F) {
	f.Add(tarOf(f, member{"a.ovf", ovfOf("a.vmdk"), 0}, member{"a.mf", "SHA1(a.ovf)= 00\n", 0}, member{"a.vmdk", string(goodVMDK()), 0}))
	f.Add(tarOf(f, member{"disk.raw", strings.Repeat("x", 1024), 0}))
	f.Add([]byte(ovfOf("a", "b")))
	f.Fuzz(func(t *testing.T, b []byte) {
		stored := false
		a := &archive{max: mib, extract: func(io.Reader) error {
			stored = true
			return nil
		}}
		if err := a.read(&limited{r: bytes.NewReader(b), left: mib, max: mib, check: func(int64) error { return nil }}); err == nil && !stored {
			t.Error("an archive without a disk is accepted")
		}
		if names, err := parseOVF(b); err == nil {
			for _, name := range names {
				if _, ok := memberName(name); !ok {
					t.Errorf("the name %q leads out of the archive", name)
				}
			}
		}
		_, _ = parseManifest(b)
	})
}
