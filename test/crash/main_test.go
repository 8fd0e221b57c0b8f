// Package crash kills the daemon and its QEMUs at every moment, fills and breaks the file
// systems below them, and compares what is recorded with the host afterwards.
package crash

import (
	"testing"

	"vmand/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
