package cli

// An escapeAct is what an escape requests.
type escapeAct int

const (
	escapeNothing escapeAct = iota
	escapeLeave
	escapeHelp
)

const escapeUsage = `after Enter:
  ~.  closes the console
  ~~  types ~
  ~?  shows this help`

// escapes finds escapes in the input, as ssh(1) does: a ~ at the start of a line
// and the key after it.
type escapes struct {
	lineStart bool // the next key starts a line
	tilde     bool // the last key was a ~ that may start an escape; it was not sent
}

// next returns the bytes to send for key, and the requested act.
func (e *escapes) next(key byte) (send []byte, act escapeAct) {
	wasTilde, wasStart := e.tilde, e.lineStart
	e.tilde, e.lineStart = false, key == '\r' || key == '\n'
	switch {
	case wasTilde && key == '.':
		return nil, escapeLeave
	case wasTilde && key == '?':
		e.lineStart = true
		return nil, escapeHelp
	case wasTilde && key != '~':
		return []byte{'~', key}, escapeNothing
	case !wasTilde && wasStart && key == '~':
		e.tilde = true
		return nil, escapeNothing
	}
	return []byte{key}, escapeNothing
}
