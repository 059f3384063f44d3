package relocate

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
)

// TestMachineOfAnotherUser: QEMU may run as a user of its own (libvirt's does), who reaches
// nothing in the daemon's state directory.
func TestMachineOfAnotherUser(t *testing.T) {
	const nobody = 65534
	root := vmtest.Dir(t)
	a, b := startHost(t, root, "a", nil), startHost(t, root, "b", nil)
	for _, dir := range []string{root, a.dir} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	own := filepath.Join(a.dir, "own")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(own, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(b.dir, "own"), 0o700); err != nil {
		t.Fatal(err)
	}
	ram, qmp := filepath.Join(own, "vm.mem"), filepath.Join(own, "vm.qmp")
	cmd := exec.Command("qemu-system-x86_64", "-vga", "none", "-machine", "pc,memory-backend=mem", "-m", "96", "-object",
		fmt.Sprintf("memory-backend-file,id=mem,size=%d,mem-path=%s,share=on", vmtest.RAMBytes, ram),
		"-nodefaults", "-display", "none", "-accel", "tcg", "-qmp", "unix:"+qmp+",server=on,wait=off")
	cmd.Stderr = os.Stderr
	cmd.Dir = own
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); cmd.Wait() }() // that it was killed is no news
	t.Cleanup(func() { cmd.Process.Kill(); <-ended; killAll(t, b) })
	vmtest.Wait(t, "QEMU's monitor", func() bool { return exists(qmp) })
	a.adopt(t, "web1", qmp)
	want := vmtest.Pattern(8)
	vmtest.WritePattern(t, ram, want)
	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseDone)
	b.await(t, "web1", PhaseDone)
	if got := runState(t, b, "web1"); got != "running" {
		t.Errorf("the machine is %q", got)
	}
	vmtest.CheckPattern(t, filepath.Join(b.dir, "own", "vm.mem"), want)
}
