package rig

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/accel"
)

// A VM that is left running, with its memory file and sockets, goes with Close.
func TestCloseEndsVMs(t *testing.T) {
	r := newRig(t, "a")
	vm, err := StartVM(t.Context(), r.Host("a"), VMConfig{
		Name: "idle", RAM: 64 << 20, Accel: accel.TCG, Incoming: "defer", VGA: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", vm.QMPPath)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if vm.Alive() {
		t.Error("QEMU outlived the rig")
	}
	if _, err := StartVM(t.Context(), r.Host("a"), VMConfig{Name: "late", RAM: 64 << 20, Accel: accel.TCG}); err == nil {
		t.Error("a closed rig started a VM")
	}
}

func TestStartVMErrors(t *testing.T) {
	r := newRig(t, "a")
	a := r.Host("a")
	for _, tc := range []struct {
		c    VMConfig
		want string
	}{
		{VMConfig{Name: "../x", RAM: 64 << 20}, "want a name"},
		{VMConfig{Name: "x"}, "RAM of 0 bytes"},
		{VMConfig{Name: "x", RAM: 64 << 20, VCPUs: -1}, "vCPUs"},
		{VMConfig{Name: "x", RAM: 64 << 20, MAC: "nonsense"}, "nonsense"},
		{VMConfig{Name: "x", RAM: 64 << 20, Accel: accel.TCG, Tap: "tap9nodev", ExtraArgs: []string{"-no-such-option"}}, "no-such-option"},
	} {
		_, err := StartVM(t.Context(), a, tc.c)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("StartVM(%+v): %v, want an error with %q", tc.c, err, tc.want)
		}
	}
	if files, _ := filepath.Glob(filepath.Join(a.Dir, "*.mem")); len(files) > 0 {
		t.Errorf("failed starts left %q", files)
	}
}
