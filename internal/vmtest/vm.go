package vmtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"golang.org/x/sys/unix"
)

// RAM of the machine and where the pattern lies in it, in bytes: above what the
// BIOS uses low down, below what it uses at the top.
const (
	RAMBytes      = 96 << 20
	patternOffset = 32 << 20
	patternBytes  = 40 << 20
	pageBytes     = 4096
)

// VM is a QEMU as an operator would run it.
type VM struct {
	Dir  string // holds RAM and QMP
	RAM  string // the RAM file
	QMP  string // the monitor
	PID  int
	Done chan struct{} // closed when it has ended

	t   testing.TB
	cmd *exec.Cmd
}

// Dir returns a new directory on tmpfs with a short name, since RAM files and
// sockets go there. It is removed with the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "pw-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Start starts a machine with shared memory in dir; it ends with the test.
func Start(t testing.TB, dir string, extra ...string) *VM {
	t.Helper()
	return StartOn(t, dir, filepath.Join(dir, "vm.mem"), extra...)
}

// StartOn does so with the memory in a file elsewhere, or in a device.
func StartOn(t testing.TB, dir, ram string, extra ...string) *VM {
	t.Helper()
	v := &VM{Dir: dir, RAM: ram}
	return v.start(t, append([]string{
		"-name", "test", "-vga", "none", "-machine", "pc,memory-backend=mem", "-m", fmt.Sprint(RAMBytes >> 20),
		"-object", fmt.Sprintf("memory-backend-file,id=mem,size=%d,mem-path=%s,share=on", RAMBytes, v.RAM),
	}, extra...))
}

// StartPrivate starts a machine whose memory is not shared.
func StartPrivate(t testing.TB, dir string) *VM {
	t.Helper()
	v := &VM{Dir: dir}
	return v.start(t, []string{"-m", "32"})
}

func (v *VM) start(t testing.TB, args []string) *VM {
	t.Helper()
	v.t, v.QMP, v.Done = t, filepath.Join(v.Dir, "vm.qmp"), make(chan struct{})
	args = append(args, "-nodefaults", "-display", "none", "-accel", "tcg", "-qmp", "unix:"+v.QMP+",server=on,wait=off")
	v.cmd = exec.Command("qemu-system-x86_64", args...)
	v.cmd.Stderr = os.Stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := v.cmd.Start(); err != nil {
		t.Fatalf("start QEMU: %v (apt-get install qemu-system-x86)", err)
	}
	v.PID = v.cmd.Process.Pid
	pidfd, err := unix.PidfdOpen(v.PID, 0)
	if err != nil {
		t.Fatalf("pidfd of QEMU: %v", err)
	}
	go func() {
		// Not by Wait alone, which would take the stops of a QEMU that is traced
		// (package inject) from its tracer.
		for n := 0; n < 1; {
			n, _ = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
		}
		unix.Close(pidfd)
		v.cmd.Wait() // that it was killed is no news
		close(v.Done)
	}()
	t.Cleanup(v.Kill)
	Wait(t, "QEMU's monitor and memory", func() bool {
		_, err := os.Stat(v.QMP)
		if err != nil || v.RAM == "" {
			return err == nil
		}
		st, err := os.Stat(v.RAM)
		return err == nil && (st.Size() == RAMBytes || st.Mode()&os.ModeDevice != 0)
	})
	return v
}

// Kill ends the machine by SIGKILL and waits for its end.
func (v *VM) Kill() {
	v.cmd.Process.Kill()
	<-v.Done
}

// Wait polls, more and more rarely and for two minutes, what has no event to wait for:
// where two emulated machines share two cores, a drain of seconds takes one.
func Wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	pause := time.Millisecond
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("waited two minutes for %s", what)
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// Pattern is 40 MiB for guest memory: random pages, zero pages, pages of one
// repeated byte.
func Pattern(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, patternBytes)
	for p := 0; p < len(b); p += pageBytes {
		page := b[p : p+pageBytes]
		switch r.IntN(4) {
		case 0:
		case 1:
			w := byte(r.Uint32())
			for i := range page {
				page[i] = w
			}
		default:
			for i := 0; i < len(page); i += 8 {
				v := r.Uint64()
				for j := range 8 {
					page[i+j] = byte(v >> (8 * j))
				}
			}
		}
	}
	return b
}

// MapRAM maps a RAM file; the mapping ends with the test.
func MapRAM(t testing.TB, path string) []byte {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	defer unix.Close(fd)
	mem, err := sysmem.MapShared(fd, 0, RAMBytes, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sysmem.Unmap(mem); err != nil {
			t.Error(err)
		}
	})
	return mem
}

// WritePattern puts a pattern into a machine's memory.
func WritePattern(t testing.TB, path string, b []byte) {
	t.Helper()
	copy(MapRAM(t, path)[patternOffset:], b)
}

// CheckPattern compares a machine's memory with a pattern, page by page.
func CheckPattern(t testing.TB, path string, want []byte) {
	t.Helper()
	mem := MapRAM(t, path)[patternOffset:]
	for p := 0; p < len(want); p += pageBytes {
		if !bytes.Equal(mem[p:p+pageBytes], want[p:p+pageBytes]) {
			t.Errorf("%s: page at offset %#x differs from what the source had", path, patternOffset+p)
			return
		}
	}
}

// NoTrace checks that a directory holds no file but those whose names match.
func NoTrace(t testing.TB, dir string, allowed ...string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, a := range allowed {
			if ok, _ := filepath.Match(a, d.Name()); ok {
				return nil
			}
		}
		t.Errorf("left behind: %s", path)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
