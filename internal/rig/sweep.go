package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// killLimit bounds the wait for a killed process to be gone.
const killLimit = 10 * time.Second

// CleanupStale removes what rigs of processes that no longer run have left:
// processes in their namespaces, namespaces, folders. It returns the
// identities of these rigs.
func CleanupStale() ([]string, error) {
	unlock, err := lockNamespaces()
	if err != nil {
		return nil, err
	}
	defer unlock()
	var stale []string
	var errs []error
	for ident, alive := range identities() {
		if alive {
			continue
		}
		stale = append(stale, ident)
		errs = append(errs, sweep(ident))
	}
	return stale, errors.Join(errs...)
}

// lockNamespaces keeps apart those who clean up; ip-netns(8) locks the same
// folder while it sets it up.
func lockNamespaces() (unlock func(), err error) {
	fd, err := unix.Open(nsDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return func() {}, nil // no namespace was ever named on this machine
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", nsDir, err)
	}
	for {
		err = unix.Flock(fd, unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lock %s: %w", nsDir, err)
	}
	return func() { unix.Close(fd) }, nil
}

// Leftovers lists what is left of the rig with this identity: namespaces,
// processes in them, folders. After Close it must be empty.
func Leftovers(ident string) []string {
	var left []string
	for _, ns := range namespacesOf(ident) {
		left = append(left, "network namespace "+ns)
		pids, err := processesIn(ns)
		if err != nil {
			left = append(left, err.Error())
		}
		for _, pid := range pids {
			left = append(left, fmt.Sprintf("process %d in network namespace %s", pid, ns))
		}
	}
	if exists(filepath.Join(shmDir, ident)) {
		left = append(left, "folder "+filepath.Join(shmDir, ident))
	}
	return left
}

// sweep removes everything that carries the identity.
func sweep(ident string) error {
	var errs []error
	for _, ns := range namespacesOf(ident) {
		errs = append(errs, endAll(ns, func() ([]int, error) { return processesIn(ns) }, kill))
		// Its links go with it, and the peers of its veths with them.
		err := netns.DeleteNamed(ns)
		if errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w: something was mounted over %s since; unmount that (umount %s) and run this again", err, nsDir, nsDir)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("delete network namespace %s: %w", ns, err))
		}
	}
	errs = append(errs, os.RemoveAll(filepath.Join(shmDir, ident)))
	return errors.Join(errs...)
}

// endRounds bounds how often endAll looks for what was started meanwhile.
const endRounds = 20

// endAll ends the processes that list finds, and those that they have started while
// they were being ended: once the namespace has no name, nobody would find these.
func endAll(ns string, list func() ([]int, error), end func(pid int) error) error {
	for range endRounds {
		pids, err := list()
		if err != nil || len(pids) == 0 {
			return err
		}
		var errs []error
		for _, pid := range pids {
			errs = append(errs, end(pid))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return fmt.Errorf("the processes in network namespace %s start others as fast as they are ended", ns)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// processesIn returns the processes in the named network namespace, which only
// its rig and the children of its rig can have entered.
func processesIn(ns string) ([]int, error) {
	var want unix.Stat_t
	err := unix.Stat(filepath.Join(nsDir, ns), &want)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stat network namespace %s: %w", ns, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var got unix.Stat_t
		if err := unix.Stat("/proc/"+e.Name()+"/ns/net", &got); err != nil {
			continue // gone, or a zombie
		}
		if got.Dev == want.Dev && got.Ino == want.Ino {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// kill ends process pid, and returns when it runs no more. A zombie, which only
// its parent can remove, counts as ended.
func kill(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return awaitExit(fd, pid, killLimit)
}

// awaitExit waits until the process behind a pidfd has ended.
func awaitExit(fd, pid int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("process %d still runs %s after it was killed", pid, limit)
		}
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(polled, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
}
