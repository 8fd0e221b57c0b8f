package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"

	"vmand/host"
	"vmand/vm"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
)

const (
	seedLabel = "cidata" // the volume that cloud-init looks for (data source NoCloud)
	seedLast  = "vmand"  // the name of the last file
	maxSeed   = 64 << 20 // bytes
)

// WriteSeed implements [vm.Files].
func (d *Driver) WriteSeed(_ context.Context, vmID string, files map[string][]byte) error {
	files = maps.Clone(files)
	config, ignition := files[vm.SeedIgnition]
	delete(files, vm.SeedIgnition)
	err := writeSeed(d.state, d.account, vmID, files)
	switch {
	case err != nil:
	case ignition:
		err = writeIgnition(d.state, d.account, vmID, config)
	default:
		if err = d.state.Remove(vmIgnition(vmID)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return fileFault(err, "write the cloud-init seed of VM %s", vmID)
}

// writeIgnition writes the file that the guest of a VM gets in fw_cfg.
func writeIgnition(state *os.Root, a host.Account, vmID string, config []byte) error {
	return host.WriteFile(state, vmIgnition(vmID), 0o600, func(f *os.File) error {
		if _, err := f.Write(config); err != nil {
			return err
		}
		return a.Lend(f)
	})
}

// writeSeed makes the seed of a VM in a temporary directory. If vmand is killed
// meanwhile, the next vmand removes it (removeTemps).
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

// makeSeed makes the ISO image temp/image of files. Two extensions keep the names of
// the files: Rock Ridge for Linux, Joliet for other guests.
func makeSeed(state *os.Root, temp string, files map[string][]byte) error {
	workspace := temp + "/files"
	if err := state.Mkdir(workspace, 0o755); err != nil {
		return err
	}
	// After a file that is empty or ends at the end of a sector, the library writes one
	// sector too many: over the next file or, after the last file, over the directory of
	// Joliet. So the last file is one of vmand's that does neither.
	files = maps.Clone(files)
	files[seedLast] = []byte("made by vmand\n")
	for name, content := range files {
		if name == "" || path.Base(name) != name || name > seedLast {
			return fmt.Errorf("a seed cannot have a file named %q", name)
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
	options := iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: seedLabel}
	if err := iso.Finalize(options); err != nil {
		return err
	}
	return normalizeISO(f)
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
