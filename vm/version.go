package vm

import "slices"

// A Version identifies one state of one resource. Seq is never reused, so a VM that is
// created under the id of a deleted one has a different version.
type Version struct{ Seq, Revision int64 }

// A Match is a precondition of a change: the current version of the resource must be in
// the list. A nil Match accepts every version.
type Match []Version

// Check returns nil if m accepts the current version of a resource, such as "VM web-1",
// and a [Fault] of code [CodePrecondition] otherwise.
func (m Match) Check(resource string, current Version) error {
	if m == nil || slices.Contains(m, current) {
		return nil
	}
	return &Fault{
		Code:   CodePrecondition,
		Detail: resource + " has changed since the version in If-Match",
		Hint:   "read it again and repeat the request with its new ETag",
	}
}
