package qemu

import (
	"slices"

	"vmand/vm"
)

// What a start and a stop have in common with a restart, and a file of a disk
// with that of a VM.
var (
	imagePoints = []string{"image.temp-made", "image.created", "image.renamed"}
	startPoints = []string{"run.prepared", "qemu.spawned", "monitor.connected", "guest.continued"}
	endPoints   = []string{"stop.quit", "stop.exited", "run.removed"}
	stopPoints  = slices.Concat([]string{"stop.pressed"}, endPoints)
)

// FailPoints lists the [vm.FailPoint] calls of this package by the operations
// that reach them, in the order in which they do: every seam inside an act of
// more than one step. The stop of a guest that listens reaches "stop.pressed".
var FailPoints = map[vm.Kind][]string{
	vm.VMCreate:  slices.Concat([]string{"dir.made"}, imagePoints, []string{"image.synced"}),
	vm.VMStart:   startPoints,
	vm.VMStop:    stopPoints,
	vm.VMRestart: slices.Concat(stopPoints, startPoints),
	vm.VMReset:   {"guest.reset"},
	vm.VMDelete:  slices.Concat(endPoints, []string{"files.removed"}), // of a VM that runs

	vm.DiskCreate: imagePoints,
	vm.DiskDelete: {"files.removed"},
	vm.DiskAttach: {"plug.node-added", "plug.device-added"}, // of a VM that runs, as is a detach
	vm.DiskDetach: {"unplug.device-deleted", "unplug.node-deleted"},
	vm.DiskResize: {"resize.grown"}, // plugged or not

	vm.NICAttach: {"nic.netdev-added", "nic.device-added"}, // of a VM that runs, as is a detach
	vm.NICDetach: {"nic.device-deleted", "nic.netdev-deleted"},

	vm.CDROMAttach: {"cdrom.node-added", "cdrom.device-added"}, // of a VM that runs, as is an eject
	vm.CDROMEject:  {"cdrom.device-deleted", "cdrom.node-deleted"},

	vm.OrphanTerminate: endPoints,
	vm.OrphanDelete:    {"files.removed"},
}
