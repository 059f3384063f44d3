package kmod_test

import (
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"sync"
	"testing"

	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/kmod/kmodtest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newRing(t testing.TB, entries int, start uint32, pages uint64) (*kmodtest.Ring, *kmod.Ring) {
	t.Helper()
	k := kmodtest.NewRing(entries, start)
	r, err := kmod.NewRing(k.Producer, k.Consumer, entries, pages)
	if err != nil {
		t.Fatal(err)
	}
	return k, r
}

func TestRingInOrderOverTheWrap(t *testing.T) {
	k, r := newRing(t, 16, math.MaxUint32-20, 1000)
	buf := make([]kmod.Fault, 7)
	next, put := uint64(0), uint64(0)
	for next < 500 {
		for put < next+uint64(1+next%16) && put < 500 {
			if !k.Put(put, kmod.FaultWrite) {
				t.Fatalf("no room for fault %d after %d", put, next)
			}
			put++
		}
		n := r.Read(buf)
		if n == 0 {
			t.Fatalf("nothing to read after %d of %d", next, put)
		}
		for _, f := range buf[:n] {
			if f.Page != next || f.Flags != kmod.FaultWrite {
				t.Fatalf("fault %+v, want page %d", f, next)
			}
			next++
		}
	}
	if n := r.Read(buf); n != 0 {
		t.Errorf("an empty ring gave %d faults", n)
	}
}

func TestRingFull(t *testing.T) {
	k, r := newRing(t, 16, 0, 100)
	for p := range uint64(16) {
		if !k.Put(p, 0) {
			t.Fatal("no room")
		}
	}
	if k.Put(16, 0) {
		t.Error("17 faults in a ring of 16")
	}
	if r.Pending() {
		t.Error("pending before the flag")
	}
	k.SetPending()
	if !r.Pending() {
		t.Error("not pending after the flag")
	}
	if n := r.Read(make([]kmod.Fault, 100)); n != 16 {
		t.Errorf("%d faults, want 16", n)
	}
}

// Pages that the object does not have are dropped and counted.
func TestRingChecksPages(t *testing.T) {
	k, r := newRing(t, 16, 5, 100)
	for _, p := range []uint64{99, 100, math.MaxUint64, 3} {
		k.Put(p, 0)
	}
	buf := make([]kmod.Fault, 16)
	if n := r.Read(buf); n != 2 || buf[0].Page != 99 || buf[1].Page != 3 || r.Bad() != 2 {
		t.Errorf("%d faults %+v, %d bad; want pages 99 and 3, 2 bad", n, buf[:n], r.Bad())
	}
	k.Put(1<<40, 0)
	if n := r.Read(buf); n != 0 || r.Bad() != 3 {
		t.Errorf("%d faults, %d bad", n, r.Bad())
	}
}

func TestBadRings(t *testing.T) {
	k := kmodtest.NewRing(16, 0)
	for _, entries := range []int{0, 8, 17, -16, 32, 1 << 20} {
		if _, err := kmod.NewRing(k.Producer, k.Consumer, entries, 1); err == nil {
			t.Errorf("a ring of %d entries in the memory of 16", entries)
		}
	}
	if _, err := kmod.NewRing(k.Producer, k.Consumer[:64], 16, 1); err == nil {
		t.Error("a consumer page of 64 bytes")
	}
}

// Several producers and consumers: every fault is read once.
func TestRingManyToMany(t *testing.T) {
	const each, producers, consumers = 5000, 4, 3
	k, r := newRing(t, 64, math.MaxUint32-1000, each*producers)
	var in, out sync.WaitGroup
	for p := range uint64(producers) {
		in.Go(func() {
			for i := uint64(0); i < each; {
				if k.Put(p*each+i, 0) {
					i++
				} else {
					runtime.Gosched()
				}
			}
		})
	}
	done := make(chan struct{})
	seen := make([][]uint64, consumers)
	for c := range consumers {
		out.Go(func() {
			buf := make([]kmod.Fault, 5)
			for {
				n := r.Read(buf)
				for _, f := range buf[:n] {
					seen[c] = append(seen[c], f.Page)
				}
				if n > 0 {
					continue
				}
				select {
				case <-done:
					if n := r.Read(buf); n == 0 {
						return
					} else {
						for _, f := range buf[:n] {
							seen[c] = append(seen[c], f.Page)
						}
					}
				default:
					runtime.Gosched()
				}
			}
		})
	}
	in.Wait()
	close(done)
	out.Wait()
	count := make([]int, each*producers)
	for _, s := range seen {
		for _, p := range s {
			count[p]++
		}
	}
	for p, n := range count {
		if n != 1 {
			t.Fatalf("fault %d was read %d times", p, n)
		}
	}
	if r.Bad() != 0 {
		t.Errorf("%d bad entries", r.Bad())
	}
}

func TestNoModuleHere(t *testing.T) {
	c, err := kmod.Open()
	if err == nil {
		c.Close() // a machine that has it
		return
	}
	if !errors.Is(err, kmod.ErrNoDevice) {
		t.Errorf("Open: %v, want ErrNoDevice", err)
	}
}

// FuzzHostileProducer has random bytes in all that the kernel shares: no page
// outside the object comes out, no more faults than there is room for, and the
// reading ends.
func FuzzHostileProducer(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0}, uint32(0), uint32(0))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 7}, uint32(math.MaxUint32), uint32(math.MaxUint32-3))
	f.Fuzz(func(t *testing.T, data []byte, start, cons uint32) {
		const entries, pages = 16, 100
		k, r := newRing(t, entries, start, pages)
		// Plausible sequence numbers first, or nearly nothing would be read.
		for i := range uint32(entries) {
			slot := k.Producer[4096+(cons+i)%entries*32:]
			binary.LittleEndian.PutUint32(slot[28:], cons+i+1)
		}
		for i, b := range data {
			k.Producer[(i*61)%len(k.Producer)] ^= b
		}
		binary.LittleEndian.PutUint32(k.Consumer, cons)
		buf := make([]kmod.Fault, 5)
		total := 0
		for range 2 * entries {
			n := r.Read(buf)
			if n > len(buf) {
				t.Fatalf("%d faults in a buffer of %d", n, len(buf))
			}
			for _, f := range buf[:n] {
				if f.Page >= pages {
					t.Fatalf("page %d of an object of %d", f.Page, pages)
				}
			}
			total += n
		}
		if total+int(r.Bad()) > entries {
			t.Errorf("%d faults and %d bad entries in a ring of %d that nobody fills", total, r.Bad(), entries)
		}
	})
}
