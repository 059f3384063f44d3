package tcp

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// Connections that never shake hands fill the listener's places; they give way to those
// that do.
func TestSilentConnectionsGiveWay(t *testing.T) {
	l := listen(t, "127.0.0.1:0", ListenOptions{HalfOpen: 4, Tuning: Tuning{HandshakeTimeout: time.Minute}})
	var silent []net.Conn
	for range 4 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	accepted := accept(t, l)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := Dial(ctx, l.Addr().String(), Options{Hello: demandHello(), Tuning: Tuning{HandshakeTimeout: 10 * time.Second}})
	if err != nil {
		t.Fatalf("four silent connections keep everybody out: %v", err)
	}
	defer c.Close()
	if s := <-accepted; s != nil {
		defer s.Close()
	}
	silent[0].SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := silent[0].Read(make([]byte, 1)); err != io.EOF && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the oldest of them: %v, want its end", err)
	}
	if n, last := l.Failed(); n == 0 || !errors.Is(last, errCrowded) {
		t.Errorf("%d failures, the last one: %v", n, last)
	}
}

// What ended a handshake is said as it was.
func TestHandshakeSaysWhatEndedIt(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	go io.Copy(io.Discard, there)
	gone := errors.New("the operator has changed his mind")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(gone) })
	_, err := Client(ctx, here, Options{Hello: demandHello()})
	if !errors.Is(err, gone) || strings.Contains(err.Error(), "not finished within") {
		t.Errorf("a cancelled handshake: %v", err)
	}
	here, there = net.Pipe()
	defer there.Close()
	go io.Copy(io.Discard, there)
	short, done := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer done()
	_, err = Client(short, here, Options{Hello: demandHello()})
	if !errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(err.Error(), "within 5s") {
		t.Errorf("a handshake that had 20 ms: %v", err)
	}
}
