// Package network tests networks end to end: guests, their host and other hosts, in network
// namespaces.
package network

import (
	"testing"

	"vmand/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
