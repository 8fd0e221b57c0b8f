package server

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"strings"
	"unicode"

	"github.com/labstack/echo/v4"

	"vmand/openapi"
	"vmand/vm"
)

// The codes that are specific to HTTP. Package vm has the others.
const (
	codeMalformed        vm.Code = "malformed-body"
	codeUnauthorized     vm.Code = "unauthorized"
	codeForbidden        vm.Code = "forbidden"
	codeMethodNotAllowed vm.Code = "method-not-allowed"
	codeTimeout          vm.Code = "request-timeout"
	codeTooLarge         vm.Code = "payload-too-large"
	codeMediaType        vm.Code = "unsupported-media-type"
	codeLength           vm.Code = "length-required"
	codeUpgradeRequired  vm.Code = "upgrade-required"
	codeRange            vm.Code = "range-not-satisfiable"
	codeTooMany          vm.Code = "too-many-requests"
	codeExpectation      vm.Code = "expectation-failed"
	codeHeaders          vm.Code = "headers-too-large"
	codeNotImplemented   vm.Code = "not-implemented"
	codeVersion          vm.Code = "http-version-not-supported"
)

// A kind is the common part of all problems with one code.
type kind struct {
	status     int
	title      string
	retryAfter int // seconds after which the same request may succeed; 0 if waiting does not help
}

// kinds maps codes to HTTP statuses. Nothing else does.
var kinds = map[vm.Code]kind{
	vm.CodeInvalid:             {http.StatusBadRequest, "Invalid request", 0},
	codeMalformed:              {http.StatusBadRequest, "Malformed body", 0},
	vm.CodeUnsafeImage:         {http.StatusBadRequest, "Unsafe image", 0},
	vm.CodeDamagedImage:        {http.StatusBadRequest, "Damaged image", 0},
	vm.CodeUnsupportedImage:    {http.StatusBadRequest, "Unsupported image", 0},
	vm.CodeChecksumMismatch:    {http.StatusBadRequest, "Checksum mismatch", 0},
	codeUnauthorized:           {http.StatusUnauthorized, "Not authenticated", 0},
	codeForbidden:              {http.StatusForbidden, "Not allowed", 0},
	vm.CodeNotFound:            {http.StatusNotFound, "Not found", 0},
	codeMethodNotAllowed:       {http.StatusMethodNotAllowed, "Method not allowed", 0},
	codeTimeout:                {http.StatusRequestTimeout, "Request timeout", 0},
	vm.CodeExists:              {http.StatusConflict, "Already exists", 0},
	vm.CodeState:               {http.StatusConflict, "Not allowed in this state", 0},
	vm.CodeBusy:                {http.StatusConflict, "Busy", 0},
	vm.CodeInUse:               {http.StatusConflict, "In use", 0},
	vm.CodeAddressesExhausted:  {http.StatusConflict, "No free address", 0},
	vm.CodeLimitReached:        {http.StatusConflict, "Limit reached", 0},
	vm.CodeNotCancellable:      {http.StatusConflict, "Not cancellable", 0},
	vm.CodeGuestRefused:        {http.StatusConflict, "Refused by the guest", 0},
	vm.CodeCancelled:           {http.StatusConflict, "Cancelled", 0},
	codeLength:                 {http.StatusLengthRequired, "Length required", 0},
	vm.CodePrecondition:        {http.StatusPreconditionFailed, "Precondition failed", 0},
	codeTooLarge:               {http.StatusRequestEntityTooLarge, "Body too large", 0},
	vm.CodeTooLarge:            {http.StatusRequestEntityTooLarge, "Image too large", 0},
	codeMediaType:              {http.StatusUnsupportedMediaType, "Unsupported media type", 0},
	codeRange:                  {http.StatusRequestedRangeNotSatisfiable, "No such range", 0},
	codeExpectation:            {http.StatusExpectationFailed, "Expectation failed", 0},
	codeUpgradeRequired:        {http.StatusUpgradeRequired, "Upgrade required", 0},
	codeTooMany:                {http.StatusTooManyRequests, "Too many requests", 5},
	codeHeaders:                {http.StatusRequestHeaderFieldsTooLarge, "Headers too large", 0},
	vm.CodeRepeated:            {http.StatusUnprocessableEntity, "Idempotency key used before", 0},
	vm.CodeInternal:            {http.StatusInternalServerError, "Internal error", 0},
	codeNotImplemented:         {http.StatusNotImplemented, "Not implemented", 0},
	codeVersion:                {http.StatusHTTPVersionNotSupported, "HTTP version not supported", 0},
	vm.CodeInterrupted:         {http.StatusServiceUnavailable, "Interrupted", 1},
	vm.CodeInsufficientMemory:  {http.StatusServiceUnavailable, "Not enough memory", 30},
	vm.CodeQEMUUnavailable:     {http.StatusServiceUnavailable, "QEMU is not usable", 0},
	vm.CodeQEMUUnresponsive:    {http.StatusServiceUnavailable, "QEMU does not answer", 10},
	vm.CodeOperationFailed:     {http.StatusServiceUnavailable, "The operation failed", 0},
	vm.CodeNetworkUnavailable:  {http.StatusServiceUnavailable, "Network not available", 0},
	vm.CodeAgentUnavailable:    {http.StatusServiceUnavailable, "No guest agent answers", 5},
	vm.CodeFetchFailed:         {http.StatusServiceUnavailable, "Download failed", 0},
	vm.CodeUnavailable:         {http.StatusServiceUnavailable, "Not available now", 5},
	vm.CodeInsufficientStorage: {http.StatusInsufficientStorage, "Not enough storage", 0},
}

// problem returns the problem for code. An unknown code becomes [vm.CodeInternal].
func problem(code vm.Code, detail, hint string) openapi.Problem {
	k, known := kinds[code]
	if !known {
		code, k = vm.CodeInternal, kinds[vm.CodeInternal]
	}
	return openapi.Problem{
		Type:   "urn:vman:problem:" + string(code),
		Title:  k.title,
		Status: k.status,
		Code:   openapi.ProblemCode(code),
		Detail: detail,
		Hint:   hint,
	}
}

// faultOf returns the fault to answer for err. An error of no known class is a defect
// of vmand: the client receives no details, only the log does.
func faultOf(err error) *vm.Fault {
	var fault *vm.Fault
	var web *echo.HTTPError
	switch {
	case errors.As(err, &fault):
		return withCause(fault)
	case errors.As(err, &web):
		return webFault(web)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &vm.Fault{Code: codeTimeout, Detail: "the request did not arrive in time"}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: "the request was not completed in time"}
	}
	p := vm.ProblemOf(err)
	if p.Code == vm.CodeInternal {
		p.Detail = "a defect of vmand; the log contains it under this request id"
	}
	return &vm.Fault{Code: p.Code, Detail: p.Detail, Hint: p.Hint}
}

// maxCause is the maximum number of characters of a cause in a problem.
const maxCause = 300

// withCause appends the message of QEMU, qemu-img or the kernel to the detail of a
// failed operation, since only that message says why it failed. The causes of other
// faults are only logged.
func withCause(f *vm.Fault) *vm.Fault {
	if f.Code != vm.CodeOperationFailed || f.Err == nil {
		return f
	}
	words := printable(f.Err.Error())
	if words == "" || strings.Contains(f.Detail, words) {
		return f
	}
	longer := *f
	longer.Detail += ": " + words
	return &longer
}

// printable returns s as one line of at most maxCause printable characters.
func printable(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)), " ")
	if all := []rune(s); len(all) > maxCause {
		s = string(all[:maxCause-1]) + "…"
	}
	return s
}

// webFault returns the fault for an error of echo or of the generated code.
func webFault(e *echo.HTTPError) *vm.Fault {
	switch e.Code {
	case http.StatusNotFound:
		return &vm.Fault{
			Code:   vm.CodeNotFound,
			Detail: "the path does not exist",
			Hint:   "GET /openapi.yaml lists all paths",
		}
	case http.StatusMethodNotAllowed:
		return &vm.Fault{Code: codeMethodNotAllowed, Detail: "the path does not support this method"}
	case http.StatusRequestEntityTooLarge:
		return &vm.Fault{Code: codeTooLarge, Detail: "the body is too large"}
	case http.StatusUnsupportedMediaType:
		return &vm.Fault{Code: codeMediaType, Detail: "the Content-Type of the body is not accepted by this request"}
	case http.StatusInternalServerError:
		return &vm.Fault{Code: vm.CodeInternal, Detail: "a defect of vmand; the log contains it under this request id"}
	}
	return &vm.Fault{Code: vm.CodeInvalid, Detail: "a parameter is not valid"}
}

// writeProblem answers the request in c with the problem for fault.
func writeProblem(c echo.Context, fault *vm.Fault) error {
	p := problem(fault.Code, fault.Detail, fault.Hint)
	h := c.Response().Header()
	if fault.Code == codeMediaType && c.Request().Header.Get("Content-Encoding") != "" {
		h.Set("Accept-Encoding", "identity") // RFC 9110, 15.5.16
	}
	p.Instance = c.Request().URL.EscapedPath()
	p.RequestID = h.Get(headerRequestID)
	p.OperationID = fault.OperationID
	for _, f := range firstFaults(fault.Fields) {
		p.Errors = append(p.Errors, openapi.FieldError{Field: f.Field, Detail: f.Detail})
	}
	if s := kinds[fault.Code].retryAfter; s > 0 {
		h.Set("Retry-After", strconv.Itoa(s))
	}
	switch p.Status {
	case http.StatusUnauthorized:
		h.Set("Www-Authenticate", `Bearer realm="vmand"`)
	case http.StatusUpgradeRequired:
		h.Add("Connection", "Upgrade") // RFC 9110, 7.8 and 15.5.22; after a close
		h["Upgrade"] = protocols
		h.Set("Sec-Websocket-Version", "13")
	case http.StatusMethodNotAllowed:
		if methods, ok := allowed(c); ok {
			h.Set("Allow", methods)
		}
	}
	return answer{status: p.Status, mediaType: problemType, body: &p}.Respond(c.Response())
}
