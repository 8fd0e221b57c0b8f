package vm

import "slices"

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
