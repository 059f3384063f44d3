package relocate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// relay carries QEMU's migration stream into the control channel.
type relay struct {
	listener *qemu.StateListener // nil if QEMU is handed its end
	end      *os.File            // then: that end, until start
	wg       sync.WaitGroup

	mu     sync.Mutex
	stream *qemu.StateStream // guarded by mu, and immutable without a listener; nil until QEMU has connected
	closed bool              // guarded by mu
}

// newRelay makes the way for the state. A QEMU of this user's comes by a socket in the state
// directory, into which another's may not reach.
func newRelay(dir string, uid int, idle time.Duration) (*relay, error) {
	r := &relay{}
	var err error
	if uid == os.Geteuid() {
		r.listener, err = qemu.ListenState(dir, uid)
	} else {
		r.stream, r.end, err = qemu.NewStatePair(idle)
	}
	return r, err
}

// start has QEMU send its state here.
func (r *relay) start(ctx context.Context, mig *qemu.Outgoing) error {
	if r.listener != nil {
		return mig.StartMigrate(ctx, r.listener.URI())
	}
	end := r.end
	r.end = nil
	return mig.StartMigrateTo(ctx, end)
}

// accept returns the stream.
func (r *relay) accept(ctx context.Context, pid int, limit time.Duration) (*qemu.StateStream, error) {
	if r.listener == nil {
		return r.stream, nil
	}
	return r.listener.Accept(ctx, pid, limit)
}

// run forwards the stream, and stores when its last bytes came: QEMU closes it some
// time after them, perhaps after LOADED. pid is the QEMU that may connect, within
// limit.
func (r *relay) run(ctx context.Context, pid int, limit time.Duration, ctl *control, saved *atomic.Int64) error {
	stream, err := r.accept(ctx, pid, limit)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.stream = stream
	if r.closed {
		stream.Close()
	}
	r.mu.Unlock()
	buf := make([]byte, 128<<10)
	for {
		n, err := stream.Read(buf)
		if n > 0 {
			saved.Store(time.Now().UnixNano())
			if serr := ctl.sendState(buf[:n], false); serr != nil {
				return serr
			}
		}
		if errors.Is(err, io.EOF) {
			return ctl.sendState(nil, true)
		}
		if err != nil {
			return fmt.Errorf("read device state from QEMU: %w", err)
		}
	}
}

// Close is stop, for [qemu.Outgoing.AbortWith]; of nil it does nothing.
func (r *relay) Close() error {
	if r != nil {
		r.stop()
	}
	return nil
}

// stop ends the stream, which makes an unfinished migration of QEMU fail. run ends then, or
// with the control channel.
func (r *relay) stop() {
	if r.listener != nil {
		r.listener.Close()
	}
	r.mu.Lock()
	r.closed = true
	if r.stream != nil {
		r.stream.Close()
	}
	if r.end != nil {
		r.end.Close()
		r.end = nil
	}
	r.mu.Unlock()
}

// wait waits for run.
func (r *relay) wait() {
	if r != nil {
		r.wg.Wait()
	}
}

func (r *relay) stopped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}
