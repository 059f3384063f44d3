package relocate

import (
	"context"
	"errors"
	"os"
	"strconv"
	"time"

	"github.com/pagewarp/pagewarp/relocate/qemu"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// processes lists the pids of this host, as /proc has them.
func processes() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// quitTimeout is how long a VMM may take to end on its own. Ending by itself it
// removes its sockets.
const quitTimeout = 3 * time.Second

// endProcess ends a VMM: by its monitor if vm is not nil and it answers, else by
// signal, and returns when the process is gone. start guards against a pid that
// was reused.
func endProcess(ctx context.Context, vm *qemu.VM, pid int, start uint64) error {
	proc, err := qemu.Adopt(pid, start, "")
	if errors.Is(err, qemu.ErrProcessGone) {
		if vm != nil {
			vm.Close()
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer proc.Release()
	if vm != nil {
		qctx, cancel := context.WithTimeout(ctx, quitTimeout)
		qerr := vm.Quit(qctx)
		if qerr == nil {
			select {
			case <-proc.Done():
			case <-qctx.Done():
			}
		}
		cancel()
		vm.Close()
	}
	return proc.Kill(ctx)
}
