package cli

import (
	"context"
	"fmt"
	"io"
)

func teardown(ctx context.Context, h Host, out io.Writer) error {
	removed, err := h.Teardown(ctx)
	for _, name := range removed {
		fmt.Fprintln(out, "removed", name)
	}
	if err != nil {
		return err
	}
	if len(removed) == 0 {
		_, err = fmt.Fprintln(out, "nothing to remove")
	}
	return err
}
