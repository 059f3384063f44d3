package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/pagewarp/pagewarp/relocate"
)

// Codes of errors; docs/API.md has the table.
const (
	CodeBadRequest     = "bad_request"
	CodeClearText      = "clear_text"
	CodeUnknownMachine = "unknown_machine"
	CodeNotCached      = "not_cached"
	CodeNotFound       = "not_found"
	CodeBadMethod      = "bad_method"
	CodeExists         = "exists"
	CodeBusy           = "busy"
	CodeTooLate        = "too_late"
	CodeIdle           = "idle"
	CodeRolledBack     = "rolled_back"
	CodeLost           = "lost"
	CodeTooLarge       = "too_large"
	CodeFailed         = "failed"
	CodeTooMany        = "too_many"
	CodeStopping       = "stopping"
	CodeTimeout        = "timeout"
	CodeInternal       = "internal"
)

// Error is an answer of 400 and above.
type Error struct {
	Status  int    `json:"-"`
	Message string `json:"error"`
	Code    string `json:"code"`
	Remedy  string `json:"remedy,omitempty"`
}

// Error is the message alone; the remedy is for the caller to place.
func (e *Error) Error() string { return e.Message }

// Errorf makes an error of the given code.
func Errorf(code, remedy, format string, a ...any) *Error {
	return &Error{Status: statusOf[code], Code: code, Remedy: remedy, Message: fmt.Sprintf(format, a...)}
}

var statusOf = map[string]int{
	CodeBadRequest: http.StatusBadRequest, CodeClearText: http.StatusForbidden,
	CodeUnknownMachine: http.StatusNotFound, CodeNotFound: http.StatusNotFound,
	CodeNotCached: http.StatusNotFound,
	CodeBadMethod: http.StatusMethodNotAllowed,
	CodeExists:    http.StatusConflict, CodeBusy: http.StatusConflict,
	CodeTooLate: http.StatusConflict, CodeRolledBack: http.StatusConflict,
	CodeIdle: http.StatusConflict,
	CodeLost: http.StatusGone, CodeTooLarge: http.StatusRequestEntityTooLarge,
	CodeFailed: http.StatusUnprocessableEntity, CodeTooMany: http.StatusServiceUnavailable,
	CodeStopping: http.StatusServiceUnavailable, CodeTimeout: http.StatusGatewayTimeout,
	CodeInternal: http.StatusInternalServerError,
}

// sentinels in the order of their weight: an error that wraps several is
// reported by the gravest.
var sentinels = []struct {
	err          error
	code, remedy string
}{
	{relocate.ErrLost, CodeLost, "restart it from its disks; the daemon's log has the reason"},
	{relocate.ErrTooLate, CodeTooLate, "it runs at the destination already; the drain ends on its own, see `pagewarp status`"},
	{relocate.ErrBusy, CodeBusy, "wait for it, or `pagewarp cancel NAME`; see `pagewarp status`"},
	{relocate.ErrExists, CodeExists, "choose another name, or `pagewarp vm rm NAME` first"},
	{relocate.ErrIdle, CodeIdle, "see `pagewarp status`"},
	{relocate.ErrUnknownMachine, CodeUnknownMachine, "`pagewarp vm list` shows the adopted machines, `pagewarp vm add NAME --qmp PATH` adopts one"},
	{relocate.ErrNotCached, CodeNotCached, "`pagewarp cache list` shows what is kept"},
	{relocate.ErrRolledBack, CodeRolledBack, "the machine runs on at the source; remove the cause and try again"},
	{context.DeadlineExceeded, CodeTimeout, "see `pagewarp status` for what has become of it"},
}

// FromError turns any error into the answer's body.
func FromError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return Errorf(s.code, s.remedy, "%v", err)
		}
	}
	return Errorf(CodeFailed, "", "%v", err)
}

// Is lets errors.Is see the sentinel that the far side met.
func (e *Error) Is(target error) bool {
	for _, s := range sentinels {
		if s.err == target { //nolint:errorlint // identity is the point
			return s.code == e.Code
		}
	}
	return false
}

// UnreachableError means that no daemon answered on the socket.
type UnreachableError struct {
	Socket string
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no daemon answers on %s: %v", e.Socket, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }
