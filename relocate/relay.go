package relocate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// relay carries QEMU's migration stream into the control channel.
type relay struct {
	listener *qemu.StateListener
	wg       sync.WaitGroup

	mu     sync.Mutex
	stream *qemu.StateStream // guarded by mu; nil until QEMU has connected
	closed bool              // guarded by mu
}

// run forwards the stream, and stores when its last bytes came: QEMU closes it some
// time after them, perhaps after LOADED. pid is the QEMU that may connect, within
// limit.
func (r *relay) run(ctx context.Context, pid int, limit time.Duration, ctl *control, saved *atomic.Int64) error {
	stream, err := r.listener.Accept(ctx, pid, limit)
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
	r.listener.Close()
	r.mu.Lock()
	r.closed = true
	if r.stream != nil {
		r.stream.Close()
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
