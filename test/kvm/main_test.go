//go:build kvm

// Package kvm changes the KVM of its host, which must be a guest of test/kvm/build.sh.
package kvm

import (
	"testing"

	"vmand/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
