// Package api tests what users do, end to end: the real vmand driven over its API, with real
// QEMU and a real Linux guest.
package api

import (
	"testing"

	"vmand/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
