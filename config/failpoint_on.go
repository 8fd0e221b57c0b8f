//go:build failpoints

package config

func init() { otherVariables = append(otherVariables, "VMAN_FAILPOINT") }
