//go:build !failpoints

package vm

// FailPoint is a place where a test can have the daemon killed. It does nothing
// in a vmand that is built without the tag "failpoints".
func FailPoint(string) {}
