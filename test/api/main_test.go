// Package api has the end-to-end tests of what users do: the real binary driven over its
// API, with real QEMU and a real Linux guest.
package api

import (
	"testing"

	"vmand/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
