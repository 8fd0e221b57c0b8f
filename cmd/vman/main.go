// Command vman is the client of vmand alone, for machines that run no VMs. The binary vmand
// has the same client: call it as vman.
package main

import (
	"os"

	"vmand/cli"
)

// version is set by the linker.
var version = "unknown"

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, version))
}
