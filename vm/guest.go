package vm

import (
	"strings"
	"time"
	"unicode"
)

// MaxGuestTimeout is how long a program in a guest can be waited for.
const MaxGuestTimeout = 5 * time.Minute

// Check finds what no guest could be asked for.
func (c *GuestCommand) Check() error {
	if c.Path == "" {
		return InvalidField("/command/0", "must not be empty")
	}
	for _, v := range c.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" || strings.ContainsFunc(name, unicode.IsControl) {
			return InvalidField("/env", "has a name that is empty or has a '=' or a control character in it")
		}
	}
	if len(c.Stdin) > MaxGuestStdin {
		return InvalidField("/stdin", "must have at most %d bytes", MaxGuestStdin)
	}
	if c.Timeout <= 0 || c.Timeout > MaxGuestTimeout {
		return InvalidField("/timeout_seconds", "must be 1 to %d", int(MaxGuestTimeout/time.Second))
	}
	return nil
}

// maxGuestWords is how many characters of what a guest says are told.
const maxGuestWords = 500

// Printable returns what a guest says as one line of at most maxGuestWords
// characters that all show.
func Printable(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)), " ")
	if all := []rune(s); len(all) > maxGuestWords {
		s = string(all[:maxGuestWords-1]) + "…"
	}
	return s
}
