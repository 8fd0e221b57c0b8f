// Package failpoint names the places where a test can kill the daemon, to check
// that the next one finds everything and loses nothing.
package failpoint

// Hit kills the daemon as kill -9 does if the environment variable VMAN_FAILPOINT
// names this place: "name", or "name#n" for the n-th time it is reached. It is a
// no-op in a vmand that is built without the tag "failpoints".
func Hit(name string) { hit(name) }
