package relocate

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// maxIncoming bounds the relocations that arrive at one host at a time.
const maxIncoming = 64

// tuning is how this host's channels behave, whichever side dials them.
func (h *Host) tuning() tcp.Tuning {
	return tcp.Tuning{BlockingIO: true, Spin: h.cfg.Spin, DeadAfter: h.cfg.DeadAfter}
}

// admit decides on a HELLO. It runs in the connection's own goroutine.
func (h *Host) admit(hello transport.Hello, peer string) (transport.Offer, *transport.RemoteError) {
	var none transport.Offer
	if hello.Role != transport.Source {
		return none, &transport.RemoteError{Code: transport.CodeMalformed, Text: "this daemon is dialled by sources only"}
	}
	token := hex.EncodeToString(hello.Token[:])
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil {
		return none, &transport.RemoteError{Code: transport.CodeShutdown, Text: errShutdown.Error()}
	}
	ident, known, live := "", false, false
	if in := h.incoming[token]; in != nil {
		ident, known, live = in.rec.Ident, true, true
	} else if rec := h.tombstone[token]; rec != nil {
		ident, known = rec.Ident, true
	}
	switch {
	case known && ident != peer:
		return none, &transport.RemoteError{Code: transport.CodeIdentity,
			Text: fmt.Sprintf("the session was opened by %q, not by %q", ident, peer)}
	case hello.Kind != transport.Control && known && !live:
		return none, &transport.RemoteError{Code: transport.CodeDone, Text: "the session is over"}
	case hello.Kind != transport.Control && !known:
		return none, &transport.RemoteError{Code: transport.CodeToken, Text: "no such session at this host"}
	case !known && hello.Epoch != firstEpoch:
		// Only a session's first control channel has firstEpoch: this session
		// has had one, and its journal is gone.
		return none, &transport.RemoteError{Code: transport.CodeToken,
			Text: "this host does not know the session: its journal is gone (a reboot?), so it cannot tell whether the machine ran here"}
	case !known && len(h.incoming) >= maxIncoming:
		return none, &transport.RemoteError{Code: transport.CodeBusy,
			Text: fmt.Sprintf("%d relocations are arriving here already", len(h.incoming))}
	}
	features := transport.AllFeatures
	if in := h.incoming[token]; in != nil && hello.Kind != transport.Control {
		if in.rdmaDev.Load() != nil {
			features |= transport.FeatureRDMA | transport.FeatureSend
		}
		if !in.isWarm() {
			features &^= transport.FeatureWarm
		}
	}
	return transport.Offer{Role: transport.Destination, Features: features}, nil
}

// sayStrangers is how often connections that did not become channels are logged: whoever
// scans the port must not fill the log.
const sayStrangers = time.Second

// strangers limits what is said of them.
type strangers struct {
	mu    sync.Mutex
	said  time.Time // guarded by mu
	quiet int       // those since that nothing was said of; guarded by mu
}

// refused says why a peer was not let in: it sees the same, but its operator may not be
// ours.
func (h *Host) refused(err error) {
	var no *transport.RemoteError
	if errors.As(err, &no) && (no.Code == transport.CodeDone || no.Code == transport.CodeShutdown) {
		h.log.Debug("a channel of a session that is over was refused", "err", err)
		return
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		h.log.Debug("a connection was closed before it said who it is", "err", err) // a probe of the port
		return
	}
	s := &h.strangers
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.said) < sayStrangers {
		s.quiet++
		return
	}
	h.log.Warn("a peer was not let in", "err", err, "others", s.quiet)
	s.said, s.quiet = time.Now(), 0
}

// dispatch gives an accepted connection to its session.
func (h *Host) dispatch(conn *tcp.Conn) {
	raw := conn.Token()
	token := hex.EncodeToString(raw[:])
	control := conn.Kind() == transport.Control
	h.mu.Lock()
	in, tomb := h.incoming[token], h.tombstone[token]
	fresh := in == nil && tomb == nil && control && h.ctx.Err() == nil
	if fresh {
		in = newIncoming(h, &record{
			Token: token, Role: RoleDestination, Phase: PhaseConnecting,
			Peer: conn.RemoteAddr().String(), Ident: conn.Peer(), Started: time.Now(),
		})
		h.incoming[token] = in
		h.wg.Go(func() { in.run(conn) })
	} else if h.ctx.Err() == nil && control {
		h.wg.Go(func() {
			if in != nil {
				in.hand(conn)
			} else {
				h.lastWord(conn, tomb)
			}
		})
	}
	stopping := h.ctx.Err() != nil
	h.mu.Unlock()
	switch {
	case stopping:
		conn.CloseWith(transport.CodeShutdown, errShutdown.Error())
	case control:
	case in == nil: // it ended between the handshake and now
		conn.CloseWith(transport.CodeDone, "the session is over")
	default:
		if err := in.channel(conn); err != nil {
			conn.CloseWith(transport.CodeDone, err.Error())
		}
	}
}

// firstEpoch marks the control channel that opens a session.
const firstEpoch = 1

// lastWord tells a source that returns late how its relocation ended here.
func (h *Host) lastWord(conn *tcp.Conn, rec *record) {
	ctl, err := newControl(h.ctx, conn, nil)
	if err != nil {
		return
	}
	defer ctl.close()
	var theirs syncMsg
	if err := ctl.expect(h.ctx, msgSync, "SYNC", h.cfg.deadlines.dial, &theirs); err != nil {
		return
	}
	if ctl.send(msgSync, syncMsg{Phase: rec.Phase, Reason: rec.Error, Resumed: rec.ResumedAt}) != nil {
		return
	}
	// The source closes when it has read it.
	ctx, cancel := context.WithTimeout(h.ctx, h.cfg.deadlines.dial)
	defer cancel()
	for {
		if _, err := ctl.next(ctx); err != nil {
			return
		}
	}
}
