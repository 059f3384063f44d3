package inject

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

// qmp runs one command and returns the answer, events aside.
func (v *victim) qmp(command string) string {
	v.t.Helper()
	fmt.Fprintln(v.in, command)
	for {
		line := v.line()
		var msg map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line), &msg); err != nil {
			v.t.Fatalf("QMP says %q: %v", line, err)
		}
		if r, ok := msg["return"]; ok {
			return string(r)
		}
		if e, ok := msg["error"]; ok {
			v.t.Fatalf("QMP refuses %s: %s", command, e)
		}
	}
}

// TestQEMU takes the userfaultfd of an unmodified QEMU in a seccomp sandbox that
// waits for an incoming migration, serves a fault of its own on guest memory, and
// does so again with a descriptor taken anew.
func TestQEMU(t *testing.T) {
	const binary, size = "qemu-system-x86_64", 16 << 20
	if _, err := exec.LookPath(binary); err != nil {
		t.Fatalf("%v (apt-get install qemu-system-x86)", err)
	}
	// Memory that is faulted in must be shared memory, so a file on tmpfs.
	dir, err := os.MkdirTemp("/dev/shm", "pagewarp-inject-")
	if err != nil {
		t.Fatalf("no tmpfs for the guest's memory: %v (mount one at /dev/shm)", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "ram")
	fd, err := sysmem.CreateFile(path, size)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	alias, err := sysmem.MapShared(fd, 0, size, true)
	if err != nil {
		t.Fatal(err)
	}
	defer sysmem.Unmap(alias)

	v := startVictim(t, nil, binary, "-S", "-incoming", "defer", "-nodefaults", "-display", "none",
		"-sandbox", "on", "-accel", "tcg", "-m", "16M",
		"-object", fmt.Sprintf("memory-backend-file,id=mem,size=%d,mem-path=%s,share=on", size, path),
		"-machine", "pc,memory-backend=mem", "-qmp", "stdio")
	v.line() // the greeting
	v.qmp(`{"execute":"qmp_capabilities"}`)

	got, err := Userfaultfd(v.pid(), Options{KeepRemote: true})
	if err != nil {
		t.Fatal(err)
	}
	if fds, err := FindUserfaultfds(v.pid()); err != nil || len(fds) != 1 || fds[0] != got.Remote {
		t.Errorf("QEMU has userfaultfds %v, %v; want %d", fds, err, got.Remote)
	}
	if !strings.Contains(v.qmp(`{"execute":"query-status"}`), "inmigrate") {
		t.Error("QEMU is not waiting for a migration")
	}
	if _, err := got.FD.API(uffd.FeatureThreadID); err != nil {
		t.Fatal(err)
	}
	id, err := sysmem.IDOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	maps, err := sysmem.FileMappings(v.pid(), id)
	if err != nil || len(maps) != 1 || maps[0].Len() != size {
		t.Fatalf("QEMU maps the file as %+v, %v; want one mapping of all", maps, err)
	}
	base := maps[0].Start
	can, err := got.FD.Register(base, size, uffd.ModeMissing|uffd.ModeMinor)
	if err != nil || !can.Has(uffd.CanContinue|uffd.CanZeroPage) {
		t.Fatalf("register: ioctls %#x, %v", can, err)
	}
	serveExamine(t, v, got.FD, alias, base, 0x200000, 0x1122334455667788)

	if err := got.FD.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Retake(v.pid(), got.Remote)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	serveExamine(t, v, again, alias, base, 0x345000, 0x0102030405060708)

	// The last descriptor of ours and of QEMU gone, the memory is plain again.
	if err := again.Unregister(base, size); err != nil {
		t.Fatal(err)
	}
	if _, err := Syscall(v.pid(), 0, unix.SYS_CLOSE, uint64(got.Remote)); err != nil {
		t.Error(err)
	}
	if fds, err := FindUserfaultfds(v.pid()); err != nil || len(fds) != 0 {
		t.Errorf("QEMU still has userfaultfds %v, %v", fds, err)
	}
	if s := v.qmp(`{"execute":"human-monitor-command","arguments":{"command-line":"xp /1gx 0x400000"}}`); !strings.Contains(s, "0x0000000000000000") {
		t.Errorf("untouched memory reads %s", s)
	}
	fmt.Fprintln(v.in, `{"execute":"quit"}`)
	if err := v.cmd.Wait(); err != nil {
		t.Errorf("QEMU ended with %v", err)
	}
}

// serveExamine has QEMU read a word of guest memory, and serves the fault.
func serveExamine(t *testing.T, v *victim, u *uffd.FD, alias []byte, base, gpa, word uint64) {
	t.Helper()
	rd, err := u.NewReader(uffd.ReaderConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	fmt.Fprintf(v.in, `{"execute":"human-monitor-command","arguments":{"command-line":"xp /1gx %#x"}}`+"\n", gpa)
	var ev [1]uffd.Event
	if _, err := rd.Wait(ev[:], patience); err != nil || ev[0].Addr != base+gpa {
		t.Fatalf("event %+v, %v; want a fault at %#x", ev[0], err, base+gpa)
	}
	for i := range 8 {
		alias[gpa+uint64(i)] = byte(word >> (8 * i))
	}
	if _, _, err := u.ContinueRange(ev[0].Addr, 4096, 4096, 0); err != nil {
		t.Fatal(err)
	}
	if s := v.line(); !strings.Contains(s, fmt.Sprintf("%#016x", word)) {
		t.Errorf("QEMU reads %s at %#x, want %#016x", s, gpa, word)
	}
}
