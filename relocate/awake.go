package relocate

import (
	"io"
	"time"

	"github.com/pagewarp/pagewarp/internal/sched"
)

// DefaultAwake is how long a host's CPUs are kept out of deep sleep for a relocation.
const DefaultAwake = 5 * time.Second

// stayAwake keeps the host's CPUs from sleeping deeply from now on, for
// HostConfig.Awake at most and until the transfer ends. Without the right to, or the
// device, it goes on as it is.
func (t *transfer) stayAwake() {
	if t.host.cfg.Awake <= 0 {
		return
	}
	c, err := sched.Awake()
	if err != nil {
		t.log.Debug("the CPUs may sleep, faults wait for them to wake", "err", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.awake = c
	t.tired = time.AfterFunc(t.host.cfg.Awake, t.sleepAgain)
}

// sleepAgain ends stayAwake; it may be called at any time.
func (t *transfer) sleepAgain() {
	t.mu.Lock()
	var c io.Closer
	c, t.awake = t.awake, nil
	if t.tired != nil {
		t.tired.Stop()
	}
	t.mu.Unlock()
	if c != nil {
		c.Close() // which is all that it takes; there is nothing to lose
	}
}
