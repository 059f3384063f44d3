package pagecache

import "testing"

// TestBubblesAge: a bubble in which nothing faults any more is given up.
func TestBubblesAge(t *testing.T) {
	b := NewBubbles(BubbleConfig{Pivots: 4, MaxAge: 5})
	p, _ := plannerFor(t, 10000, blockBytes) // a page is a block
	v := View{p.regions}
	b.Fault(v, 0, 1000)
	for i := range uint64(6) {
		if len(b.pivots) > 2 || i < 6 && b.pivots[len(b.pivots)-1].centre != 1000 {
			t.Fatalf("after %d faults elsewhere: %+v", i, b.pivots)
		}
		b.pivots[0].hi = max(b.pivots[0].hi, b.pivots[0].centre+1) // it has grown over its centre
		b.Fault(v, 0, 5000)
	}
	b.Fault(v, 0, 9000)
	for _, p := range b.pivots {
		if p.centre == 1000 {
			t.Fatalf("after 7 faults elsewhere: %+v", b.pivots)
		}
	}
}
