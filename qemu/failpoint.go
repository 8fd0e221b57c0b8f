package qemu

import (
	"slices"

	"vmand/vm"
)

// Fail points that several operations reach: a restart those of a start and a stop,
// the creation of a VM those of a disk's file.
var (
	imagePoints = []string{"image.temp-made", "image.created", "image.renamed"}
	startPoints = []string{"run.prepared", "qemu.spawned", "monitor.connected", "guest.continued"}
	endPoints   = []string{"stop.quit", "stop.exited", "run.removed"}
	stopPoints  = slices.Concat([]string{"stop.pressed"}, endPoints)
)

// FailPoints lists the fail points of this package by the operations that reach
// them, in that order: every seam inside an act of more than one step. Only the stop
// of a guest that reacts to the power button reaches "stop.pressed".
var FailPoints = map[vm.Kind][]string{
	vm.VMCreate:  slices.Concat([]string{"dir.made"}, imagePoints, []string{"image.synced"}),
	vm.VMStart:   startPoints,
	vm.VMStop:    stopPoints,
	vm.VMRestart: slices.Concat(stopPoints, startPoints),
	vm.VMReset:   {"guest.reset"},
	vm.VMDelete:  slices.Concat(endPoints, []string{"files.removed"}), // of a VM that runs

	vm.DiskCreate: imagePoints,
	vm.DiskDelete: {"files.removed"},
	vm.DiskAttach: {"plug.node-added", "plug.device-added"}, // of a running VM, like the detach
	vm.DiskDetach: {"unplug.device-deleted", "unplug.node-deleted"},
	vm.DiskResize: {"resize.grown"}, // plugged or not

	vm.NICAttach: {"nic.files-passed", "nic.netdev-added", "nic.device-added"}, // of a running VM, like the detach
	vm.NICDetach: {"nic.device-deleted", "nic.netdev-deleted"},

	vm.CDROMAttach: {"cdrom.node-added", "cdrom.device-added"}, // of a running VM, like the eject
	vm.CDROMEject:  {"cdrom.device-deleted", "cdrom.node-deleted"},

	vm.OrphanTerminate: endPoints,
	vm.OrphanDelete:    {"files.removed"},
}
