package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
)

const (
	nsDir  = "/run/netns"
	shmDir = "/dev/shm"
)

// An identity is pwrig-<pid>-<start time of the process>-<count>; the start
// time tells a process from a later one with the same number.
var identPattern = regexp.MustCompile(`^(pwrig-(\d+)-(\d+)-\d+)(-[a-z0-9]+)?$`)

var rigCount atomic.Uint32

func newIdent() (string, error) {
	start, err := startTime(os.Getpid())
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("pwrig-%d-%d-%d", os.Getpid(), start, rigCount.Add(1)), nil
}

// identOf returns the identity in the name of a namespace or folder, and
// whether the process that made it still runs.
func identOf(name string) (ident string, alive, ok bool) {
	m := identPattern.FindStringSubmatch(name)
	if m == nil {
		return "", false, false
	}
	pid, err1 := strconv.Atoi(m[2])
	want, err2 := strconv.ParseUint(m[3], 10, 64)
	if err1 != nil || err2 != nil {
		return "", false, false
	}
	got, err := startTime(pid)
	return m[1], err == nil && got == want, true
}

// startTime returns when process pid was started, in clock ticks after boot:
// field 22 of proc_pid_stat(5). An error means that there is no such process.
func startTime(pid int) (uint64, error) {
	_, fields, err := procStat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// procStat returns the state letter of pid, and the fields of its stat file
// from the state (field 3) on.
func procStat(pid int) (state string, fields []string, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", nil, err
	}
	// The second field is the command in parentheses, and may hold anything.
	_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	fields = strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return "", nil, fmt.Errorf("read /proc/%d/stat: %q", pid, stat)
	}
	return fields[0], fields, nil
}

// identities returns those of all rigs that have left a trace on this machine,
// and whether each one's process still runs.
func identities() map[string]bool {
	found := map[string]bool{}
	for _, dir := range []string{nsDir, shmDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // no such folder: nothing in it
		}
		for _, e := range entries {
			if ident, alive, ok := identOf(e.Name()); ok {
				found[ident] = alive
			}
		}
	}
	return found
}

// namespacesOf returns the names of the network namespaces of a rig.
func namespacesOf(ident string) []string {
	paths, _ := filepath.Glob(filepath.Join(nsDir, ident+"-*")) // the pattern is well-formed
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = filepath.Base(p)
	}
	return names
}
