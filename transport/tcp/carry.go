package tcp

import (
	"fmt"
	"slices"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// maxFlagged bounds the fetches of a channel that a message may answer and that are
// not answered: a destination has as many receive buffers, and they are fewer.
const maxFlagged = MaxOutstanding

// allow notes that a message may answer a fetch.
func (r *Responder) allow(id uint64) error {
	if r.c.Features()&transport.FeatureSend == 0 {
		return fmt.Errorf("%w: FETCH %d wants an answer by message, but the feature is not in force", transport.ErrMalformed, id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.flagged) >= maxFlagged {
		return fmt.Errorf("%w: %d fetches want an answer by message", transport.ErrMalformed, maxFlagged)
	}
	r.flagged = append(r.flagged, id)
	return nil
}

// allowed takes that note back, if there is one.
func (r *Responder) allowed(id uint64) bool {
	if r.c.Features()&transport.FeatureSend == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.flagged, id)
	if i >= 0 {
		r.flagged = slices.Delete(r.flagged, i, i+1)
	}
	return i >= 0
}

// carry answers by a message, encoded where it is sent from; not done, without an
// error, says that the answer is to go by the connection.
func (r *Responder) carry(by transport.Carrier, a *transport.Answer) (done bool, err error) {
	start := time.Now()
	mem, most, ok := by.Room()
	if !ok {
		return false, nil
	}
	defer by.Leave() // whatever build meets: the image may be gone
	waited := time.Since(start)
	r.turn()
	defer r.turn()
	r.place = mem
	defer func() { r.place = nil }()
	r.chooser.Link(by.Rate())
	size, err := r.work(a)
	switch {
	case err != nil:
		return false, err
	case size > transport.HeaderSize+int(r.c.MaxBody()):
		return true, r.tooLong(a, size-transport.HeaderSize)
	case size > most || size > len(mem):
		return false, nil
	}
	at := copy(mem, r.head)
	for _, p := range r.vec[1:] {
		if len(p) > 0 && &p[0] != &mem[at] {
			copy(mem[at:], p)
		}
		at += len(p)
	}
	if !by.Send(size) {
		return false, nil
	}
	r.c.carried.Add(int64(size))
	end := time.Now()
	r.sent(size, end.Add(-waited), end)
	return true, nil
}

// turn exchanges what is known of the connection for what is known of the link beside.
func (r *Responder) turn() {
	r.chooser, r.beside.chooser = r.beside.chooser, r.chooser
	r.wrote, r.beside.wrote = r.beside.wrote, r.wrote
}
