//go:build cgo && rdma

package rdma

// #cgo LDFLAGS: -libverbs
// #cgo CFLAGS: -Wall -Wextra -O2
// #include <stdlib.h>
// #include "verbs_shim.h"
//
// /* Called for each batch: the shim neither calls Go nor keeps a pointer. */
// #cgo noescape pw_post
// #cgo nocallback pw_post
// #cgo noescape pw_poll
// #cgo nocallback pw_poll
// #cgo noescape pw_receive
// #cgo nocallback pw_receive
// #cgo noescape pw_send
// #cgo nocallback pw_send
import "C"

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"
)

// Built says whether this program can do RDMA.
const Built = true

// device is an open device with its protection domain. SAFETY: all pointers kept
// here are C's own; the slices of Go memory that are passed hold no pointers and
// are not kept by the shim.
type device struct {
	c *C.struct_pw_device
}

// region is registered memory.
type region struct {
	c          *C.struct_ibv_mr
	lkey, rkey uint32
}

// queue is a queue pair with its completion queue and channel.
type queue struct {
	c   *C.struct_pw_queue
	qpn uint32
	fd  int // readable when an armed completion has come

	patient bool // as struct pw_peer says
}

func verbError(step string, ret C.int) error {
	return fmt.Errorf("%s: %w", step, syscall.Errno(-ret))
}

func openVerbs(name string, port, gid int) (*device, error) {
	s := C.CString(name)
	defer C.free(unsafe.Pointer(s))
	d := new(device)
	var step *C.char
	if ret := C.pw_device_open(s, C.int(port), C.int(gid), &d.c, &step); ret != 0 {
		return nil, verbError(C.GoString(step), ret)
	}
	return d, nil
}

func (d *device) close() { C.pw_device_close(d.c) }

func (d *device) caps() (caps, error) {
	var c C.struct_pw_caps
	if ret := C.pw_device_caps(d.c, &c); ret != 0 {
		return caps{}, verbError("query the port", ret)
	}
	out := caps{
		depth: int(min(c.max_qp_wr, c.max_cqe)), maxMessage: uint32(c.max_message), lid: uint16(c.lid), mtu: uint8(c.mtu),
		link: uint8(c.link_layer), active: c.state == 4, odp: c.odp != 0, reads: uint8(c.max_reads), served: uint8(c.max_served),
	}
	for i := range out.gid {
		out.gid[i] = byte(c.gid[i])
	}
	return out, nil
}

func (d *device) asyncFD() int { return int(C.pw_device_async_fd(d.c)) }

// event returns the text of the next asynchronous event, if there is one, and the port
// that it is about, 0 if it is about none.
func (d *device) event() (text string, port int, ok bool) {
	var e, p C.int
	if C.pw_device_event(d.c, &e, &p) == 0 {
		return "", 0, false
	}
	return C.GoString(C.pw_event(e)), int(p), true
}

func (d *device) register(mem []byte, how access) (*region, error) {
	r := new(region)
	var lkey, rkey C.uint32_t
	// SAFETY: mem lies outside of Go's heap (the callers map it), so it does not
	// move while the device knows its address; it is deregistered before it is
	// unmapped.
	addr := C.uint64_t(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	if ret := C.pw_register(d.c, addr, C.uint64_t(len(mem)), C.int(how), &r.c, &lkey, &rkey); ret != 0 {
		return nil, verbError("ibv_reg_mr", ret)
	}
	r.lkey, r.rkey = uint32(lkey), uint32(rkey)
	return r, nil
}

func (r *region) close() error {
	if ret := C.pw_deregister(r.c); ret != 0 {
		return verbError("ibv_dereg_mr", ret)
	}
	return nil
}

// addressOf is the address of mapped memory.
func addressOf(mem []byte) uint64 {
	// SAFETY: only the number is used.
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
}

func (d *device) queue(depth int) (*queue, error) { return d.open(depth, 1, false) }

// messages is a queue pair for messages: as many sent, and as many to be received.
func (d *device) messages(sends, receives int) (*queue, error) { return d.open(sends, receives, true) }

func (d *device) open(sends, receives int, patient bool) (*queue, error) {
	q := &queue{patient: patient}
	var step *C.char
	var qpn C.uint32_t
	var fd C.int
	if ret := C.pw_queue_open(d.c, C.int(sends), C.int(receives), &q.c, &qpn, &fd, &step); ret != 0 {
		return nil, verbError(C.GoString(step), ret)
	}
	q.qpn, q.fd = uint32(qpn), int(fd)
	return q, nil
}

func (q *queue) connect(p *endpoint, psn uint32, serve bool) error {
	c := C.struct_pw_peer{qpn: C.uint32_t(p.qpn), psn: C.uint32_t(p.psn), lid: C.uint16_t(p.lid), mtu: C.uint8_t(p.mtu), reads: C.uint8_t(p.reads)}
	for i := range p.gid {
		c.gid[i] = C.uint8_t(p.gid[i])
	}
	if q.patient {
		c.patient = 1
	}
	s := C.int(0)
	if serve {
		s = 1
	}
	var step *C.char
	if ret := C.pw_queue_connect(q.c, &c, C.uint32_t(psn), s, &step); ret != 0 {
		return verbError(C.GoString(step), ret)
	}
	return nil
}

func (q *queue) close() { C.pw_queue_close(q.c) }

// post posts READs, at most maxPost, in one call.
func (q *queue) post(reads []read) (posted int, err error) {
	if len(reads) == 0 {
		return 0, nil
	}
	var n C.int
	// SAFETY: read has the layout of struct pw_read (checked by a test) and no
	// pointers; C reads it during the call.
	p := (*C.struct_pw_read)(unsafe.Pointer(unsafe.SliceData(reads)))
	if ret := C.pw_post(q.c, p, C.int(len(reads)), &n); ret != 0 {
		return int(n), verbError("ibv_post_send", ret)
	}
	return int(n), nil
}

// receive posts buffers for messages, at most maxPost, in one call.
func (q *queue) receive(slots []slot) error {
	// SAFETY: as in post, with struct pw_slot.
	p := (*C.struct_pw_slot)(unsafe.Pointer(unsafe.SliceData(slots)))
	if ret := C.pw_receive(q.c, p, C.int(len(slots))); ret != 0 {
		return verbError("ibv_post_recv", ret)
	}
	return nil
}

// send sends one message.
func (q *queue) send(s *slot) error {
	// SAFETY: as in receive.
	if ret := C.pw_send(q.c, (*C.struct_pw_slot)(unsafe.Pointer(s))); ret != 0 {
		return verbError("ibv_post_send", ret)
	}
	return nil
}

// poll takes completions, in one call; it waits for up to spin by polling.
func (q *queue) poll(out []done, spin time.Duration) (int, error) {
	// SAFETY: as in post; C writes it during the call.
	p := (*C.struct_pw_done)(unsafe.Pointer(unsafe.SliceData(out)))
	n := C.pw_poll(q.c, p, C.int(len(out)), C.uint64_t(spin))
	if n < 0 {
		return 0, verbError("ibv_poll_cq", n)
	}
	return int(n), nil
}

func (q *queue) arm() error {
	if ret := C.pw_arm(q.c); ret != 0 {
		return verbError("ibv_req_notify_cq", ret)
	}
	return nil
}

func (q *queue) disarm() { C.pw_disarm(q.c) }

func statusText(s uint32) string { return C.GoString(C.pw_status(C.uint32_t(s))) }
