//go:build rdmavm && kmodvm

package faultd_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/rdma"
	"golang.org/x/sys/unix"
)

// frozenObject is an object of the character device with the content of img, frozen, and
// its memory, opened for reading.
func frozenObject(t *testing.T, img *image, size int) (node string, fd int) {
	t.Helper()
	const name = "source"
	c, err := kmod.Open()
	must(t, err)
	node, err = c.Create(kmod.Config{Name: name, Bytes: img.pages * pageSize, PageSize: size, Mode: 0o600, Plain: true})
	must(t, err)
	t.Cleanup(func() {
		must(t, c.Destroy(name))
		must(t, c.Close())
	})
	at, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	to, err := sysmem.MapShared(at, 0, int64(img.pages*pageSize), true)
	must(t, err)
	from, err := sysmem.MapShared(img.fd, 0, int64(img.pages*pageSize), false)
	must(t, err)
	for off := int64(0); ; { // not the holes
		begin, end, err := sysmem.NextData(img.fd, off)
		if err != nil {
			break
		}
		copy(to[begin:end], from[begin:end])
		off = end
	}
	must(t, sysmem.Unmap(to))
	must(t, sysmem.Unmap(from))
	must(t, unix.Close(at))
	fd, err = c.Freeze(name)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	return node, fd
}

// TestRDMADevice brings the memory of a process that is on the character device over by
// READs, from a file or from a frozen object, while threads of it touch pages, bit for
// bit; meanwhile the channels are left alone, cut, or lose RDMA.
func TestRDMADevice(t *testing.T) {
	const bytes = 16 << 20
	img := newImage(t, bytes/pageSize, 7)
	for _, c := range []struct {
		name   string
		size   uint64 // of a page
		object bool   // the source is one, too
		pin    rdma.Pin
		batch  bool
		hurt   func(*reader)
	}{
		{"from a file", pageSize, false, rdma.PinLazy, false, func(*reader) {}},
		{"from an object", pageSize, true, rdma.PinLazy, false, func(*reader) {}},
		{"from an object, connections cut", pageSize, true, rdma.PinLazy, false, (*reader).cutAll},
		{"from an object, SEND lost", pageSize, true, rdma.PinLazy, true, (*reader).lose},
		{"huge pages", 2 << 20, true, rdma.PinLazy, false, func(*reader) {}},
		{"huge pages, RDMA lost", 2 << 20, true, rdma.PinAll, false, (*reader).lose},
	} {
		t.Run(c.name, func(t *testing.T) {
			pages := bytes / c.size
			ctx := withDeadline(t, 60*time.Second)
			fd := img.fd
			if c.object {
				_, fd = frozenObject(t, img, int(c.size))
			}
			m, _, _ := newDeviceMachineAgain(t, ctx, pages, c.size, 0)
			reg := region(pages)
			reg.PageSize = uint32(c.size)
			r := newReaderOf(t, reg, fd, c.pin)
			r.batch = c.batch
			cfg := m.config(r.open(t))
			cfg.Bandwidth = 8 << 20 // two seconds: the drain is to meet what comes
			e := start(t, cfg)
			touched := make(chan error, 1)
			go func() {
				_, err := m.reg.Touch(shuffled(bytes/pageSize, 9)[:400], false, 4)
				touched <- err
			}()
			for s := e.Stats(); s.PagesLeft > pages*3/4 && ctx.Err() == nil; s = e.Stats() {
				time.Sleep(time.Millisecond)
			}
			c.hurt(r)
			e.SetBandwidth(0)
			s := drained(t, ctx, e)
			must(t, <-touched)
			m.verify(t, img.sums)
			reads, messages := r.reads.Completed.Load(), r.reads.Messages.Load()
			t.Logf("%d pages by demand, %d by precache, %d zero; %d READs of %d bytes, %d answers by SEND, %d fetches beneath; the page server was asked %d times; RDMA ended %d times; %d bytes were registered",
				s.PagesDemand, s.PagesPrecache, s.PagesZero, reads, r.reads.Bytes.Load(), messages, r.reads.Beneath.Load(), r.stats.Fetches.Load(), r.downs.Load(), r.export.Registered())
			if reads == 0 || r.export.Registered() == 0 || c.batch != (messages > 0) {
				t.Errorf("%d READs out of %d registered bytes, %d answers by SEND", reads, r.export.Registered(), messages)
			}
			if s.PagesDemand == 0 {
				t.Error("no page came on demand")
			}
		})
	}
}

// The node of an object cannot be searched for holes: whoever exports it is told what to
// export in its place.
func TestRDMADeviceNode(t *testing.T) {
	img := newImage(t, 64, 1)
	node, _ := frozenObject(t, img, pageSize)
	e, err := rdma.NewExport(openDevice(t), []rdma.Source{{Region: transport.Region{ID: 7, Name: "ram", Pages: 64, PageSize: pageSize}, Path: node}}, rdma.ExportOptions{})
	if err == nil {
		e.Close()
	}
	if err == nil || !strings.Contains(err.Error(), node+" is a device") {
		t.Errorf("the node was exported: %v", err)
	}
}
