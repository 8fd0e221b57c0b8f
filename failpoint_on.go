//go:build failpoints

package main

func init() { otherVariables = append(otherVariables, "VMAN_FAILPOINT") }
