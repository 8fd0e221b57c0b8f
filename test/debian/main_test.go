//go:build debian

// Package debian boots a Debian cloud image and logs in to it by SSH.
package debian

import (
	"testing"

	"vmand/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
