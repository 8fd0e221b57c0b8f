// Package network has the end-to-end tests of networks: guests, the host and others around
// it, in network namespaces.
package network

import (
	"testing"

	"vmand/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
