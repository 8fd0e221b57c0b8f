package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"vmand/host"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
)

const (
	seedLabel  = "cidata" // what cloud-init looks for (its data source NoCloud)
	seedLast   = "vmand"  // the name of the last file
	maxSeed    = 64 << 20 // bytes
	isoSector  = 2048     // of an ISO image
	isoFirst   = 16       // the number of the sector of the first volume descriptor
	isoEnd     = 255      // the kind of the last
	isoPrimary = 1        // that of the first
	isoJoliet  = 2
	isoTime    = "\x46\x01\x01\x00\x00\x00\x00" // 1970, as directories have it
)

// WriteSeed implements [vm.Files].
func (d *Driver) WriteSeed(_ context.Context, vmID string, files map[string][]byte) error {
	return fileFault(writeSeed(d.state, d.account, vmID, files), "write the cloud-init seed of VM %s", vmID)
}

// writeSeed makes the seed of a VM in a directory of its own, which the next start of
// vmand removes if this one is killed.
func writeSeed(state *os.Root, a host.Account, vmID string, files map[string][]byte) error {
	temp, name := host.TempName(vmSeed(vmID)), vmSeed(vmID)
	if err := state.RemoveAll(temp); err != nil {
		return err
	}
	if err := state.Mkdir(temp, 0o700); err != nil {
		return err
	}
	err := makeSeed(state, temp, files)
	if err == nil {
		err = finishSeed(state, a, temp+"/image", name)
	}
	return errors.Join(err, state.RemoveAll(temp))
}

// makeSeed makes temp/image, with both extensions that have names as they are: Rock
// Ridge for Linux, Joliet for everybody.
func makeSeed(state *os.Root, temp string, files map[string][]byte) error {
	workspace := temp + "/files"
	if err := state.Mkdir(workspace, 0o755); err != nil {
		return err
	}
	// The library writes a sector too many after a file that is empty or ends with a
	// sector, over what comes next: after the last file, the directory of Joliet. So the
	// last one is ours.
	files = maps.Clone(files)
	files[seedLast] = []byte("made by vmand\n")
	for name, content := range files {
		if name == "" || path.Base(name) != name || name > seedLast {
			return fmt.Errorf("a seed has no file of the name %q", name)
		}
		if err := state.WriteFile(workspace+"/"+name, content, 0o644); err != nil {
			return err
		}
	}
	f, err := state.OpenFile(temp+"/image", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	iso, err := iso9660.Create(file.New(f, false), 0, 0, isoSector, state.Name()+"/"+workspace)
	if err != nil {
		return err
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: seedLabel}); err != nil {
		return err
	}
	return polishISO(f)
}

// polishISO makes every time in an ISO image the same, so that the same files make
// the same image, and pads what has to be padded (ECMA-119).
func polishISO(f *os.File) error {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxSeed))
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	for at := isoFirst * isoSector; at+isoSector <= len(b) && b[at] != isoEnd; at += isoSector {
		descriptor := b[at : at+isoSector]
		if kind := b[at]; kind != isoPrimary && kind != isoJoliet {
			continue
		}
		if end := int(le.Uint32(descriptor[80:])) * isoSector; end > len(b) {
			b = append(b, make([]byte, end-len(b))...)
			descriptor = b[at : at+isoSector]
		}
		padLabel(descriptor[40:72], b[at] == isoJoliet)
		for i := range 2 { // made, changed
			copy(descriptor[813+17*i:], "1970010100000000\x00")
		}
		for i := range 2 { // expires, is valid from: not said
			copy(descriptor[847+17*i:], "0000000000000000\x00")
		}
		root := descriptor[156:190]
		start := int(le.Uint32(root[2:])) * isoSector
		polishRecord(root)
		end := start + int(le.Uint32(root[10:]))
		if start > end || end > len(b) {
			return errors.New("the directory of the ISO image is not in it")
		}
		for record := b[start:end]; len(record) > 0 && record[0] > 33 && int(record[0]) <= len(record); record = record[record[0]:] {
			polishRecord(record[:record[0]])
		}
	}
	_, err = f.WriteAt(b, 0)
	return err
}

// padLabel pads the name of a volume with spaces, where the library writes zeros.
func padLabel(label []byte, wide bool) {
	for i := range label {
		if label[i] == 0 && (!wide || i%2 == 1) {
			label[i] = ' '
		}
	}
}

// polishRecord does so with a record of a directory, whose length in bytes is in it.
func polishRecord(r []byte) {
	copy(r[18:], isoTime)
	name := int(r[32])
	if r[25]&2 != 0 { // a directory
		size := (binary.LittleEndian.Uint32(r[10:]) + isoSector - 1) / isoSector * isoSector
		binary.LittleEndian.PutUint32(r[10:], size)
		binary.BigEndian.PutUint32(r[14:], size)
	}
	if 33+name+(name+1)%2 > len(r) {
		return
	}
	// Entries of Rock Ridge: two letters, a length, a version.
	for e := r[33+name+(name+1)%2:]; len(e) > 4 && e[2] >= 4 && int(e[2]) <= len(e); e = e[e[2]:] {
		if string(e[:2]) == "TF" {
			for at := 5; at+len(isoTime) <= int(e[2]); at += len(isoTime) {
				copy(e[at:], isoTime)
			}
		}
	}
}

// finishSeed lends a seed to the account and gives it its name.
func finishSeed(state *os.Root, a host.Account, temp, name string) error {
	f, err := state.Open(temp)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.Lend(f); err != nil {
		return err
	}
	return host.Publish(state, f, temp, name)
}
