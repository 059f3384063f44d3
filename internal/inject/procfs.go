package inject

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
)

// findSyscall finds a system call instruction in process pid: in the vDSO, or
// else in any code.
func findSyscall(pid int) (uint64, error) {
	maps, err := sysmem.Maps(pid)
	if err != nil {
		return 0, explainSeize(pid, err)
	}
	mem, err := os.Open("/proc/" + strconv.Itoa(pid) + "/mem")
	if err != nil {
		return 0, explainSeize(pid, err)
	}
	defer mem.Close()
	const most = 8 << 20
	for _, vdso := range []bool{true, false} {
		for _, m := range maps {
			if (m.Path == "[vdso]") != vdso || len(m.Perms) < 3 || m.Perms[2] != 'x' || m.Path == "[vsyscall]" {
				continue
			}
			code := make([]byte, min(m.Len(), most))
			n, err := mem.ReadAt(code, int64(m.Start))
			if err != nil && n == 0 {
				continue
			}
			if i := bytes.Index(code[:n], syscallInsn); i >= 0 {
				return m.Start + uint64(i), nil
			}
		}
	}
	return 0, fmt.Errorf("%w: no system call instruction in the code of process %d", ErrUnsupported, pid)
}

// holdsSyscall reports whether there is a system call instruction at addr.
func holdsSyscall(pid int, addr uint64) bool {
	mem, err := os.Open("/proc/" + strconv.Itoa(pid) + "/mem")
	if err != nil {
		return false
	}
	defer mem.Close()
	code := make([]byte, len(syscallInsn))
	_, err = mem.ReadAt(code, int64(addr))
	return err == nil && bytes.Equal(code, syscallInsn)
}

// liveThread is the main thread, or where that has ended another one.
func liveThread(pid int) (int, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("list threads of process %d: %w", pid, err)
	}
	names := []string{strconv.Itoa(pid)}
	for _, e := range tasks {
		names = append(names, e.Name())
	}
	for _, name := range names {
		stat, err := os.ReadFile(dir + "/" + name + "/stat")
		if err != nil {
			continue
		}
		// "tid (name) state …", where the name may hold anything.
		_, rest, ok := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
		if !ok || rest == "" || rest[0] == 'Z' || rest[0] == 'X' {
			continue
		}
		return strconv.Atoi(name)
	}
	return 0, fmt.Errorf("process %d has no living thread: %w", pid, unix.ESRCH)
}

// explainSeize says why process pid cannot be had.
func explainSeize(pid int, err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		if tracer := statusField(pid, "TracerPid"); tracer != "" && tracer != "0" {
			return fmt.Errorf("trace process %d: %w: it is traced by process %s", pid, err, tracer)
		}
		scope := "none"
		if b, e := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); e == nil {
			scope = strings.TrimSpace(string(b))
		}
		return fmt.Errorf("trace process %d: %w (needs CAP_SYS_PTRACE, or the same user with a yama ptrace_scope of 0, here %s)",
			pid, err, scope)
	}
	return fmt.Errorf("trace process %d: %w", pid, err)
}

// statusField returns one line of /proc/PID/status, or "".
func statusField(pid int, name string) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
