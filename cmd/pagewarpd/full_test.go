package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
	"golang.org/x/sys/unix"
)

// The destination's tmpfs fills up in mid-drain, by somebody else's file: the
// drain stands still, the daemon says so and lives, and goes on when there is
// room again.
func TestNoRoomInMidDrain(t *testing.T) {
	t.Parallel()
	root := vmtest.Dir(t)
	dir := filepath.Join(root, "b")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=80m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	m := makeMatrix(t, root, place{}, place{conf: "[engine]\nreserve = \"0s\"\n"}) // else it has its memory
	m.begin("", "")
	m.relocate(relocate.Options{Bandwidth: slow})
	vmtest.Wait(t, "the drain", func() bool { return m.b.status(relocate.RoleDestination).Phase == relocate.PhaseDraining })
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(buf)
	}
	if err := m.b.client.SetBandwidth(t.Context(), "web1", 0); err != nil {
		t.Fatal(err)
	}
	vmtest.Wait(t, "the destination to complain", func() bool {
		s := m.b.status(relocate.RoleDestination)
		return s.Phase == relocate.PhaseDraining && s.ChannelReopens > 2
	})
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	f.Close()
	m.arrived()
}
