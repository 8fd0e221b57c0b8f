// Package bench measures the real daemon, each time beside a reference: the best possible
// result.
package bench

import (
	"testing"

	"vmand/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
