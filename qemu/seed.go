package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"vmand/vm"
)

// seedLabel is what cloud-init looks for (its data source NoCloud).
const seedLabel = "cidata"

// WriteSeed implements [vm.Driver].
func (d *Driver) WriteSeed(_ context.Context, vmID string, files map[string][]byte) error {
	return fileFault(writeSeed(d.state, d.account, vmID, files), "write the cloud-init seed of vm %s", vmID)
}

// writeSeed makes the seed of a VM in a directory of its own, which the next start of
// vmand removes if this one is killed.
func writeSeed(state *os.Root, a account, vmID string, files map[string][]byte) error {
	temp, name := tempName(vmSeed(vmID)), vmSeed(vmID)
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
	for name, content := range files {
		if name == "" || path.Base(name) != name {
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
	iso, err := iso9660.Create(file.New(f, false), 0, 0, 2048, state.Name()+"/"+workspace)
	if err != nil {
		return err
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: seedLabel}); err != nil {
		return err
	}
	return nil
}

// finishSeed gives a seed to who reads it, and its name.
func finishSeed(state *os.Root, a account, temp, name string) error {
	f, err := state.Open(temp)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(a.lend(f), f.Sync()); err != nil {
		return err
	}
	vm.FailPoint("seed.made")
	if err := state.Rename(temp, name); err != nil {
		return err
	}
	vm.FailPoint("seed.renamed")
	dir, err := state.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
