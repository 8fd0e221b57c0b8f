//go:build debian

// Package debian goes from a cloud image of Debian to SSH, with a real one.
package debian

import (
	"testing"

	"vmand/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
