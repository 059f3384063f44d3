package qemu

import (
	"slices"
	"testing"
)

func TestServerSockets(t *testing.T) {
	got := ServerSockets([]string{
		"qemu", "-S", "-qmp", "unix:/run/a.qmp,server=on,wait=off", "-monitor", "unix:/run/old.sock,server,nowait",
		"-chardev", "socket,id=c,path=/run/c.sock,server=on", "-chardev", "socket,id=d,path=/run/d.sock,server=off",
		"-serial", "unix:/run/client.sock", "-chardev", "file,id=f,path=/var/log/f", "disk.img",
	})
	want := []string{"/run/a.qmp", "/run/old.sock", "/run/c.sock"}
	if !slices.Equal(got, want) {
		t.Errorf("server sockets %q, want %q", got, want)
	}
	// What the parser does not know must not hide what it does.
	if got := ServerSockets([]string{"qemu", "-qmp", "unix:/run/a.qmp,server=on", "-flag-of-a-later-qemu"}); !slices.Equal(got, []string{"/run/a.qmp"}) {
		t.Errorf("before an unknown flag: %q", got)
	}
}
