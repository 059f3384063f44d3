package tcp

import (
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// stallLimit is how many times DeadAfter a peer that still sends may leave a
// fetch unanswered while others proceed, or a write of ours unread.
const stallLimit = 12

// keepalive sends PING and owed PONGs and closes a channel whose peer is gone.
// It looks at counters a few times per DeadAfter, so that the data path need
// not read a clock.
func (c *Conn) keepalive() {
	defer c.ended.Done()
	t := time.NewTicker(max(time.Millisecond, min(c.tune.PingAfter/2, c.tune.DeadAfter/10)))
	defer t.Stop()
	k := keeper{c: c}
	k.start(now())
	for {
		select {
		case <-c.done:
			return
		case <-c.kick:
			if c.pong.Swap(false) {
				c.sendSmall(transport.Header{Type: transport.TypePong, ID: c.pongID.Load()})
			}
		case <-t.C:
			if err := k.tick(now()); err != nil {
				c.shut(err, 0, "")
				return
			}
		}
	}
}

// keeper is what the keepalive remembers from one look to the next. Times are
// in ns of now().
type keeper struct {
	c             *Conn
	in, out       int64
	reads, writes uint64
	inAt          int64 // when something last came in, or we were not reading
	heardAt       int64 // when something last came in
	outAt         int64 // when something last went out
	writeAt       int64 // when the write in progress was last seen to proceed
	fetch         progress
}

// progress is the fetcher's part of a keeper.
type progress struct {
	seen uint64
	at   int64 // when an answer's bytes were last seen to come
}

func (k *keeper) start(t int64) {
	k.inAt, k.heardAt, k.outAt, k.writeAt, k.fetch.at = t, t, t, t, t
}

func (k *keeper) tick(t int64) error {
	c, dead := k.c, int64(k.c.tune.DeadAfter)
	in, out := c.Bytes()
	came := in != k.in
	if came {
		k.heardAt = t
	}
	if reads := c.w.reads.Load(); came || reads != k.reads || reads%2 == 0 {
		k.in, k.reads, k.inAt = in, reads, t
	}
	writes := c.w.writes.Load()
	if out != k.out {
		k.outAt = t
	}
	if out != k.out || writes != k.writes || writes%2 == 0 {
		k.out, k.writes, k.writeAt = out, writes, t
	}
	if t-k.inAt >= dead {
		return fmt.Errorf("%w: nothing came from %v for %v", ErrDead, c.RemoteAddr(), time.Duration(t-k.inAt).Round(time.Millisecond))
	}
	// A peer that is heard but does not read for a while is busy (a control
	// channel's state may wait for its VMM); for ever is an attack.
	heard := t-k.heardAt < dead/2
	if stall := t - k.writeAt; stall >= dead && (!heard || stall >= stallLimit*dead) {
		return fmt.Errorf("%w: %v has not taken a byte for %v", ErrDead, c.RemoteAddr(), time.Duration(stall).Round(time.Millisecond))
	}
	if c.fetcher != nil {
		if err := c.fetcher.overdue(&k.fetch, t, dead); err != nil {
			return err
		}
	}
	if t-k.outAt >= int64(c.tune.PingAfter) {
		c.pinged.Store(t)
		c.sendSmall(transport.Header{Type: transport.TypePing, ID: uint64(t)})
	}
	return nil
}

// sendSmall sends a frame without a body, unless somebody else is writing: then
// that is the sign of life. It is the keepalive's, and does not wait: the buffers
// between us and a dead peer may be full, and it is the keepalive that finds that out.
func (c *Conn) sendSmall(h transport.Header) {
	c.ended.Go(func() {
		select {
		case c.wlock <- struct{}{}: // here, so that nobody waits for a goroutine to begin
		default:
			return
		}
		defer c.unlock()
		if c.closed.Load() {
			return
		}
		var b [transport.HeaderSize]byte
		h.Put(b[:])
		transport.SetCRC(b[:], transport.HeaderCRC(b[:]))
		if err := c.w.write(b[:]); err != nil {
			c.fail(err)
		}
	})
}
