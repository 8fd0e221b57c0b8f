package store

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vmand/vm"
)

// Checksums of image content in tests.
var (
	someSum  = strings.Repeat("5a", 32)
	otherSum = strings.Repeat("c3", 32)
)

func makeImage(name, sum string) vm.Image {
	return vm.Image{Name: name, State: vm.ImageAvailable, Source: "upload", CreatedAt: at,
		ImageContent: vm.ImageContent{SHA256: sum, Layout: vm.FormatQcow2, VirtualMiB: 2048, Bytes: 300 << 20}}
}

// madeOf returns a root disk of an image's content.
func madeOf(image, sum string) vm.DiskFile {
	return vm.DiskFile{SizeMiB: 4096, Image: image, Base: vm.ContentBase(sum), BaseFormat: "qcow2"}
}

func fullImage() vm.Image {
	i := makeImage("full", someSum)
	i.State, i.Reason, i.Uploaded, i.Source = vm.ImageError, "its content is missing", 77, "https://example.test/x?a=b,c;d"
	i.Sum, i.Format = vm.ImageSum{SHA256: strings.ToUpper(otherSum), SHA512: strings.Repeat("ab", 64)}, vm.FormatISO
	i.Description, i.Labels = "two\nlines", map[string]string{"os": "debian", "empty": ""}
	return i
}

func TestEveryFieldOfAnImageComesBack(t *testing.T) {
	s := open(t)
	bare := vm.Image{Name: "bare", State: vm.ImageImporting, CreatedAt: at}
	var want []vm.Image
	for seq, i := range []vm.Image{fullImage(), bare} {
		apply(t, s, vm.Change{NewImage: &i})
		got, err := s.Image(t.Context(), i.Name)
		must(t, err)
		i.Seq, i.Revision, i.UpdatedAt = int64(seq+1), 1, got.UpdatedAt
		if !reflect.DeepEqual(got, i) {
			t.Errorf("read %+v; want %+v", got, i)
		}
		want = append(want, i)
	}
	list, err := s.Images(t.Context(), vm.ImageFilter{}, vm.Page{})
	if err != nil || !reflect.DeepEqual(list, want) {
		t.Errorf("listed %+v, %v; want %+v", list, err, want)
	}
	if list, err := s.Images(t.Context(), vm.ImageFilter{}, vm.Page{After: 1, Limit: 1}); err != nil || len(list) != 1 || list[0].Name != "bare" {
		t.Errorf("the second page is %+v, %v", list, err)
	}
	_, err = s.Image(t.Context(), "none")
	if f := wantFault(t, err, vm.CodeNotFound); f.Detail != `image none not found` {
		t.Errorf("the detail is %q", f.Detail)
	}
}

func TestImageUpdateComparesTheState(t *testing.T) {
	s := open(t)
	first := vm.Image{Name: "full", State: vm.ImageUploading, Source: "upload", CreatedAt: at}
	apply(t, s, vm.Change{NewImage: &first})
	i := fullImage()
	i.CreatedAt, i.Seq, i.Revision = at.AddDate(1, 0, 0), 99, 99
	f := wantFault(t, s.applyErr(t.Context(), vm.Change{Image: &vm.ImageUpdate{From: vm.ImageImporting, Image: i}}), vm.CodeBusy)
	if f.Detail != "image full is no longer importing: something else changed it" {
		t.Errorf("the detail is %q", f.Detail)
	}
	apply(t, s, vm.Change{Image: &vm.ImageUpdate{From: vm.ImageUploading, Image: i}})
	got, err := s.Image(t.Context(), "full")
	must(t, err)
	i.Source, i.CreatedAt, i.Seq, i.Revision, i.UpdatedAt = first.Source, first.CreatedAt, 1, 2, got.UpdatedAt
	if !reflect.DeepEqual(got, i) {
		t.Errorf("read %+v; want %+v", got, i)
	}
	apply(t, s, vm.Change{Image: &vm.ImageUpdate{From: vm.ImageError, Image: first}}) // and back to the defaults
	got, err = s.Image(t.Context(), "full")
	must(t, err)
	first.Seq, first.Revision, first.UpdatedAt = 1, 3, got.UpdatedAt
	if !reflect.DeepEqual(got, first) {
		t.Errorf("read %+v; want %+v", got, first)
	}
}

func TestInvalidChangesOfImagesAreRefused(t *testing.T) {
	s := open(t)
	i := makeImage("debian", someSum)
	apply(t, s, vm.Change{NewImage: &i})
	strange, stray := makeImage("strange", someSum), makeImage("none", someSum)
	strange.State = "lost"
	for name, tt := range map[string]struct {
		change vm.Change
		code   vm.Code // empty: a defect
		detail string
	}{
		"an existing image":     {vm.Change{NewImage: &i}, vm.CodeExists, `image debian already exists`},
		"one of no known state": {vm.Change{NewImage: &strange}, "", "CHECK constraint failed"},
		"an update of none":     {vm.Change{Image: &vm.ImageUpdate{From: vm.ImageAvailable, Image: stray}}, vm.CodeBusy, "image none is no longer available"},
		"none is deleted":       {vm.Change{DeleteImage: "none"}, vm.CodeNotFound, `image none not found`},
	} {
		tt.change.Operation = &vm.Operation{ID: name, Kind: vm.ImageCreate, Resource: vm.ImageResource("debian"), State: vm.OpRunning}
		err := s.applyErr(t.Context(), tt.change)
		if err == nil || !strings.Contains(err.Error(), tt.detail) {
			t.Errorf("%s: %v; want %q in it", name, err, tt.detail)
		} else if tt.code != "" {
			wantFault(t, err, tt.code)
		}
		_, err = s.Operation(t.Context(), name)
		wantFault(t, err, vm.CodeNotFound)
	}
}

func TestImagesAreSelected(t *testing.T) {
	s := open(t)
	for n, state := range []vm.ImageState{vm.ImageAvailable, vm.ImageImporting, vm.ImageAvailable, vm.ImageError} {
		i := makeImage(fmt.Sprint("i", n), someSum)
		i.State = state
		if n == 2 {
			i.SHA256 = otherSum
		}
		if n > 1 {
			i.Labels = map[string]string{"os": "debian", "n": fmt.Sprint(n)}
		}
		apply(t, s, vm.Change{NewImage: &i})
	}
	for f, want := range map[vm.ImageFilter]string{
		{}:                                  "i0 i1 i2 i3",
		{State: vm.ImageAvailable}:          "i0 i2",
		{State: vm.ImageUploading}:          "",
		{SHA256: someSum}:                   "i0 i1 i3",
		{SHA256: strings.Repeat("0", 64)}:   "",
		{Label: "os", LabelValue: "debian"}: "i2 i3",
		{Label: "os", LabelValue: "Debian"}: "",
		{State: vm.ImageError, SHA256: someSum, Label: "n", LabelValue: "3"}:                       "i3",
		{State: vm.ImageAvailable, SHA256: someSum, Label: "n", LabelValue: "2"}:                   "",
		{State: vm.ImageAvailable, SHA256: otherSum, Label: "n", LabelValue: "2"}:                  "i2",
		{State: vm.ImageAvailable, SHA256: otherSum, Label: "n' OR 'a'='a", LabelValue: "' OR 1 "}: "",
	} {
		list, err := s.Images(t.Context(), f, vm.Page{})
		must(t, err)
		var names []string
		for _, i := range list {
			names = append(names, i.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%+v selects %q; want %q", f, got, want)
		}
	}
}

func TestAnImageIsKeptWhileItsContentIsInUse(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	i := makeImage("debian", someSum)
	apply(t, s, vm.Change{NewImage: &i})
	wantUse := func(what string, vms, disks int) {
		t.Helper()
		err := s.applyErr(t.Context(), vm.Change{DeleteImage: "debian", Events: []vm.Event{vm.NewEvent("image.deleted", vm.ImageResource("debian"), nil)}})
		f := wantFault(t, err, vm.CodeInUse)
		if want := fmt.Sprintf("image debian is in use by %d VM(s) and %d disk(s)", vms, disks); f.Detail != want || f.Hint == "" {
			t.Errorf("%s: %q, %q; want %q and a hint", what, f.Detail, f.Hint, want)
		}
	}
	root, drive, plain := makeVM(1), makeVM(2), makeVM(3)
	root.Root = madeOf("debian", someSum)
	root.CDROMs = []vm.CDROM{{ID: vm.SeedCDROM}, {ID: "cd-1", Image: "debian", SHA256: someSum}, {ID: "cd-2", Image: "debian", SHA256: someSum, BootIndex: 1}}
	drive.CDROMs = []vm.CDROM{{ID: "cd-1", Image: "renamed", SHA256: someSum}, {ID: "cd-2", Image: "other", SHA256: otherSum}}
	plain.CDROMs = []vm.CDROM{{ID: vm.SeedCDROM}}
	apply(t, s, vm.Change{NewVM: &root})
	wantUse("a root disk and two drives of one VM", 1, 0)
	apply(t, s, vm.Change{NewVM: &drive})
	apply(t, s, vm.Change{NewVM: &plain})
	wantUse("a drive of another", 2, 0)
	making, empty := makeDisk("making"), makeDisk("empty")
	making.DiskFile, making.State = madeOf("debian", someSum), vm.DiskCreating
	apply(t, s, vm.Change{NewDisk: &making})
	apply(t, s, vm.Change{NewDisk: &empty})
	wantUse("a disk that is being made", 2, 1)

	drive.CDROMs = drive.CDROMs[1:]
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: drive.State, VM: drive}})
	wantUse("one is ejected", 1, 1)
	plain.CDROMs = append(plain.CDROMs, vm.CDROM{ID: "cd-1", Image: "debian", SHA256: someSum})
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: plain.State, VM: plain}})
	wantUse("one is put in", 2, 1)
	plain.CDROMs = nil
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: plain.State, VM: plain}})
	wantUse("all are taken out", 1, 1)
	root.CDROMs, root.Root = nil, madeOf("other", otherSum)
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: root.State, VM: root}})
	wantUse("the root disk is another", 0, 1)
	root.Root = madeOf("debian", someSum)
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: root.State, VM: root}})
	wantUse("and that again", 1, 1)
	making.DiskFile, making.State = vm.DiskFile{SizeMiB: 1024}, vm.DiskAvailable
	apply(t, s, vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskCreating, Disk: making}}})
	wantUse("the disk has no base", 1, 0)

	apply(t, s, vm.Change{DeleteVM: root.ID, DeleteImage: "debian"}) // in one change
	_, err := s.Image(t.Context(), "debian")
	wantFault(t, err, vm.CodeNotFound)
	if events, err := s.Events(t.Context(), vm.EventFilter{}, vm.Page{}); err != nil || len(events) != 0 {
		t.Errorf("events of the refused change: %+v, %v; want none", events, err)
	}
	var left []string
	must(t, s.reader.Select(&left, `SELECT vm_id || ' ' || sha256 FROM vm_contents`))
	if !reflect.DeepEqual(left, []string{drive.ID + " " + otherSum}) {
		t.Errorf("contents in use: %q; want that of the one drive", left)
	}
}

func TestAnImageIsDeletedIfAnotherImageHasItsContent(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	v.Root = madeOf("a", someSum)
	apply(t, s, vm.Change{NewVM: &v})
	for _, tt := range []struct {
		state, other vm.ImageState // empty: no other image
		otherSum     string
		kept         bool
	}{
		{vm.ImageAvailable, "", "", true},
		{vm.ImageAvailable, vm.ImageAvailable, someSum, false},
		{vm.ImageAvailable, vm.ImageAvailable, otherSum, true},
		{vm.ImageAvailable, vm.ImageError, someSum, true},
		{vm.ImageAvailable, vm.ImageImporting, someSum, true},
		{vm.ImageError, "", "", true},
		{vm.ImageError, vm.ImageAvailable, someSum, false},
		// An image that was never available can always be deleted, regardless of its content
		// would be: a restored backup may have such an image.
		{vm.ImageImporting, "", "", false},
		{vm.ImageImporting, vm.ImageError, someSum, false},
		{vm.ImageUploading, "", "", false},
	} {
		i, other := makeImage("a", someSum), makeImage("b", tt.otherSum)
		i.State, other.State = tt.state, tt.other
		apply(t, s, vm.Change{NewImage: &i})
		if tt.other != "" {
			apply(t, s, vm.Change{NewImage: &other})
		}
		err := s.applyErr(t.Context(), vm.Change{DeleteImage: "a"})
		if tt.kept {
			wantFault(t, err, vm.CodeInUse)
		} else if err != nil {
			t.Errorf("%+v: %v; want it deleted", tt, err)
		}
		_, err = s.writer.Exec(`DELETE FROM images`)
		must(t, err)
	}
}

func TestUnavailableImagesAreSelected(t *testing.T) {
	s := open(t)
	var want []string
	for _, state := range []vm.ImageState{vm.ImageImporting, vm.ImageUploading, vm.ImageAvailable, vm.ImageError} {
		i := makeImage(string(state), someSum)
		i.State = state
		apply(t, s, vm.Change{NewImage: &i})
		if state != vm.ImageAvailable {
			want = append(want, i.Name)
		}
	}
	list, err := s.Images(t.Context(), vm.ImageFilter{Unavailable: true}, vm.Page{})
	must(t, err)
	var got []string
	for _, i := range list {
		got = append(got, i.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q; want %q", got, want)
	}
}

func TestImagesAndTheirUsersAreFoundByIndex(t *testing.T) {
	s := open(t)
	where := func(f vm.ImageFilter) string {
		q := selectImages(f)
		query, _ := q.sql(imageTable.list, vm.Page{Limit: 10})
		return query
	}
	for query, want := range map[string][]string{
		where(vm.ImageFilter{}):                         {"images USING INTEGER PRIMARY KEY"},
		where(vm.ImageFilter{State: vm.ImageAvailable}): {"images USING INDEX images_state"},
		where(vm.ImageFilter{SHA256: someSum}):          {"images USING INDEX images_sha256"},
		where(vm.ImageFilter{Unavailable: true}):        {"images USING INDEX images_unavailable"},
		where(vm.ImageFilter{Label: "a"}):               {"COVERING INDEX image_labels_value (key=? AND value=? AND owner>?)", "images USING INTEGER PRIMARY KEY"},
		contentUsers:                                    {"INDEX sqlite_autoindex_images_1", "INDEX images_sha256", "INDEX vm_contents_sha256", "INDEX disks_base"},
	} {
		plan := strings.Join(planOf(t, s, query), "; ")
		for _, w := range want {
			if !strings.Contains(plan, w) {
				t.Errorf("%s: the plan is %s; want %s in it", query, plan, w)
			}
		}
		if strings.Contains(plan, "TEMP B-TREE") || strings.Contains(plan, "SCAN") {
			t.Errorf("%s: the plan is %s; want neither a scan nor a sort", query, plan)
		}
	}
}
