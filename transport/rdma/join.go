package rdma

import (
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// A queue pair is connected by a goroutine of its own and under no lock: the kernel may
// look for the way to a peer on Ethernet for a second (rdma_addr_find_l2_eth_by_grh), in
// which faults go by FETCH as before. The goroutine is one of those that pump waits for,
// and so ends before the channel's memory and device do.

// errTwice is what a second ACCEPT is.
var errTwice = fmt.Errorf("%w: a second ACCEPT on one channel", transport.ErrMalformed)

// join connects a queue pair that nobody is to read from.
func (d *Device) join(q *queue, peer endpoint, reads uint8, psn uint32) error {
	to, err := d.meet(peer, reads)
	if err != nil {
		return err
	}
	return q.connect(&to, psn, false)
}

// accepted has the queue pair connected to the source's. mu is held.
func (f *Fetcher) accepted(body []byte) error {
	peer, err := parseEndpoint(body, true, false)
	switch {
	case err != nil:
		return err
	case f.met:
		return errTwice
	}
	f.met = true
	if f.over {
		return nil // late
	}
	f.table.cut(peer.chunk)
	q := f.pending
	f.pending, f.joining = nil, q
	f.pump.Go(func() { f.join(q, peer) })
	return nil
}

func (f *Fetcher) join(q *queue, peer endpoint) {
	err := f.dev.join(q, peer, f.dev.caps.reads, f.mine.psn)
	f.mu.Lock()
	ours := f.joining == q
	f.joining = nil
	switch {
	case !ours: // RDMA has ended meanwhile
	case err != nil:
		f.pending = q
		f.breakDown(err)
	default:
		f.q = q
		f.stats.Up.Add(1)
		f.prove()
		f.again()
	}
	f.mu.Unlock()
	if !ours {
		q.close()
	}
	f.wake()
}

// again routes what has waited. mu is held.
func (f *Fetcher) again() {
	waiting := f.waiting
	f.waiting = nil
	for _, fl := range waiting {
		f.route(fl)
	}
	f.post(time.Now())
}

// accepted has the queue pair connected to the source's. mu is held.
func (f *BatchFetcher) accepted(body []byte) error {
	peer, err := parseEndpoint(body, true, true)
	switch {
	case err != nil:
		return err
	case f.met:
		return errTwice
	case peer.slots != f.mine.slots || peer.slotBytes != f.mine.slotBytes:
		return fmt.Errorf("%w: ACCEPT of %d messages of %d bytes, where CONNECT had %d of %d", transport.ErrMalformed, peer.slots, peer.slotBytes, f.mine.slots, f.mine.slotBytes)
	}
	f.met = true
	if f.over {
		return nil // late
	}
	q := f.pending
	f.pending, f.joining = nil, q
	f.pump.Go(func() { f.join(q, peer) })
	return nil
}

func (f *BatchFetcher) join(q *queue, peer endpoint) {
	err := f.dev.join(q, peer, 1, f.mine.psn)
	if err == nil {
		err = q.receive(f.slots)
	}
	f.mu.Lock()
	ours := f.joining == q
	f.joining = nil
	switch {
	case !ours: // RDMA has ended meanwhile
	case err != nil:
		f.pending = q
		f.breakDown(err)
	default:
		f.q = q
		f.stats.Up.Add(1)
		f.base.Invite(len(f.slots))
	}
	f.mu.Unlock()
	if !ours {
		q.close()
	}
	f.wake()
}
