package vm

import (
	"slices"
)

// A Version identifies one state of one resource. Seq is never used twice, so a
// VM made anew under an old name has another version.
type Version struct{ Seq, Revision int64 }

// A Match is a precondition on the resource to change: nil for none, else one
// of the versions must be the present one.
type Match []Version

func (m Match) Check(resource string, now Version) error {
	if m == nil || slices.Contains(m, now) {
		return nil
	}
	return &Fault{Code: CodePrecondition, Detail: resource + " has changed since the version in If-Match",
		Hint: "read it again and repeat the request with its new ETag"}
}

// Version returns the version of the template, which never changes.
func (t Template) Version() Version { return Version{Seq: t.Seq} }

// Version returns the recorded version of the VM.
func (v VM) Version() Version { return Version{v.Seq, v.Revision} }

// Version returns the recorded version of the disk.
func (d Disk) Version() Version { return Version{d.Seq, d.Revision} }

// Version returns the recorded version of the image.
func (i Image) Version() Version { return Version{i.Seq, i.Revision} }

// Version returns the recorded version of the network.
func (n Network) Version() Version { return Version{n.Seq, n.Revision} }
