package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/relocate"
)

// Exit codes; the help of the root command lists them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRolledBack  = 3
	exitLost        = 4
	exitUnreachable = 5
	exitInterrupted = 130
)

// exitError carries an exit code. With a nil err nothing is printed: it has
// been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, a ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, a...)}
}

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, nil))
}

// run is the whole command; signals stands in for the process's own in tests.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer, signals chan os.Signal) int {
	told := &checked{Writer: out}
	if !isTerminal(out) {
		out = told
	}
	a := &app{out: out, errOut: errOut, signals: signals}
	root := newRoot(a)
	root.SetArgs(append([]string{}, args...)) // cobra takes nil for the process's own
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if a.client != nil {
		a.client.Close()
	}
	if err == nil && told.err != nil && !a.outcome {
		err = fmt.Errorf("write the output: %w", told.err)
	}
	return explain(errOut, err)
}

// checked remembers the first error: what could not be written was not told.
type checked struct {
	io.Writer
	err error
}

func (c *checked) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	if err != nil && c.err == nil {
		c.err = err
	}
	return n, err
}

// explain prints what has to be said about err and returns the exit code.
func explain(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	var x *exitError
	if errors.As(err, &x) && x.err == nil {
		return code
	}
	fmt.Fprintf(w, "pagewarp: %v\n", err)
	var e *api.Error
	var u *api.UnreachableError
	switch {
	case errors.As(err, &e) && e.Remedy != "" && !strings.Contains(e.Message, "`pagewarp "):
		fmt.Fprintf(w, "  %s\n", e.Remedy)
	case errors.As(err, &u) && errors.Is(err, syscall.EACCES):
		fmt.Fprintf(w, "  %s\n", socketIsRoots)
	case errors.As(err, &u):
		fmt.Fprintf(w, "  is pagewarpd running? `systemctl status pagewarpd` says; a daemon with another socket is reached with --socket PATH or $%s\n", socketEnv)
	}
	return code
}

const socketIsRoots = "the socket is for the daemon's user alone: run this as root (sudo)"

func exitCode(err error) int {
	var x *exitError
	var u *api.UnreachableError
	switch {
	case errors.As(err, &x):
		return x.code
	case errors.As(err, &u):
		return exitUnreachable
	case errors.Is(err, relocate.ErrLost):
		return exitLost
	case errors.Is(err, relocate.ErrRolledBack):
		return exitRolledBack
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	return exitFailed
}

// interrupts returns the channel of Ctrl-C and SIGTERM, and what gives it back.
func (a *app) interrupts() (<-chan os.Signal, func()) {
	if a.signals != nil {
		return a.signals, func() {}
	}
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	return ch, func() { signal.Stop(ch) }
}

// untilInterrupt is a context that Ctrl-C ends.
func (a *app) untilInterrupt(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	ch, stop := a.interrupts()
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ch:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(); stop(); <-done }
}
