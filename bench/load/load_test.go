package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/internal/guestapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func answer(w http.ResponseWriter, body string) {
	w.Header().Set(guestapi.ChecksumHeader, fmt.Sprintf("%08x", crc32.Checksum([]byte(body), castagnoli)))
	fmt.Fprint(w, body)
}

// await waits until the run has noted what ok asks for.
func await(t *testing.T, r *Run, ok func(Summary) bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		l := r.Log()
		s := l.Summary(l.Start, l.End)
		if ok(s) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain; so far %+v", s)
		}
		time.Sleep(time.Millisecond) // polls a condition that has a deadline
	}
}

func TestClosedLoop(t *testing.T) {
	var conns atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(w, "body of "+r.URL.String())
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	r, err := Start(t.Context(), Config{Base: srv.URL, Conns: 3})
	if err != nil {
		t.Fatal(err)
	}
	await(t, r, func(s Summary) bool { return s.Good >= 100 })
	l := r.Stop()
	s := l.Summary(l.Start, l.End)
	if s.Failed+s.Refused+s.Corrupt != 0 || s.LatencyUS.Count != int64(s.Good) || s.LatencyUS.Max < s.LatencyUS.P50 {
		t.Errorf("summary %+v", s)
	}
	if n := conns.Load(); n != 3 {
		t.Errorf("%d connections, want 3 that are kept alive", n)
	}
	count := 0
	for _, b := range l.Bins(l.Start, l.End) {
		count += b.Count
	}
	if count != s.Good {
		t.Errorf("the bins hold %d answers, the summary %d", count, s.Good)
	}
	if _, err := json.Marshal(s); err != nil {
		t.Error(err)
	}
}

func TestBadAnswersAreTold(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.FormValue("n") {
		case "1":
			w.Header().Set(guestapi.ChecksumHeader, "00000000")
			fmt.Fprint(w, "something else")
		case "2":
			fmt.Fprint(w, "without a checksum")
		case "3":
			http.Error(w, "1 of 8 pages failed", http.StatusInternalServerError)
		case "4":
			panic(http.ErrAbortHandler)
		default:
			answer(w, "fine")
		}
	}))
	defer srv.Close()
	r, err := Start(t.Context(), Config{Base: srv.URL, Conns: 1})
	if err != nil {
		t.Fatal(err)
	}
	await(t, r, func(s Summary) bool { return s.Good >= 5 })
	l := r.Stop()
	s := l.Summary(l.Start, l.End)
	if s.Corrupt != 2 || s.Refused != 1 || s.Failed != 1 || len(s.FirstErrors) != 3 {
		t.Errorf("summary %+v", s)
	}
	if s.Good > 0 && !strings.Contains(strings.Join(s.FirstErrors, "\n"), "1 of 8 pages failed") {
		t.Errorf("errors %q do not say what the server said", s.FirstErrors)
	}
}

func TestBackoffBoundsRetries(t *testing.T) {
	var dials atomic.Int64
	r, err := Start(t.Context(), Config{
		Base: "http://127.0.0.1:1", Conns: 1,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			dials.Add(1)
			return nil, errors.New("cut")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	await(t, r, func(s Summary) bool { return s.Failed >= 5 })
	l := r.Stop()
	s := l.Summary(l.Start, l.End)
	most := int64(l.End.Sub(l.Start)/Backoff) + 1
	if n := dials.Load(); n > most {
		t.Errorf("%d dials in %s, want at most %d", n, l.End.Sub(l.Start), most)
	}
	if s.Good != 0 || s.LongestGap.LengthMS < ms(l.End.Sub(l.Start))-0.001 {
		t.Errorf("summary %+v", s)
	}
}

// In an open loop a stall shows in all the requests that it delayed.
func TestOpenLoopCountsFromTheIntendedStart(t *testing.T) {
	const stall = 300 * time.Millisecond
	var once atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("n") == "20" && !once.Swap(true) {
			time.Sleep(stall)
		}
		answer(w, "fine")
	}))
	defer srv.Close()
	r, err := Start(t.Context(), Config{Base: srv.URL, Conns: 1, Rate: 200})
	if err != nil {
		t.Fatal(err)
	}
	await(t, r, func(s Summary) bool { return s.Good >= 120 })
	l := r.Stop()
	late := 0
	for _, s := range l.samples {
		if s.latency > 50*time.Millisecond {
			late++
		}
	}
	if late < 30 { // 250 ms at 200/s: about 50, fewer only if the clock jumps
		t.Errorf("%d requests were late by more than 50 ms, want those of the whole stall", late)
	}
	if gap := l.LongestGap(l.Start, l.End); gap.LengthMS < ms(stall)-10 {
		t.Errorf("longest gap %+v, want the stall of %s", gap, stall)
	}
}

func TestSamplesAreBounded(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, "") }))
	defer srv.Close()
	r, err := Start(t.Context(), Config{Base: srv.URL, MaxSamples: 10})
	if err != nil {
		t.Fatal(err)
	}
	await(t, r, func(s Summary) bool { return s.Dropped > 0 })
	if l := r.Stop(); len(l.samples) != 10 {
		t.Errorf("%d samples, want 10", len(l.samples))
	}
}

func TestStartErrors(t *testing.T) {
	for _, c := range []Config{{}, {Base: "http://x", Rate: -1}, {Base: "http://x", Conns: -1}} {
		if r, err := Start(t.Context(), c); err == nil {
			r.Stop()
			t.Errorf("Start(%+v) gave no error", c)
		}
	}
}
