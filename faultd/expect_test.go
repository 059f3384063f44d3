package faultd_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// TestExpect: expected pages come without a fault, right and once, and what is
// there, on its way or nowhere is not asked for.
func TestExpect(t *testing.T) {
	const pages = 512
	img := newImage(t, pages, 1)
	for _, private := range []bool{false, true} {
		ctx := withDeadline(t, 20*time.Second)
		srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
		m := newMachine(t, ctx, pages, private)
		cfg := m.config(srv.open(pages))
		cfg.PrecacheOff = true
		e := start(t, cfg)

		region := cfg.Regions[0].ID
		run := func(first uint64, count uint32) pagecache.Run {
			return pagecache.Run{Region: region, First: first, Count: count}
		}
		for want, bad := range map[string][]pagecache.Run{
			"no region 77":      {run(3, 1), {Region: 77, First: 0, Count: 1}},
			"600+1":             {run(3, 1), run(600, 1)},
			"511+2":             {run(511, 2)},
			"0+4294967295":      {run(0, 1<<32-1)},
			"more than 256":     {run(0, 200), run(200, 57)},
			"9223372036854775+": {run(9223372036854775, 1)},
		} {
			if err := e.Expect(bad); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %v, want %q", bad, err, want)
			}
		}
		if s := e.Stats(); s.Expected != (faultd.ExpectStats{}) || s.DemandFetches != 0 {
			t.Errorf("after lists that are wrong: %+v, %d fetches", s.Expected, s.DemandFetches)
		}

		must(t, e.Expect([]pagecache.Run{run(10, 20), run(100, 1), run(25, 10)}))
		for e.Stats().PagesLeft != pages-26 {
			must(t, ctx.Err())
			time.Sleep(time.Millisecond) // nothing tells of a page that came unasked
		}
		s := e.Stats()
		if s.Faults != 0 || s.Expected.Pages != 26 || s.Expected.Runs != 3 || s.Expected.Late != 0 || s.DemandFetches != 26 || s.PagesDemand+s.PagesZero != 26 {
			t.Errorf("after 26 expected pages: %+v", s)
		}
		if n := s.Stages[faultd.StageTotal].Summary().Count; n != 0 {
			t.Errorf("%d latencies of faults that were none", n)
		}
		must(t, e.Expect([]pagecache.Run{run(10, 20)}))
		if s := e.Stats(); s.DemandFetches != 26 || s.Expected.Pages != 26 {
			t.Errorf("what is there was fetched again: %+v", s)
		}
		// Zero pages of these are shown only when they are touched.
		if _, err := m.reg.Touch([]uint64{10, 11, 12, 29, 34, 100}, false, 1); err != nil {
			t.Fatal(err)
		}
		if s := e.Stats(); s.DemandFetches != 26 {
			t.Errorf("%d fetches after touching what was expected", s.DemandFetches)
		}
		if _, err := m.reg.Touch(shuffled(pages, 2), false, 8); err != nil {
			t.Fatalf("%v\n%+v", err, e.Stats())
		}
		drained(t, ctx, e)
		m.verify(t, img.sums)
	}
}

// TestExpectLate: threads that touch pages while they are expected are all served,
// whoever comes first, and those that came to wait are counted.
func TestExpectLate(t *testing.T) {
	const pages = 4096
	img := newImage(t, pages, 3)
	ctx := withDeadline(t, 20*time.Second)
	srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, pages, false)
	cfg := m.config(srv.open(pages))
	cfg.PrecacheOff = true
	e := start(t, cfg)
	region := cfg.Regions[0].ID
	done := make(chan error, 1)
	go func() {
		_, err := m.reg.Touch(shuffled(pages, 5), false, 8)
		done <- err
	}()
	for first := uint64(0); first < pages; first += 64 {
		must(t, e.Expect([]pagecache.Run{{Region: region, First: first, Count: 64}}))
	}
	if err := <-done; err != nil {
		t.Fatalf("%v\n%+v", err, e.Stats())
	}
	s := drained(t, ctx, e)
	m.verify(t, img.sums)
	if s.Expected.Pages == 0 || s.Expected.Late > s.FaultsDup {
		t.Errorf("expected %+v, %d faults met a fetch under way", s.Expected, s.FaultsDup)
	}
}
