package cli

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
)

// Ctrl-C in the editor is for the editor: the text is sent when it ends.
func TestInterruptInTheEditorKeepsTheText(t *testing.T) {
	f := newFakeDaemon(t)
	f.answer("GET /vms/web", 200, apiVM("web", "running"))
	sent := make(chan string, 1)
	f.mux.HandleFunc("PATCH /vms/web", func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		sent <- string(text)
		writeJSON(w, 200, apiVM("web", "running"))
	})
	dir := t.TempDir()
	script := "kill -INT $PPID\nwhile ! [ -e " + dir + "/interrupted ]; do sleep 0.01; done\n" +
		"sed -i 's/^description:.*/description: new/' \"$1\"\n"
	if err := os.WriteFile(filepath.Join(dir, "editor"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("EDITOR", "sh "+filepath.Join(dir, "editor"))
	ctx, cancel := context.WithCancelCause(t.Context())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt)
	defer signal.Stop(signals)
	go func() { // as Main does
		<-signals
		cancel(errInterrupted)
		_ = os.WriteFile(filepath.Join(dir, "interrupted"), nil, 0o600)
	}()
	vmanWith(ctx, t, "", "edit", "web").want(t, 0, "VM web changed: description")
	if got := strings.TrimSpace(<-sent); got != `{"description":"new"}` {
		t.Errorf("the daemon received %s", got)
	}
}
