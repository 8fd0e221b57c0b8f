package vm

// A NewVM is what is asked of a VM to make.
type NewVM struct {
	ID          string // empty: one is made up
	Template    string
	Image       string // that its root disk is made of; empty: the daemon's boot image, or none
	FullClone   bool   // the root disk is a copy of the image, and no overlay of it
	RootSizeMiB int64  // 0: the size of the image, or [DefaultMiB] without one
	VMEdits     VMEdits
	NICs        *[]NewNIC // nil: one on the default network
	CDROMs      []NewCDROM
	CloudInit   *CloudInit // nil: the guest gets no seed
}
