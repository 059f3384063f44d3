package rdma

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/pagewarp/pagewarp/transport"
)

// maxAsked bounds the MAPs of a channel that are not answered; a destination keeps fewer
// under way, ours maxAsking.
const maxAsked = 4096

// Attachment is the source's end of RDMA on one page channel.
type Attachment struct {
	e    *Export
	ch   Channel
	asks chan ask
	met  chan struct{} // closed once ACCEPT is out, for pages by READ

	mu   sync.Mutex
	q    *queue  // guarded by mu; nil until CONNECT, and after OFF
	s    *sender // guarded by mu; likewise, where answers go by SEND
	was  bool    // guarded by mu; there has been a CONNECT
	over bool    // guarded by mu; there has been an OFF, or Close

	cancel context.CancelFunc
	worker sync.WaitGroup
}

// ask is one MAP.
type ask struct {
	region uint32
	first  uint64
}

// Attach serves RDMA on ch until Close. The image must be frozen, and ch not be
// read yet.
func (e *Export) Attach(ch Channel) *Attachment {
	a := &Attachment{e: e, ch: ch, asks: make(chan ask, maxAsked), met: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	ch.SetSide(a.side)
	a.worker.Go(func() { a.work(ctx) })
	return a
}

// Close ends it: the destination's READs fail from here on. Whatever else goes
// over the channel goes on.
func (a *Attachment) Close() {
	a.off()
	a.worker.Wait()
}

// off ends RDMA: nothing can be read any more, nothing is registered or connected from
// here on.
func (a *Attachment) off() {
	a.cancel()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	if a.q != nil {
		a.q.close()
		a.q = nil
		a.e.dev.drop()
	}
	if a.s != nil {
		a.ch.(carried).Carry(nil)
		if err := a.s.close(); err != nil {
			a.e.report(notTakenBack, err)
		}
		a.s = nil
		a.e.dev.drop()
	}
}

// carried is a [Channel] whose answers can go by messages.
type carried interface{ Carry(transport.Carrier) }

// messages says whether answers of the channel may go by SEND.
func (a *Attachment) messages() bool {
	_, ok := a.ch.(carried)
	return ok && a.ch.Features()&transport.FeatureSend != 0
}

// side takes an RDMA frame of the channel.
func (a *Attachment) side(h transport.Header, body []byte) error {
	switch h.Aux {
	case kindConnect:
		return a.connect(body)
	case kindMap:
		if len(body) != 0 || h.Count != 0 {
			return fmt.Errorf("%w: MAP with a body or a count", transport.ErrMalformed)
		}
		if err := a.e.begins(h.Region, h.First); err != nil {
			return err
		}
		if a.isOver() {
			return nil // it would not be answered
		}
		select {
		case a.asks <- ask{h.Region, h.First}:
			return nil
		default:
			return fmt.Errorf("%w: more than %d MAPs that are not answered", transport.ErrMalformed, cap(a.asks))
		}
	case kindOff:
		a.off()
		return nil
	}
	return fmt.Errorf("%w: RDMA frame of kind %d at the source", transport.ErrMalformed, h.Aux)
}

func (a *Attachment) isOver() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.over
}

// connect has CONNECT answered, by a goroutine of its own: the kernel may look for the
// way to the peer for a second, see join.go, in which fetches are answered as before.
func (a *Attachment) connect(body []byte) error {
	peer, err := parseEndpoint(body, false, a.messages())
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.was:
		return fmt.Errorf("%w: a second CONNECT on one channel", transport.ErrMalformed)
	case a.over:
		return nil
	}
	a.was = true
	a.worker.Go(func() { a.meet(peer) })
	return nil
}

// errOver says that RDMA has ended before it began.
var errOver = errors.New("RDMA on the channel is over")

// meet answers CONNECT. That RDMA is impossible here is no error of the channel.
func (a *Attachment) meet(peer endpoint) {
	open := a.open
	if peer.slots > 0 {
		open = a.openSender
	}
	mine, err := open(peer)
	switch {
	case errors.Is(err, errOver):
		return
	case err != nil:
		err = fmt.Errorf("set up RDMA with the destination: %w", err)
		a.e.report(notSetUp, err)
		a.say(transport.Header{Aux: kindOff}, clipped(err))
		return
	}
	if a.say(transport.Header{Aux: kindAccept}, mine.append(nil)) == nil && peer.slots == 0 {
		close(a.met) // there is only one CONNECT
	}
}

func (a *Attachment) open(peer endpoint) (endpoint, error) {
	d := a.e.dev
	reads := d.caps.served
	to, err := d.meet(peer, reads)
	if err != nil {
		return endpoint{}, err
	}
	if err := d.hold(); err != nil {
		return endpoint{}, err
	}
	q, err := d.dev.queue(1) // it posts nothing
	if err != nil {
		d.drop()
		return endpoint{}, err
	}
	mine := d.endpoint(q, reads)
	mine.chunk = chunkBytes
	if err := q.connect(&to, mine.psn, true); err != nil {
		q.close()
		d.drop()
		return endpoint{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		q.close()
		d.drop()
		return endpoint{}, errOver
	}
	a.q = q
	return mine, nil
}

// openSender has answers of the channel go by SEND from here on.
func (a *Attachment) openSender(peer endpoint) (endpoint, error) {
	d := a.e.dev
	to, err := d.meet(peer, 1)
	if err != nil {
		return endpoint{}, err
	}
	if err := d.hold(); err != nil {
		return endpoint{}, err
	}
	s, err := newSender(d, &peer, a.e.opt.DeadAfter, a.e.sent, func(err error) {
		err = fmt.Errorf("answers by SEND through %s: %w", d, err)
		a.e.report(notSent, err)
		a.say(transport.Header{Aux: kindOff}, clipped(err))
	})
	if err != nil {
		d.drop()
		return endpoint{}, err
	}
	mine := d.endpoint(s.q, 1)
	mine.slots, mine.slotBytes = peer.slots, peer.slotBytes
	if err := s.q.connect(&to, mine.psn, false); err != nil {
		s.close()
		d.drop()
		return endpoint{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		s.close()
		d.drop()
		return endpoint{}, errOver
	}
	a.s = s
	a.ch.(carried).Carry(s)
	return mine, nil
}

// clipped is the text of an error as a frame takes it.
func clipped(err error) []byte {
	text := err.Error()
	return []byte(text[:min(len(text), transport.MaxText)])
}

// say sends a frame; an error is the channel's, whose reader sees it too.
func (a *Attachment) say(h transport.Header, body []byte) error {
	if err := a.ch.SendSide(h, body); err != nil {
		return fmt.Errorf("RDMA set-up: %w", err)
	}
	return nil
}

// work registers chunks and tells of them: those asked for, and, with [PinAll],
// in between all others in their order.
func (a *Attachment) work(ctx context.Context) {
	select {
	case <-a.met:
	case <-ctx.Done():
		return
	case <-a.ch.Done():
		return
	}
	told := make(map[ask]bool)
	var rest []ask
	if a.e.opt.Pin == PinAll {
		for _, x := range a.e.order {
			for p := uint64(0); p < x.Pages; p += x.unit {
				rest = append(rest, ask{x.ID, p})
			}
		}
	}
	for {
		var want ask
		if len(rest) > 0 {
			select {
			case <-ctx.Done():
				return
			case want = <-a.asks:
			default:
				want, rest = rest[0], rest[1:]
				if told[want] {
					continue
				}
			}
		} else {
			select {
			case <-ctx.Done():
				return
			case <-a.ch.Done():
				return
			case want = <-a.asks:
			}
		}
		if len(rest) > 0 && a.e.regions[want.region] != nil { // or a peer could have it grow
			told[want] = true
		}
		if err := a.answer(want); err != nil {
			return // the channel has ended
		}
	}
}

// answer describes one chunk.
func (a *Attachment) answer(want ask) error {
	c, err := a.e.chunk(want.region, want.first)
	if err == nil && c.err == nil && len(c.windows) > maxWindows {
		err = fmt.Errorf("%d stretches of data, at most %d can be described", len(c.windows), maxWindows)
	}
	h := transport.Header{Aux: kindMapped, Region: want.region, First: want.first}
	if err == nil {
		err = c.err
	}
	if err != nil {
		h.Aux = kindUnmapped
		return a.say(h, clipped(err))
	}
	h.Count = c.count
	body := make([]byte, 0, len(c.windows)*windowSize)
	for _, w := range c.windows {
		body = appendWindow(body, w)
	}
	return a.say(h, body)
}
