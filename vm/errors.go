package vm

import (
	"errors"
	"fmt"
	"strings"
)

// The classes of errors. An error that this package or an implementation of its interfaces
// returns matches exactly one of them with [errors.Is]; any other error is a defect.
var (
	ErrInvalid     = errors.New("invalid")
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrState       = errors.New("not allowed in this state")
	ErrBusy        = errors.New("another operation is in progress")
	ErrUnavailable = errors.New("the host cannot do it now")
)

// Code is the stable, documented identifier of a problem, on which clients switch. Package
// server maps each code to an HTTP status.
type Code string

// The codes of the domain and its drivers. Package server has the codes of the web server
// itself, such as a missing token.
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
	CodeQEMUUnavailable     Code = "qemu-unavailable"    // not installed or not usable
	CodeQEMUUnresponsive    Code = "qemu-unresponsive"   // running, but does not answer on its monitor
	CodeOperationFailed     Code = "operation-failed"    // QEMU or one of its tools failed
	CodeAddressesExhausted  Code = "addresses-exhausted" // no address of the network is free
	CodeNetworkUnavailable  Code = "network-unavailable" // the host does not support or has lost the network
	CodeAgentUnavailable    Code = "agent-unavailable"   // the guest agent does not answer
	CodeGuestRefused        Code = "guest-refused"       // the guest refused or failed
	CodeUnsafeImage         Code = "unsafe-image"        // the image could do harm
	CodeDamagedImage        Code = "damaged-image"       // cut off or malformed
	CodeUnsupportedImage    Code = "unsupported-image"   // of a format, or with a feature, that is not accepted
	CodeChecksumMismatch    Code = "checksum-mismatch"   // the transferred bytes do not have the given checksum
	CodeTooLarge            Code = "image-too-large"     // above the configured limit
	CodeFetchFailed         Code = "fetch-failed"        // the download failed
	CodeUnavailable         Code = "unavailable"
	CodeRepeated            Code = "idempotency-mismatch" // the Idempotency-Key was used for another request
	CodeInternal            Code = "internal"
)

// classes maps each code to its class.
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
	CodeDamagedImage:        ErrInvalid,
	CodeUnsupportedImage:    ErrInvalid,
	CodeChecksumMismatch:    ErrInvalid,
	CodeTooLarge:            ErrInvalid,
	CodeFetchFailed:         ErrUnavailable,
	CodeUnavailable:         ErrUnavailable,
	CodeRepeated:            ErrState,
}

// A Fault is an error together with the texts that a client reads. Its class follows from its
// code.
type Fault struct {
	Code        Code
	Detail      string // names the resource and the values
	Hint        string // how to solve the problem; may be empty
	OperationID string // the conflicting or the failed operation; may be empty
	Fields      []FieldFault
	Err         error // the cause; may be nil
}

// A FieldFault is a problem of one field of a request.
type FieldFault struct {
	Field  string // a JSON pointer into the body, or the name of a parameter
	Detail string
}

// Error returns the detail, followed by the cause if there is one.
func (f *Fault) Error() string {
	if f.Err != nil {
		return fmt.Sprintf("%s: %v", f.Detail, f.Err)
	}
	return f.Detail
}

// Unwrap returns the cause, or nil.
func (f *Fault) Unwrap() error { return f.Err }

// Is reports whether target is the class of f's code.
func (f *Fault) Is(target error) bool { return target != nil && classes[f.Code] == target }

// HasCode reports whether err is or wraps a [Fault] of this code.
func HasCode(err error, code Code) bool {
	var f *Fault
	return errors.As(err, &f) && f.Code == code
}

// InvalidField returns a [Fault] of code [CodeInvalid] for one field of a request.
func InvalidField(field, format string, args ...any) *Fault {
	detail := fmt.Sprintf(format, args...)
	return &Fault{
		Code:   CodeInvalid,
		Detail: field + ": " + detail,
		Fields: []FieldFault{{Field: field, Detail: detail}},
	}
}

// NotFound returns a [Fault] of code [CodeNotFound] for a missing resource, for example of the
// kind "VM" or "template".
func NotFound(kind, id string) *Fault {
	return &Fault{Code: CodeNotFound, Detail: fmt.Sprintf("%s %s not found", kind, id)}
}

// maxDetail is the maximum size in bytes of the recorded detail of a failed operation. The
// output of QEMU and its tools, which a detail may contain, has no limit.
const maxDetail = 4 << 10

// ProblemOf returns the [Problem] to record for an operation that ended with err, nil if err is
// nil. An error without a class is a defect: its text is not recorded, only logged. A detail
// longer than 4 KiB is truncated.
func ProblemOf(err error) *Problem {
	p := problemOf(err)
	if p != nil && len(p.Detail) > maxDetail {
		const ellipsis = "…"
		p.Detail = strings.ToValidUTF8(p.Detail[:maxDetail-len(ellipsis)], "") + ellipsis
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
	general := map[Code]error{
		CodeNotFound:    ErrNotFound,
		CodeExists:      ErrExists,
		CodeBusy:        ErrBusy,
		CodeState:       ErrState,
		CodeInvalid:     ErrInvalid,
		CodeUnavailable: ErrUnavailable,
	}
	for code, class := range general {
		if errors.Is(err, class) {
			return &Problem{Code: code, Detail: err.Error()}
		}
	}
	return &Problem{Code: CodeInternal, Detail: "internal error: see the log entries with the id of this operation"}
}
