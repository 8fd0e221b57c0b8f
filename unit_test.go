package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"vmand/cli"
	"vmand/store"
)

// unitSettings returns the lines of the service file.
func unitSettings(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("packaging/vmand.service")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\n")
}

func TestTheServiceIsStartedAgainHoweverOftenItIsKilled(t *testing.T) {
	lines := unitSettings(t)
	for _, want := range []string{
		"Restart=on-failure", "StartLimitIntervalSec=0", "ExecReload=/bin/kill -HUP $MAINPID",
		fmt.Sprintf("RestartPreventExitStatus=%d %d", exitNewer, exitConfig),
		"RestartForceExitStatus=SIGHUP SIGINT SIGPIPE SIGTERM", // clean ends for systemd (systemd.service(5))
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the service file has no line %s", want)
		}
	}
}

func TestAnInvalidConfigurationHasItsOwnExitStatus(t *testing.T) {
	err := run([]string{"--log-level=loud"}, cli.Streams{})
	if err == nil || statusOf(err) != exitConfig {
		t.Errorf("%v has the exit status %d", err, statusOf(err))
	}
	if got := statusOf(fmt.Errorf("open: %w", store.ErrNewer)); got != exitNewer {
		t.Errorf("a database of a newer version has the exit status %d", got)
	}
	if got := statusOf(errors.New("other")); got != 1 {
		t.Errorf("another error has the exit status %d", got)
	}
}
