package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/pagewarp/pagewarp/faultd"
)

// Exit codes, in the help of the command, too.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

func main() {
	// Whoever collects the log may die; the machines need the daemon. Not ignored, which
	// the VMMs would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, signals))
}

type usageError struct{ error }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

func run(ctx context.Context, args []string, out, errOut io.Writer, signals <-chan os.Signal) int {
	root := newRoot(errOut, signals)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	var u usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &u):
		fmt.Fprintf(errOut, "pagewarpd: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(errOut, "pagewarpd: %v\n", err)
	return exitError
}

// notify tells systemd; elsewhere it does nothing.
func notify(state string) {
	// Without NOTIFY_SOCKET there is nobody to tell, and an error must not stop
	// a daemon that serves.
	daemon.SdNotify(false, state)
}

// spareProcessors is how far GOMAXPROCS is raised above the core count: the
// fault reader and two demand and two precache channels of one relocation, and
// one in hand. More relocations at a time share them, see faultd.Tune.
const spareProcessors = 6

func parallelism(configured int) {
	if configured == 0 {
		configured = runtime.NumCPU() + spareProcessors
	}
	runtime.GOMAXPROCS(configured)
	faultd.Tune(max(0, configured-runtime.NumCPU()))
}
