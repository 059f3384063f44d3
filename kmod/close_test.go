package kmod

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A second Close must not close the descriptor that has the number by then: it may be a
// guest's memory.
func TestCloseTwice(t *testing.T) {
	file := func() int {
		fd, err := unix.MemfdCreate("kmod", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	daemon := &Daemon{fd: file()}
	reader, err := NewReader(ReaderConfig{}, daemon)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		fd    int
		close func() error
	}{
		{"reader", reader.stop, reader.Close},
		{"daemon", daemon.fd, daemon.Close},
	} {
		if err := c.close(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		other := file()
		if err := unix.Dup3(other, c.fd, unix.O_CLOEXEC); err != nil && other != c.fd {
			t.Fatal(err)
		}
		if err := c.close(); err != nil {
			t.Errorf("%s, the second time: %v", c.name, err)
		}
		if _, err := unix.FcntlInt(uintptr(c.fd), unix.F_GETFD, 0); err != nil {
			t.Errorf("%s: the second Close has closed what is not its own: %v", c.name, err)
		}
		unix.Close(c.fd)
		if other != c.fd {
			unix.Close(other)
		}
	}
	control := &Control{fd: file()}
	if err := control.Close(); err != nil {
		t.Fatal(err)
	}
	if err := control.Close(); err != nil {
		t.Errorf("control, the second time: %v", err)
	}
}
