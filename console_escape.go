package main

// What an escape asks for.
type escapeAct int

const (
	escapeNothing escapeAct = iota
	escapeLeave
	escapeHelp
)

const escapeWords = `after Enter:
  ~.  leaves the console
  ~~  types ~
  ~?  shows this`

// escapes finds escapes in what is typed, as ssh(1) does: a ~ at the beginning of
// a line and the key after it.
type escapes struct {
	lineStart bool // the next key begins a line
	tilde     bool // the last key may begin an escape and was not passed on
}

// next takes a key and returns what is to be passed on, and what is asked for.
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
