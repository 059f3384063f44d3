package ringq

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewRefusesOddCapacities(t *testing.T) {
	for _, n := range []int{-1, 0, 1, 3, 6, 1000} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("New(%d) did not panic", n)
				}
			}()
			New[int](n)
		}()
	}
}

// One goroutine: the queue behaves like a slice with a bound.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := 1 << rapid.IntRange(1, 5).Draw(t, "log capacity")
		q := New[int](capacity)
		var model []int
		next := 0
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			n := rapid.IntRange(0, capacity+2).Draw(t, "n")
			if rapid.Bool().Draw(t, "push") {
				vs := make([]int, n)
				for i := range vs {
					vs[i] = next + i
				}
				got := q.Push(vs)
				if want := min(n, capacity-len(model)); got != want {
					t.Fatalf("push of %d at %d/%d took %d, want %d", n, len(model), capacity, got, want)
				}
				model = append(model, vs[:got]...)
				next += got
			} else {
				buf := make([]int, n)
				got := q.Pop(buf)
				if want := min(n, len(model)); got != want {
					t.Fatalf("pop of %d at %d took %d, want %d", n, len(model), got, want)
				}
				for i := range got {
					if buf[i] != model[i] {
						t.Fatalf("popped %v, want %v", buf[:got], model[:got])
					}
				}
				model = model[got:]
			}
			if q.Len() != len(model) {
				t.Fatalf("Len %d, want %d", q.Len(), len(model))
			}
		}
	})
}

// Several producers and consumers: every value comes out exactly once, and the
// values of one producer reach any one consumer in the order of their pushes,
// which every linearizable first-in first-out queue must show.
func TestConcurrent(t *testing.T) {
	const (
		producers, consumers = 4, 3
		each                 = 20000
	)
	q := New[uint64](64)
	var wg, cg sync.WaitGroup
	var taken atomic.Int64
	seen := make([]atomic.Uint32, producers*each)
	for p := range producers {
		wg.Go(func() {
			batch := make([]uint64, 0, 7)
			for i := 0; i < each; {
				batch = batch[:0]
				for j := i; j < min(each, i+1+i%7); j++ {
					batch = append(batch, uint64(p)<<32|uint64(j))
				}
				n := q.Push(batch)
				if n == 0 {
					runtime.Gosched()
				}
				i += n
			}
		})
	}
	for c := range consumers {
		cg.Go(func() {
			last := [producers]int64{}
			for i := range last {
				last[i] = -1
			}
			buf := make([]uint64, 1+c*4)
			for taken.Load() < producers*each {
				n := q.Pop(buf)
				if n == 0 {
					runtime.Gosched()
					continue
				}
				for _, v := range buf[:n] {
					p, i := v>>32, int64(v&(1<<32-1))
					if i <= last[p] {
						t.Errorf("consumer %d: value %d of producer %d after %d", c, i, p, last[p])
					}
					last[p] = i
					if seen[int64(p)*each+i].Add(1) != 1 {
						t.Errorf("value %d of producer %d came twice", i, p)
					}
				}
				taken.Add(int64(n))
			}
		})
	}
	wg.Wait()
	cg.Wait()
	if q.Len() != 0 {
		t.Errorf("Len %d after all was taken", q.Len())
	}
	for i := range seen {
		if seen[i].Load() != 1 {
			t.Fatalf("value %d came %d times", i, seen[i].Load())
		}
	}
}

// A push that has returned is visible to a pop that starts afterwards: the
// property on which the fault path's "push, then try to become the sender"
// rests (a reader that pushes and fails to become the sender relies on the
// sender's second look).
func TestPushedIsVisible(t *testing.T) {
	q := New[int](256)
	var sender atomic.Bool
	var sent atomic.Int64
	const workers, each = 6, 30000
	flush := func(buf []int) {
		for q.Len() > 0 && sender.CompareAndSwap(false, true) {
			for {
				n := q.Pop(buf)
				if n == 0 {
					break
				}
				sent.Add(int64(n))
			}
			sender.Store(false)
		}
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			buf := make([]int, 16)
			for range each {
				for q.Push([]int{1}) == 0 {
					flush(buf)
					runtime.Gosched()
				}
				flush(buf)
			}
		})
	}
	wg.Wait()
	if sent.Load() != workers*each {
		t.Fatalf("%d of %d values were left behind (Len %d)", workers*each-sent.Load(), workers*each, q.Len())
	}
}

func TestNoAllocation(t *testing.T) {
	q := New[uint32](64)
	in, out := make([]uint32, 16), make([]uint32, 16)
	if n := testing.AllocsPerRun(1000, func() { q.Push(in); q.Pop(out) }); n != 0 {
		t.Fatalf("%v allocations per push and pop", n)
	}
}

func BenchmarkPushPop(b *testing.B) {
	for _, batch := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			q := New[uint32](1024)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				in, out := make([]uint32, batch), make([]uint32, batch)
				for pb.Next() {
					q.Push(in)
					q.Pop(out)
				}
			})
		})
	}
}
