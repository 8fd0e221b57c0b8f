// Package bench measures the real daemon, each time together with the best there could be.
package bench

import (
	"testing"

	"vmand/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
