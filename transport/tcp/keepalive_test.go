package tcp

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// A connection whose buffers are full takes not even a PING. Its peer is dead as any
// other one that has gone silent.
func TestPingThatDoesNotGoOut(t *testing.T) {
	here, there := net.Pipe() // without any buffer
	defer there.Close()
	peer := make(chan error, 1)
	go func() {
		w, err := newWire(there)
		if err == nil {
			_, err = welcomePeer(w, "", admitKnown)
		}
		peer <- err // and is not heard of again
	}()
	c, err := Client(t.Context(), here, Options{Hello: demandHello(), Tuning: Tuning{PingAfter: 20 * time.Millisecond, DeadAfter: 200 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-peer; err != nil {
		t.Fatal(err)
	}
	f, err := c.Fetcher()
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan error, 1)
	go func() {
		var comp transport.Completion
		received <- f.Receive(nil, &comp)
	}()
	select {
	case err := <-received:
		if !errors.Is(err, ErrDead) {
			t.Errorf("receive: %v, want %v", err, ErrDead)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a channel whose PING does not go out lives on without its peer")
	}
}
