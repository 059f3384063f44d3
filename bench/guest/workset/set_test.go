package workset

import (
	"bytes"
	"compress/flate"
	"strings"
	"sync"
	"testing"
)

func newSet(t *testing.T, pages int, share float64) (*Set, *[]string) {
	t.Helper()
	var mu sync.Mutex
	var why []string
	s, err := New(pages, share, func(n int, w string) {
		mu.Lock()
		defer mu.Unlock()
		why = append(why, w)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, &why
}

func TestConcurrentUseStaysGood(t *testing.T) {
	s, why := newSet(t, 300, 0.5)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := NewRandom(uint64(w))
			dst := make([]byte, 100)
			for range 500 {
				s.Read(r.Below(300), dst)
				s.Rewrite(r.Below(300))
				s.Touch(r, 10)
			}
		})
	}
	wg.Wait()
	bad, missing := s.VerifyAll()
	if bad != 0 || missing != 0 || len(*why) != 0 {
		t.Fatalf("bad %d, touches missing %d, reports %v", bad, missing, *why)
	}
	checks, rewrites, touches, _, gens := s.Counters()
	if checks != 4300 || rewrites != 2000 || touches != 20000 || gens != 2300 {
		t.Errorf("checks %d rewrites %d touches %d generations %d", checks, rewrites, touches, gens)
	}
}

// Each kind of damage that a relocation could do must be found.
func TestDamageIsFound(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		damage     func(s *Set)
	}{
		{"one bit", "checksum", func(s *Set) { s.pages[7].payload[4000] ^= 1 }},
		{"zero page", "number", func(s *Set) { clear(s.mem[7*PageBytes : 8*PageBytes]) }},
		{"another page", "number", func(s *Set) { s.pages[7] = s.pages[8] }},
		{"an old copy", "generation", func(s *Set) {
			old := s.pages[7]
			s.Rewrite(7)
			s.pages[7] = old
		}},
		{"half a page", "checksum", func(s *Set) {
			old := s.pages[7]
			s.Rewrite(7)
			copy(s.pages[7].payload[2000:], old.payload[2000:])
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, why := newSet(t, 16, 0.5)
			tc.damage(s)
			if bad, _ := s.VerifyAll(); bad != 1 {
				t.Fatalf("bad pages: %d, want 1", bad)
			}
			if len(*why) != 1 || !strings.HasPrefix((*why)[0], tc.want) {
				t.Fatalf("reports %q, want one that starts with %q", *why, tc.want)
			}
			s.Rewrite(7)
			if bad, _ := s.VerifyAll(); bad != 0 {
				t.Errorf("page still bad after its rewrite")
			}
			if _, _, _, bad, _ := s.Counters(); bad < 1 {
				t.Errorf("the count of bad pages went back to %d", bad)
			}
		})
	}
}

func TestLostTouchesAreFound(t *testing.T) {
	s, _ := newSet(t, 16, 0.5)
	s.Touch(NewRandom(1), 1000)
	before := s.pages[3]
	s.Touch(NewRandom(2), 1000)
	lost := int64(s.pages[3].touches - before.touches)
	s.pages[3] = before
	if _, missing := s.VerifyAll(); missing != lost || lost == 0 {
		t.Errorf("touches missing %d, want %d (not 0)", missing, lost)
	}
}

func TestIncompressibleShare(t *testing.T) {
	for _, share := range []float64{0, 0.5, 1} {
		s, _ := newSet(t, 64, share)
		var out bytes.Buffer
		w, _ := flate.NewWriter(&out, flate.BestSpeed)
		w.Write(s.mem)
		w.Close()
		got := float64(out.Len()) / float64(len(s.mem))
		if got < share-0.05 || got > share+0.06 {
			t.Errorf("share %g compresses to %.3f of its size", share, got)
		}
	}
}
