package qemu

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/relocate/qemu/qemutest"
)

// biosDisk is a machine whose firmware sets a virtio disk's queue up, since it looks
// for something to boot.
var biosDisk = []string{"-bios", "bios-256k.bin", "-blockdev", "null-co,node-name=d,size=1048576", "-device", "virtio-blk-pci,drive=d", "-device", "virtio-rng-pci"}

// TestRings: the parts of the queue that the firmware uses are in the machine's
// memory; devices that nobody drives have none.
func TestRings(t *testing.T) {
	s := start(t, memArgs, biosDisk...)
	maps, err := MemoryMapping(s.PID, s.mem)
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t, 20*time.Second)
	var rings []Ring
	for len(rings) == 0 { // the firmware needs some tenths of a second
		if rings, err = s.Rings(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if len(rings) != 3 {
		t.Errorf("rings %+v, want the three parts of one queue", rings)
	}
	for _, r := range rings {
		if r.Addr < maps[0].Start || r.Addr+r.Len > maps[0].End || r.Len < 6 {
			t.Errorf("ring %+v is not in the memory at %#x to %#x", r, maps[0].Start, maps[0].End)
		}
	}
}

// TestRingsAnswers: what QEMU may say, such as a version that does not know.
func TestRingsAnswers(t *testing.T) {
	const path = "/machine/peripheral/net0/virtio-backend"
	devices := qemutest.Return([]map[string]string{{"path": path, "name": "virtio-net"}})
	status := qemutest.Return(map[string]int{"num-vqs": 2})
	queue := func(num, desc, avail, used uint64) qemutest.Reply {
		return qemutest.Return(map[string]uint64{"vring-num": num, "vring-desc": desc, "vring-avail": avail, "vring-used": used})
	}
	for name, c := range map[string]struct {
		devices, status, queue, hva qemutest.Reply
		want                        []Ring
		err                         string
	}{
		"two queues": {devices, status, queue(256, 0x1000, 0x2000, 0x3000), qemutest.Return("Host virtual address for 0x1000 (mem) is 0x7f0000001000\r\n"),
			[]Ring{{0x7f0000001000, 4096}, {0x7f0000001000, 518}, {0x7f0000001000, 2054}, {0x7f0000001000, 4096}, {0x7f0000001000, 518}, {0x7f0000001000, 2054}}, ""},
		"not set up":     {devices, status, queue(256, 0, 0, 0), qemutest.Stall, nil, ""},
		"a hostile ring": {devices, status, queue(1<<40, 1, 1, 1), qemutest.Stall, nil, ""},
		"not in memory":  {devices, status, queue(8, 1<<40, 2, 3), qemutest.Return("No memory is mapped at address 0x10000000000\r\n"), nil, "does not say where 0x10000000000 is"},
		"too old":        {qemutest.Fail("CommandNotFound", "The command x-query-virtio has not been found"), nil, nil, nil, nil, "has not been found"},
		"queue is gone":  {devices, status, qemutest.Fail("GenericError", "no such queue"), nil, nil, "queue 0 of virtio device " + path},
	} {
		t.Run(name, func(t *testing.T) {
			srv, path := fake(t)
			for command, reply := range map[string]qemutest.Reply{
				"x-query-virtio": c.devices, "x-query-virtio-status": c.status, "x-query-virtio-queue-status": c.queue, "human-monitor-command": c.hva,
			} {
				if reply != nil {
					srv.Handle(command, reply)
				}
			}
			v := connect(t, path)
			got, err := v.Rings(within(t, 5*time.Second))
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("%v, want %q", err, c.err)
			}
			if refused := (*CommandError)(nil); c.err != "" && c.hva == nil && !errors.As(err, &refused) {
				t.Errorf("%v is no refusal by QEMU", err)
			}
			if len(got) != len(c.want) {
				t.Fatalf("%+v, want %+v", got, c.want)
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Errorf("ring %d: %+v, want %+v", i, got[i], c.want[i])
				}
			}
		})
	}
}
