package relocate

import (
	"context"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// metered is a page channel of the source whose bytes count against the host's cap.
// Precache waits before it takes a fetch, so that nothing of the image is held
// meanwhile; demand never waits. Pages that the destination reads by RDMA are not
// seen here: the cap of its host is the one that counts for them.
type metered struct {
	transport.Responder
	ctx   context.Context
	conn  *tcp.Conn
	share *pagecache.Share
	sent  int64 // bytes that have been counted
}

// Next implements transport.Responder.
func (m *metered) Next(buf []transport.Fetch) (int, error) {
	if m.conn.Kind() != transport.Precache || !m.share.Capped() {
		return m.Responder.Next(buf)
	}
	for {
		d := m.share.Delay(time.Now())
		if d == 0 || m.ctx.Err() != nil {
			break
		}
		sleep(m.ctx, d)
	}
	return m.Responder.Next(buf[:1])
}

// Answer implements transport.Responder.
func (m *metered) Answer(a *transport.Answer) error {
	err := m.Responder.Answer(a)
	if !m.share.Capped() {
		return err
	}
	_, out := m.conn.Bytes()
	out += m.conn.Carried()
	n := out - m.sent
	m.sent = out
	if m.conn.Kind() == transport.Demand {
		m.share.Demand(n, time.Now())
	} else {
		m.share.Charge(n, time.Now())
	}
	return err
}
