package qemu

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// procInfo is what /proc tells of a process.
type procInfo struct {
	argv  []string
	cwd   string
	exe   string
	start uint64
}

func readProc(pid int) (procInfo, error) {
	var p procInfo
	raw, err := os.ReadFile(procPath(pid, "cmdline"))
	if err != nil {
		return p, fmt.Errorf("command line of pid %d: %w", pid, err)
	}
	if len(raw) == 0 {
		return p, detailed(ErrProcessGone, "pid %d has no command line, it has ended", pid)
	}
	p.argv = strings.Split(string(bytes.TrimSuffix(raw, []byte{0})), "\x00")
	if p.cwd, err = os.Readlink(procPath(pid, "cwd")); err != nil {
		return p, fmt.Errorf("working directory of pid %d (the daemon needs QEMU's user or root): %w", pid, err)
	}
	if p.exe, err = os.Readlink(procPath(pid, "exe")); err != nil {
		return p, fmt.Errorf("program of pid %d (the daemon needs QEMU's user or root): %w", pid, err)
	}
	// A package upgrade while the machine runs unlinks the program.
	p.exe = strings.TrimSuffix(p.exe, " (deleted)")
	p.start, err = startTime(pid)
	return p, err
}

func procPath(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

// exiting reports whether process pid has begun to end, by the flag PF_EXITING
// (include/linux/sched.h) in field 9 of /proc/PID/stat; no process at all counts.
func exiting(pid int) bool {
	const pfExiting = 0x4
	raw, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	return err == nil && flags&pfExiting != 0
}

// startTime is a process's start in clock ticks since boot: with the pid it names
// one process for as long as the host runs. Field 22 of /proc/PID/stat, proc(5);
// the second field may contain spaces and parentheses.
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile(procPath(pid, "stat"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, detailed(ErrProcessGone, "no process has pid %d", pid)
	}
	if err != nil {
		return 0, fmt.Errorf("start time of pid %d: %w", pid, err)
	}
	i := bytes.LastIndexByte(raw, ')')
	fields := bytes.Fields(raw[i+1:])
	if i < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("start time of pid %d: unexpected stat line %q", pid, raw)
	}
	if string(fields[0]) == "Z" || string(fields[0]) == "X" {
		return 0, detailed(ErrProcessGone, "pid %d has ended", pid)
	}
	t, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("start time of pid %d: %w", pid, err)
	}
	return t, nil
}

// Alive reports whether the process of that pid and start time has not ended.
func Alive(pid int, start uint64) bool {
	now, err := startTime(pid)
	return err == nil && now == start || err != nil && !errors.Is(err, ErrProcessGone)
}

// Spawned tells whether process pid is one that Spawn has started for the monitor at that
// path, and when it started: a QEMU, or a script that becomes one.
func Spawned(pid int, qmpPath string) (start uint64, ok bool) {
	raw, err := os.ReadFile(procPath(pid, "cmdline"))
	if err != nil || !slices.Contains(strings.Split(string(raw), "\x00"), OwnChardev(qmpPath)) {
		return 0, false // or it has ended meanwhile
	}
	start, err = startTime(pid)
	return start, err == nil
}

// threadGroup gives the process and its effective user of a thread.
func threadGroup(tid int) (pid, uid int, err error) {
	raw, err := os.ReadFile(procPath(tid, "status"))
	if err != nil {
		return 0, 0, fmt.Errorf("process of thread %d: %w", tid, err)
	}
	pid, uid = -1, -1
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 2 && f[0] == "Tgid:":
			pid, err = strconv.Atoi(f[1])
		case len(f) >= 3 && f[0] == "Uid:":
			uid, err = strconv.Atoi(f[2])
		}
		if err != nil {
			return 0, 0, fmt.Errorf("process of thread %d: %w", tid, err)
		}
	}
	if pid <= 0 || uid < 0 {
		return 0, 0, fmt.Errorf("process of thread %d: no Tgid or Uid in its status", tid)
	}
	return pid, uid, nil
}

// Mapping is one address range of a process that maps a file. [Start, End) are
// its virtual addresses, Offset the file offset of Start, all in bytes.
type Mapping struct {
	Start  uint64 `json:"start"`
	End    uint64 `json:"end"`
	Offset uint64 `json:"offset"`
	Shared bool   `json:"shared"`
}

// MemoryMapping finds where the process maps the RAM file, in order of file
// offset, by the file's device and inode. The ranges cover the whole file, each
// byte once and shared, or the error says what does not. The file is looked up
// as the process sees it (its mount namespace and root).
func MemoryMapping(pid int, path string) ([]Mapping, error) {
	var st unix.Stat_t
	if err := unix.Stat(inRootOf(pid, path), &st); err != nil {
		return nil, detailed(ErrRAMFileLost, "%s: %w", path, err)
	}
	f, err := os.Open(procPath(pid, "maps"))
	if err != nil {
		return nil, fmt.Errorf("mappings of pid %d (the daemon needs QEMU's user or root): %w", pid, err)
	}
	defer f.Close()
	maps, err := parseMaps(f, path, &st)
	if err != nil {
		return nil, fmt.Errorf("mappings of pid %d: %w", pid, err)
	}
	if len(maps) == 0 {
		return nil, detailed(ErrRAMFileLost, "pid %d does not map %s: the file was deleted or replaced while the machine ran; guest memory has no name any more, so restart the machine", pid, path)
	}
	var at uint64
	for _, m := range maps {
		if !m.Shared {
			return nil, detailed(ErrNoSharedFile, "pid %d maps %s privately at %#x: set share=on on its memory backend", pid, path, m.Start)
		}
		if m.Offset != at {
			return nil, fmt.Errorf("pid %d maps %s from offset %#x on, expected %#x: the mappings leave a gap or overlap", pid, path, m.Offset, at)
		}
		at += m.End - m.Start
	}
	if at < uint64(st.Size) {
		return nil, fmt.Errorf("pid %d maps %#x bytes of %s, which has %#x: part of the file is not guest memory", pid, at, path, st.Size)
	}
	return maps, nil
}

// parseMaps selects the lines of /proc/PID/maps (proc(5)) that map the file. Some
// file systems (btrfs, overlayfs) show another device there than stat(2) does;
// then the inode and the name must agree.
func parseMaps(r io.Reader, path string, st *unix.Stat_t) ([]Mapping, error) {
	dev := fmt.Sprintf("%02x:%02x", unix.Major(st.Dev), unix.Minor(st.Dev))
	var maps []Mapping
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.SplitN(sc.Text(), " ", 6)
		if len(f) < 6 {
			continue
		}
		ino, err := strconv.ParseUint(f[4], 10, 64)
		if err != nil || ino != st.Ino {
			continue
		}
		if f[3] != dev && strings.TrimLeft(f[5], " ") != path {
			continue
		}
		from, to, ok := strings.Cut(f[0], "-")
		if !ok || len(f[1]) < 4 {
			return nil, fmt.Errorf("unexpected line %q", sc.Text())
		}
		m := Mapping{Shared: f[1][3] == 's'}
		for _, n := range []struct {
			s  string
			to *uint64
		}{{from, &m.Start}, {to, &m.End}, {f[2], &m.Offset}} {
			if *n.to, err = strconv.ParseUint(n.s, 16, 64); err != nil {
				return nil, fmt.Errorf("unexpected line %q: %w", sc.Text(), err)
			}
		}
		if m.End <= m.Start {
			return nil, fmt.Errorf("unexpected line %q", sc.Text())
		}
		maps = append(maps, m)
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(maps, func(a, b Mapping) int {
		switch {
		case a.Offset < b.Offset:
			return -1
		case a.Offset > b.Offset:
			return 1
		}
		return 0
	})
	return maps, nil
}

// inRootOf is a path as the process sees it, where that is readable to us.
func inRootOf(pid int, path string) string {
	own, err1 := os.Readlink("/proc/self/root")
	its, err2 := os.Readlink(procPath(pid, "root"))
	ownNS, err3 := os.Readlink("/proc/self/ns/mnt")
	itsNS, err4 := os.Readlink(procPath(pid, "ns/mnt"))
	if errors.Join(err1, err2, err3, err4) != nil || own == its && ownNS == itsNS {
		return path
	}
	return filepath.Join(procPath(pid, "root"), path)
}
