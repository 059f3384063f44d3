package qemu

import (
	"errors"
	"fmt"
)

// Errors of the monitor connection.
var (
	// ErrMonitorMissing: nothing is at the socket's path; the machine is not
	// running here, or runs without -qmp.
	ErrMonitorMissing = errors.New("QMP socket is missing")
	// ErrMonitorDead: the socket is there and nobody listens; its QEMU has died.
	ErrMonitorDead = errors.New("QMP socket is dead")
	// ErrMonitorBusy: another client holds the monitor; retry with another one.
	ErrMonitorBusy = errors.New("QMP socket is in use by another client")
	// ErrDisconnected: the monitor connection has ended, usually because QEMU
	// has. Fatal to this VM value; Connect again to find out.
	ErrDisconnected = errors.New("QMP connection lost")
	// ErrTimeout: QEMU did not answer, or did not get there, in time. A command
	// that timed out may still take effect.
	ErrTimeout = errors.New("timed out")
	// ErrEventOverflow: a subscriber fell MaxQueuedEvents behind; its
	// subscription is over, since events are missing from it.
	ErrEventOverflow = errors.New("event queue overflow")
)

// Errors of CheckRelocatable, DestinationArgv and CheckDestination: the machine
// as it is cannot be relocated; each message says what to change.
var (
	// ErrNoSharedFile: guest memory is not a shared file.
	ErrNoSharedFile = errors.New("guest memory is not a shared file")
	// ErrMemfd: guest memory is a memfd, which QEMU 8.1 and later sends itself.
	ErrMemfd = errors.New("guest memory is an unnamed memfd")
	// ErrRAMNotBacked: a backend exists, and the machine's RAM does not use it.
	ErrRAMNotBacked = errors.New("guest memory is not in the memory backend")
	// ErrRAMFileLost: the file behind guest memory is deleted, replaced or not
	// reachable by its name.
	ErrRAMFileLost = errors.New("guest memory file is lost")
	// ErrMigrating: a migration is already under way.
	ErrMigrating = errors.New("machine is already migrating")
	// ErrMigrationBlocked: QEMU names reasons why it cannot migrate.
	ErrMigrationBlocked = errors.New("migration is blocked")
	// ErrDevice: a device holds guest memory in a way that post-copy cannot serve.
	ErrDevice = errors.New("device cannot be relocated")
	// ErrTooOld: QEMU is older than the source's, or than pagewarp can use.
	ErrTooOld = errors.New("QEMU is too old")
	// ErrCapability: QEMU lacks a migration capability that pagewarp needs.
	ErrCapability = errors.New("migration capability is missing")
	// ErrRunState: the machine is in a run state that cannot be relocated.
	ErrRunState = errors.New("machine is in the wrong run state")
	// ErrMachineType: the destination's QEMU does not know the machine type.
	ErrMachineType = errors.New("machine type is unknown")
	// ErrInheritedFD: the command line refers to a descriptor that only the
	// source's parent process could hand over.
	ErrInheritedFD = errors.New("argument refers to an inherited descriptor")
	// ErrTemplate: a template override does not fit the command line.
	ErrTemplate = errors.New("template does not fit")
	// ErrArgv: the command line cannot be understood.
	ErrArgv = errors.New("cannot parse QEMU command line")
	// ErrBinary: the QEMU program is missing or does not run on this host.
	ErrBinary = errors.New("QEMU program is missing")
)

// Errors of a running step.
var (
	// ErrExited: the QEMU process ended; its last words are in the message.
	ErrExited = errors.New("QEMU exited")
	// ErrNoMemory: the host could not give QEMU the guest's memory.
	ErrNoMemory = errors.New("not enough memory for the guest")
	// ErrMigrationFailed: QEMU ended the migration. On the source the machine can
	// be brought back by CancelAndResume.
	ErrMigrationFailed = errors.New("migration failed")
	// ErrResumeRefused: QEMU answered that it does not resume. The guest has not
	// run there: rolling back is safe. Any other error of Resume leaves that open.
	ErrResumeRefused = errors.New("QEMU refused to resume")
	// ErrNotRestored: the machine runs again, but some of its migration settings
	// are not as they were.
	ErrNotRestored = errors.New("migration settings not restored")
	// ErrProcessGone: no process has that pid and start time.
	ErrProcessGone = errors.New("process is gone")
)

// CommandError is QEMU's own refusal of one command.
type CommandError struct {
	Command string // the QMP command
	Class   string // QMP error class, such as "GenericError"
	Desc    string // QEMU's words
}

// Error gives the command, and QEMU's words.
func (e *CommandError) Error() string {
	return fmt.Sprintf("QMP %s: %s", e.Command, e.Desc)
}

// detailed ties a sentinel to its particulars: "sentinel: what, value, remedy".
func detailed(sentinel error, format string, args ...any) error {
	return fmt.Errorf("%w: %w", sentinel, fmt.Errorf(format, args...))
}
