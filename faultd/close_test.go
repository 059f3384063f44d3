package faultd_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// slowClose is a channel to a peer that takes nothing any more: its end takes a while.
type slowClose struct {
	end  chan struct{}
	once sync.Once
}

const closing = 200 * time.Millisecond

func (*slowClose) Fetch([]transport.Fetch) error                       { return nil }
func (*slowClose) Outstanding(buf []transport.Fetch) []transport.Fetch { return buf }

func (c *slowClose) Receive(transport.Sink, *transport.Completion) error {
	<-c.end
	return io.EOF
}

func (c *slowClose) Close() error {
	c.once.Do(func() {
		time.Sleep(closing)
		close(c.end)
	})
	return nil
}

// Peers that take nothing cost the end of a session the time of one, however many
// channels there are: a daemon has little time to stop.
func TestChannelsEndSideBySide(t *testing.T) {
	const channels = 32
	m := newMachine(t, withDeadline(t, 30*time.Second), 4096, false)
	var open sync.WaitGroup
	open.Add(2 * channels)
	cfg := m.config(func(context.Context, transport.Kind, int) (transport.Fetcher, error) {
		open.Done()
		return &slowClose{end: make(chan struct{})}, nil
	})
	cfg.DemandChannels, cfg.PrecacheChannels = channels, channels
	e := start(t, cfg)
	open.Wait()
	began := time.Now()
	must(t, e.Close())
	if took := time.Since(began); took > channels*closing/2 {
		t.Errorf("%d channels took %v to end", 2*channels, took)
	}
}
