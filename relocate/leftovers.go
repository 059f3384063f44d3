package relocate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"golang.org/x/sys/unix"
)

// removeFiles removes what a QEMU that was started here leaves when it is killed: its
// sockets (none of them was there before) and its log.
func removeFiles(paths []string) {
	for _, f := range paths {
		os.Remove(f) // QEMU may have done it
	}
}

// leaveWait is how long a machine that comes back waits for what is left of it here.
const leaveWait = rollbackTimeout

// awaitLeft waits until nothing of a machine of that name, which has left this host, is
// under way any more: its VMM is ended and its memory freed, by name, after its destination
// has everything and may send it back.
func (h *Host) awaitLeft(ctx context.Context, vm string) error {
	h.mu.Lock()
	var left *outgoing
	for _, o := range h.outgoing {
		if o.rec.VM == vm && h.machines[vm] == nil {
			left = o
		}
	}
	h.mu.Unlock()
	if left == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, leaveWait, fmt.Errorf("%s is still leaving here (session %s): this host has not heard that it has arrived, or cannot end its VMM; see `pagewarp status %s`, and send it later", vm, left.session, vm))
	defer cancel()
	select {
	case <-left.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// deadWait is how long the sockets of a process may answer whose monitor has closed.
const deadWait = time.Second

// removeDead does so for a machine that has ended, whose own monitor was at qmp. If that
// is answered the machine lives, and keeps all; another socket that is answered is
// somebody else's by now, and stays.
func removeDead(qmp string, paths []string) {
	ctx, cancel := context.WithTimeout(context.Background(), deadWait)
	defer cancel()
	silent := func(socket string) bool { // a process that ends closes one after the other
		for answers(socket) {
			if ctx.Err() != nil {
				return false
			}
			sleep(ctx, 10*time.Millisecond)
		}
		return true
	}
	if !silent(qmp) {
		return
	}
	for _, f := range paths {
		if st, err := os.Lstat(f); err == nil && (st.Mode().Type() != os.ModeSocket || silent(f)) {
			os.Remove(f) // QEMU may have done it
		}
	}
}

// answers reports whether somebody listens on a unix socket.
func answers(path string) bool {
	c, err := net.DialTimeout("unix", path, deadWait)
	if err == nil {
		c.Close() // nothing was said
	}
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT)
}

// ramFiles are the files that hold a machine's memory.
func ramFiles(d qemu.Description) (paths []string) {
	for _, b := range d.Backends {
		if b.Used && b.Path != "" && b.Object == "" {
			paths = append(paths, b.Path)
		}
	}
	return paths
}

// sayMemory tells of the memory that a machine that has ended has left: on tmpfs it is
// memory of the host's. It is the operator's to remove, as without pagewarp.
func (h *Host) sayMemory(vm string, ram []string) {
	for _, path := range ram {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		id, err := sysmem.IDOf(int(f.Fd()))
		f.Close() // only looked at
		if err != nil {
			continue
		}
		if pid, err := mapper(id); err != nil || pid != 0 {
			continue // it lives, or another has the file
		}
		text := fmt.Sprintf("its memory stays in %s (%d MiB); remove the file when nothing of it is wanted", path, st.Blocks*512>>20)
		h.log.Warn(text, "vm", vm)
		h.events.add(Event{VM: vm, Kind: "machine", Text: text})
	}
}
