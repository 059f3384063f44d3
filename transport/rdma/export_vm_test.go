//go:build rdmavm

package rdma

import (
	"errors"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// What the source cannot look through or register goes by FETCH, all of it, and it says why.
func TestNotRegistered(t *testing.T) {
	for _, c := range []struct {
		name, why string
		spoil     func(*exported) error
	}{
		{"no SEEK_DATA", "illegal seek", func(x *exported) error {
			var p [2]int // a pipe has none
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
				return err
			}
			return errors.Join(unix.Dup3(p[0], x.fd, unix.O_CLOEXEC), unix.Close(p[0]), unix.Close(p[1]))
		}},
		{"not writable", "ibv_reg_mr: bad address", func(x *exported) error { return unix.Mprotect(x.mem, unix.PROT_READ) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStream(t, 1024, rigOptions{})
			if err := c.spoil(s.e.regions[1]); err != nil {
				t.Fatal(err)
			}
			await(t, "RDMA", s.f.Up)
			s.receive(s.post(0, 1024))
			s.whole(1024)
			if reads, _, beneath := counts(s.f); reads != 0 || beneath != 16 {
				t.Errorf("%d READs, %d fetches beneath; want none and all 16", reads, beneath)
			}
			if n := s.e.Registered(); n != 0 {
				t.Errorf("%d bytes are registered", n)
			}
			select {
			case err := <-s.trouble:
				if !strings.Contains(err.Error(), c.why) {
					t.Errorf("the source says %v, want %q", err, c.why)
				}
			default:
				t.Error("the source says nothing")
			}
		})
	}
}

// An image that cannot be opened for pinning is refused, by its name, and nothing of it stays
// open.
func TestNotOpened(t *testing.T) {
	dir := t.TempDir()
	d := testDevice(t)
	readable := filepath.Join(dir, "readable")
	fd, err := sysmem.CreateFile(readable, 16*pageSize)
	if err == nil {
		err = errors.Join(unix.Fchmod(fd, 0o400), unix.Close(fd))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, why string }{
		{filepath.Join(dir, "missing"), "no such file"},
		{"/dev/zero", "holes cannot be found"},
		{readable, "permission denied"},
	} {
		files := openFiles(t)
		refused := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // it ends with the goroutine: its capabilities are gone
			if err := without(unix.CAP_DAC_OVERRIDE); err != nil {
				refused <- err
				return
			}
			e, err := NewExport(d, []Source{{Region: transport.Region{ID: 1, Name: "ram", Pages: 16, PageSize: pageSize}, Path: c.path}}, ExportOptions{})
			if err == nil {
				err = e.Close()
			}
			refused <- err
		}()
		err := <-refused
		if err == nil || !strings.Contains(err.Error(), c.why) || !strings.Contains(err.Error(), c.path) || !strings.Contains(err.Error(), `region 1 ("ram")`) {
			t.Errorf("%s: %v, want %q", c.path, err, c.why)
		}
		if now := openFiles(t); now != files {
			t.Errorf("%s: %d open files, %d before", c.path, now, files)
		}
	}
}

// without takes a capability from the calling thread.
func without(capability uint) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return err
	}
	caps[0].Effective &^= 1 << capability
	return unix.Capset(&hdr, &caps[0])
}
