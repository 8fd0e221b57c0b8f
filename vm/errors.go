package vm

import (
	"errors"
	"fmt"
	"strings"
)

// Every error that leaves this package, or a package that implements one of its
// interfaces, matches (errors.Is) exactly one of these classes, or is a defect.
var (
	ErrInvalid     = errors.New("invalid")
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrState       = errors.New("not allowed in this state")
	ErrBusy        = errors.New("another operation is in progress")
	ErrUnavailable = errors.New("the host cannot do it now")
)

// Code is the stable, documented, machine-readable word for what went wrong. It
// is what clients switch on; package server gives each its HTTP status.
type Code string

// The codes that the domain and its drivers use. Those that only a web server
// can need (a wrong method, a missing token) are in package server.
const (
	CodeInvalid             Code = "invalid-request"
	CodeNotFound            Code = "not-found"
	CodeExists              Code = "already-exists"
	CodeState               Code = "invalid-state"
	CodeBusy                Code = "busy"
	CodeInUse               Code = "in-use"
	CodeLimitReached        Code = "limit-reached"
	CodeNotCancellable      Code = "not-cancellable"
	CodeCancelled           Code = "cancelled"
	CodeInterrupted         Code = "interrupted"
	CodePrecondition        Code = "precondition-failed"
	CodeInsufficientMemory  Code = "insufficient-memory"
	CodeInsufficientStorage Code = "insufficient-storage"
	CodeQEMUUnavailable     Code = "qemu-unavailable"    // not installed, or not usable
	CodeQEMUUnresponsive    Code = "qemu-unresponsive"   // runs, and does not answer
	CodeOperationFailed     Code = "operation-failed"    // QEMU or a tool of it said no
	CodeAddressesExhausted  Code = "addresses-exhausted" // no free address on a network
	CodeNetworkUnavailable  Code = "network-unavailable" // the host cannot have it, or has lost it
	CodeAgentUnavailable    Code = "agent-unavailable"   // no guest agent answers
	CodeGuestRefused        Code = "guest-refused"       // the guest agent said no
	CodeUnsafeImage         Code = "unsafe-image"        // what was brought is no image, or a harmful one
	CodeChecksumMismatch    Code = "checksum-mismatch"   // what was brought is not what was said
	CodeTooLarge            Code = "image-too-large"     // beyond what is configured
	CodeFetchFailed         Code = "fetch-failed"        // an image could not be downloaded
	CodeUnavailable         Code = "unavailable"
	CodeRepeated            Code = "idempotency-mismatch" // the Idempotency-Key was used for another request
	CodeInternal            Code = "internal"
)

var classes = map[Code]error{
	CodeInvalid:             ErrInvalid,
	CodeNotFound:            ErrNotFound,
	CodeExists:              ErrExists,
	CodeState:               ErrState,
	CodeBusy:                ErrBusy,
	CodeInUse:               ErrState,
	CodeLimitReached:        ErrState,
	CodeNotCancellable:      ErrState,
	CodeCancelled:           ErrState,
	CodeInterrupted:         ErrUnavailable,
	CodePrecondition:        ErrState,
	CodeInsufficientMemory:  ErrUnavailable,
	CodeInsufficientStorage: ErrUnavailable,
	CodeQEMUUnavailable:     ErrUnavailable,
	CodeQEMUUnresponsive:    ErrUnavailable,
	CodeOperationFailed:     ErrUnavailable,
	CodeAddressesExhausted:  ErrState,
	CodeNetworkUnavailable:  ErrUnavailable,
	CodeAgentUnavailable:    ErrUnavailable,
	CodeGuestRefused:        ErrUnavailable,
	CodeUnsafeImage:         ErrInvalid,
	CodeChecksumMismatch:    ErrInvalid,
	CodeTooLarge:            ErrInvalid,
	CodeFetchFailed:         ErrUnavailable,
	CodeUnavailable:         ErrUnavailable,
	CodeRepeated:            ErrState,
}

// A Fault is an error with what a client is told about it. Its class, one of
// the six above, follows from its code.
type Fault struct {
	Code        Code
	Detail      string // names the thing and the values, for a person
	Hint        string // what to do next, where there is something
	OperationID string // of the operation in the way, or of the one that failed
	Fields      []FieldFault
	Err         error // the cause, for the log; may be nil
}

// A FieldFault is what is wrong with one field of a request.
type FieldFault struct {
	Field  string // a JSON pointer into the body, or the name of a parameter
	Detail string
}

func (f *Fault) Error() string {
	if f.Err != nil {
		return fmt.Sprintf("%s: %v", f.Detail, f.Err)
	}
	return f.Detail
}

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Err }

// Is reports whether target is the class of f's code.
func (f *Fault) Is(target error) bool { return target != nil && classes[f.Code] == target }

// InvalidField returns the fault of one bad field of a request.
func InvalidField(field, format string, args ...any) *Fault {
	detail := fmt.Sprintf(format, args...)
	return &Fault{Code: CodeInvalid, Detail: field + ": " + detail, Fields: []FieldFault{{Field: field, Detail: detail}}}
}

// NotFound returns the fault of a thing that is not there, such as a "vm" or a
// "template".
func NotFound(kind, id string) *Fault {
	return &Fault{Code: CodeNotFound, Detail: fmt.Sprintf("%s %q not found", kind, id)}
}

// maxDetail is how many bytes are recorded of what ended an operation. QEMU and
// the tools that say it may say any amount.
const maxDetail = 4 << 10

// ProblemOf returns what is to be recorded of an error that ended an operation.
// An error of no class is a defect: its text stays in the log.
func ProblemOf(err error) *Problem {
	p := problemOf(err)
	if p != nil && len(p.Detail) > maxDetail {
		const cut = "…"
		p.Detail = strings.ToValidUTF8(p.Detail[:maxDetail-len(cut)], "") + cut
	}
	return p
}

func problemOf(err error) *Problem {
	if err == nil {
		return nil
	}
	var f *Fault
	if errors.As(err, &f) {
		return &Problem{Code: f.Code, Detail: f.Error(), Hint: f.Hint}
	}
	for code, class := range map[Code]error{CodeNotFound: ErrNotFound, CodeExists: ErrExists, CodeBusy: ErrBusy,
		CodeState: ErrState, CodeInvalid: ErrInvalid, CodeUnavailable: ErrUnavailable} {
		if errors.Is(err, class) {
			return &Problem{Code: code, Detail: err.Error()}
		}
	}
	return &Problem{Code: CodeInternal, Detail: "an internal error ended the operation; the log has it under the operation's id"}
}
