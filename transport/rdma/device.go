package rdma

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Device is an open port of an RDMA device, with a protection domain of its own:
// keys of one Device are of no use with another.
type Device struct {
	port Port
	gid  GID
	dev  *device
	caps caps

	async *os.File // a duplicate of the events' descriptor
	gone  chan struct{}

	mu     sync.Mutex
	failed error               // guarded by mu; the device or its port is out of use
	dead   bool                // guarded by mu; failed is the device's, for good
	watch  map[int]func(error) // guarded by mu
	next   int                 // guarded by mu
	uses   int                 // guarded by mu; what was made from it and is not closed
	closed bool                // guarded by mu
}

// ErrDeviceClosed says that a device was closed by its owner: the session is over.
var ErrDeviceClosed = errors.New("RDMA device is closed")

// hold keeps the device's verbs open until drop, whatever Close does meanwhile: a
// channel can be dialled just when its session ends.
func (d *Device) hold() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrDeviceClosed
	}
	d.uses++
	return nil
}

func (d *Device) drop() {
	d.mu.Lock()
	d.uses--
	last := d.closed && d.uses == 0
	d.mu.Unlock()
	if last {
		d.dev.close()
	}
}

// Open opens the port that [Choose] found. What is missing is named in the error.
func Open(port Port, gid GID) (*Device, error) {
	d, err := open(port, gid)
	if err != nil {
		return nil, fmt.Errorf("open RDMA device %s: %w", port.Device, err)
	}
	return d, nil
}

func open(port Port, gid GID) (*Device, error) {
	dev, err := openVerbs(port.Device, port.Number, gid.Index)
	if err != nil {
		return nil, explainOpen(port.Device, err)
	}
	d := &Device{port: port, gid: gid, dev: dev, gone: make(chan struct{}), watch: make(map[int]func(error))}
	if d.caps, err = dev.caps(); err == nil && !d.caps.active {
		err = fmt.Errorf("port %d is not active: is the link up?", port.Number)
	}
	var fd int
	if err == nil {
		fd, err = unix.FcntlInt(uintptr(dev.asyncFD()), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err != nil {
		dev.close()
		return nil, err
	}
	d.async = os.NewFile(uintptr(fd), "rdma events")
	go d.events()
	return d, nil
}

// explainOpen adds what is to be done about an error of the verbs.
func explainOpen(name string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSYS):
		return fmt.Errorf("%w: the module ib_uverbs is not loaded (modprobe ib_uverbs)", err)
	case errors.Is(err, syscall.ENODEV):
		return fmt.Errorf("%w: libibverbs does not know %s: install the package ibverbs-providers, and look whether /dev/infiniband/uverbs* is there (modprobe ib_uverbs)", err, name)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w: no access to /dev/infiniband/uverbs*", err)
	}
	return err
}

// events waits for asynchronous events of the device until it is closed.
func (d *Device) events() {
	defer close(d.gone)
	raw, err := d.async.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(uintptr) bool {
		for {
			text, port, ok := d.dev.event()
			if !ok {
				return false // until there is one, or the file is closed
			}
			d.heard(text, port)
		}
	})
}

// The events after which nothing works any more, and the one that ends the second, by the
// texts of ibv_event_type_str. Errors of a queue pair are seen in its completions.
const (
	catastrophe = "local catastrophic error"
	portError   = "port error"
	portActive  = "port active"
)

// heard takes an event, of a port or, if that is 0, of the device.
func (d *Device) heard(text string, port int) {
	if port != 0 && port != d.port.Number {
		return // a device tells of all its ports
	}
	d.mu.Lock()
	if text == portActive && !d.dead {
		d.failed = nil // what is made from now on works
	}
	if d.dead || text != catastrophe && text != portError {
		d.mu.Unlock()
		return
	}
	err := fmt.Errorf("RDMA device %s: %s", d.port.Device, text)
	d.failed, d.dead = err, text == catastrophe
	var tell []func(error)
	for _, f := range d.watch {
		tell = append(tell, f)
	}
	d.mu.Unlock()
	for _, f := range tell {
		f(err)
	}
}

// A queue pair may fail some µs before the port is said to be down, which is why it
// does: so long is looked for that.
const (
	reasonTries = 4
	reasonPause = 5 * time.Millisecond
)

// reason is why RDMA ended where err is what was seen first: that the port is down, or
// the device gone, if so, since what else fails does so because of it.
func (d *Device) reason(err error) error {
	for try := range reasonTries {
		if try > 0 {
			time.Sleep(reasonPause)
		}
		d.mu.Lock()
		failed := d.failed
		d.mu.Unlock()
		if failed != nil {
			if errors.Is(err, failed) {
				return err
			}
			return fmt.Errorf("%w; seen first: %w", failed, err)
		}
		switch c, e := d.dev.caps(); {
		case e != nil:
			return fmt.Errorf("RDMA device %s does not answer: %w; seen first: %w", d.port.Device, e, err)
		case !c.active:
			return fmt.Errorf("RDMA device %s: %s; seen first: %w", d.port.Device, portError, err)
		}
	}
	return err
}

// onFailure has f called once the device is out of use; it must not wait. The
// result takes f back.
func (d *Device) onFailure(f func(error)) (cancel func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed != nil {
		return nil, d.failed
	}
	n := d.next
	d.next++
	d.watch[n] = f
	return func() {
		d.mu.Lock()
		delete(d.watch, n)
		d.mu.Unlock()
	}, nil
}

// Close closes the device; nothing can be made from it any more. What was made
// before goes on, and the last of it that is closed frees the device.
func (d *Device) Close() error {
	err := d.async.Close()
	<-d.gone
	d.mu.Lock()
	last := !d.closed && d.uses == 0
	d.closed = true
	d.mu.Unlock()
	if last {
		d.dev.close()
	}
	return err
}

// String names the device, its port and its address.
func (d *Device) String() string {
	return fmt.Sprintf("%s port %d (%s)", d.port.Device, d.port.Number, d.gid.Address)
}

// Port says which device and port it is, and the address of its GID.
func (d *Device) Port() (device string, port int, gid netip.Addr) {
	return d.port.Device, d.port.Number, d.gid.Address
}

// endpoint describes a queue pair on this device, with a random sequence number.
func (d *Device) endpoint(q *queue, reads uint8) endpoint {
	return endpoint{qpn: q.qpn, psn: rand.Uint32() & 0xffffff, lid: d.caps.lid, mtu: d.caps.mtu, link: d.caps.link, reads: reads, gid: d.caps.gid}
}

// meet is what to connect to: the peer's endpoint with the smaller of both MTUs
// and numbers of READs.
func (d *Device) meet(peer endpoint, reads uint8) (endpoint, error) {
	if peer.link != d.caps.link {
		return peer, fmt.Errorf("the peer's link layer is %s, that of %s is %s", linkName(peer.link), d, linkName(d.caps.link))
	}
	peer.mtu = min(peer.mtu, d.caps.mtu)
	peer.reads = min(peer.reads, reads)
	return peer, nil
}

func linkName(l uint8) string {
	if l == 2 {
		return "Ethernet"
	}
	return "InfiniBand"
}

// register registers mem, which the caller keeps mapped until the region is
// closed. A refusal for want of locked memory is explained.
func (d *Device) register(mem []byte, how access) (*region, error) {
	r, err := d.dev.register(mem, how)
	if err == nil {
		return r, nil
	}
	if errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EAGAIN) {
		var lim unix.Rlimit
		if e := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); e == nil && lim.Cur != unix.RLIM_INFINITY {
			return nil, fmt.Errorf("register %d bytes with %s: %w: RLIMIT_MEMLOCK is %d bytes; raise it (LimitMEMLOCK= of the service, ulimit -l), or let the daemon have CAP_IPC_LOCK",
				len(mem), d, err, lim.Cur)
		}
	}
	return nil, fmt.Errorf("register %d bytes with %s: %w", len(mem), d, err)
}
