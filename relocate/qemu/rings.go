package qemu

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// maxRings bounds how many virtqueues are asked for, in all devices together: each
// costs some commands.
const maxRings = 64

// Ring is the memory of one part of a virtqueue: its descriptors, the driver's
// ring or the device's.
type Ring struct {
	Addr uint64 // where QEMU has it, a virtual address of its process
	Len  uint64 // bytes
}

// Rings asks where the virtqueues of the machine's virtio devices are (split
// layout: Virtual I/O Device, VIRTIO 1.2, 2.7): the memory that QEMU reads when it
// loads the state of these devices, and then for each request. It changes nothing. A
// QEMU before 7.2 has no command for it, which is a *CommandError. At most maxRings
// queues are looked at; a queue that the guest has not set up is left out.
func (v *VM) Rings(ctx context.Context) ([]Ring, error) {
	var devices []struct {
		Path string `json:"path"`
	}
	if err := v.Execute(ctx, "x-query-virtio", nil, &devices); err != nil {
		return nil, fmt.Errorf("virtio devices: %w", err)
	}
	var rings []Ring
	asked := 0
	for _, d := range devices {
		var st struct {
			Queues int `json:"num-vqs"`
		}
		if err := v.Execute(ctx, "x-query-virtio-status", map[string]any{"path": d.Path}, &st); err != nil {
			return nil, fmt.Errorf("virtio device %s: %w", d.Path, err)
		}
		for q := 0; q < st.Queues && asked < maxRings; q++ {
			asked++
			rs, err := v.queueRings(ctx, d.Path, q)
			if err != nil {
				return nil, fmt.Errorf("queue %d of virtio device %s: %w", q, d.Path, err)
			}
			rings = append(rings, rs...)
		}
	}
	return rings, nil
}

// queueRings are the parts of one virtqueue, none if the guest does not use it.
func (v *VM) queueRings(ctx context.Context, path string, queue int) ([]Ring, error) {
	var st struct {
		Num   uint64 `json:"vring-num"`
		Desc  uint64 `json:"vring-desc"`
		Avail uint64 `json:"vring-avail"`
		Used  uint64 `json:"vring-used"`
	}
	if err := v.Execute(ctx, "x-query-virtio-queue-status", map[string]any{"path": path, "queue": queue}, &st); err != nil {
		return nil, err
	}
	const maxNum = 1 << 15 // VIRTIO 1.2, 2.7
	if st.Desc == 0 || st.Num == 0 || st.Num > maxNum {
		return nil, nil
	}
	var rings []Ring
	for _, part := range []struct{ gpa, size uint64 }{
		{st.Desc, 16 * st.Num}, {st.Avail, 6 + 2*st.Num}, {st.Used, 6 + 8*st.Num},
	} {
		addr, err := v.hostAddress(ctx, part.gpa)
		if err != nil {
			return nil, err
		}
		rings = append(rings, Ring{Addr: addr, Len: part.size})
	}
	return rings, nil
}

// hostAddress asks where QEMU has a guest-physical address.
func (v *VM) hostAddress(ctx context.Context, gpa uint64) (uint64, error) {
	var text string
	if err := v.Execute(ctx, "human-monitor-command", map[string]any{"command-line": fmt.Sprintf("gpa2hva %#x", gpa)}, &text); err != nil {
		return 0, err
	}
	_, hex, ok := strings.Cut(strings.TrimSpace(text), " is 0x")
	addr, err := strconv.ParseUint(hex, 16, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("QEMU does not say where %#x is: %q", gpa, strings.TrimSpace(text))
	}
	return addr, nil
}
