package trace

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A connection that waits, since a loss rate permits it no more, leaves the link to
// the others: their pieces do not wait with it.
func TestWaitingConnectionHoldsNobodyUp(t *testing.T) {
	var c clock
	l := &link{clock: &c, rate: 125e6, half: 50 * time.Millisecond, loss: 1e-4, rng: rand.New(rand.NewPCG(1, 1))}
	slow, demand := l.newFlow(), l.newFlow()
	if gap := time.Duration(pieceBytes / slow.nextFlow * 1e9); gap < 5*time.Millisecond {
		t.Fatalf("the slow connection waits for %v between pieces: too short to tell", gap)
	}
	var arrived, last time.Duration
	l.send(slow, 4*pieceBytes, func() { last = c.now })
	// While the slow connection waits for its second piece.
	c.at(time.Millisecond, func() { l.send(demand, 1000, func() { arrived = c.now }) })
	for c.step() {
	}
	if l.lost != 0 {
		t.Fatalf("%d segments were lost: choose another seed", l.lost)
	}
	if want := 51*time.Millisecond + 100*time.Microsecond; arrived == 0 || arrived > want {
		t.Errorf("1000 bytes arrived after %v on a link that was free, want %v at most", arrived, want)
	}
	// And it is no faster for that.
	if least := 50*time.Millisecond + time.Duration(3*pieceBytes/slow.nextFlow*1e9); last < least {
		t.Errorf("the slow connection was done after %v, a loss rate permits it in %v", last, least)
	}
}
