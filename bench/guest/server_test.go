package main

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTestServer(t *testing.T) *server {
	t.Helper()
	s := newServer(time.Now())
	set, err := workset.New(64, 0.5, s.badPage)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	s.set = set
	return s
}

func get(t *testing.T, s *server, url string, into any) *httptest.ResponseRecorder {
	t.Helper()
	rec := httptest.NewRecorder()
	s.handler().ServeHTTP(rec, httptest.NewRequest("GET", url, nil))
	if into != nil {
		if err := json.Unmarshal(rec.Body.Bytes(), into); err != nil {
			t.Fatalf("GET %s: %v in %q", url, err, rec.Body)
		}
	}
	return rec
}

func TestPage(t *testing.T) {
	s := newTestServer(t)
	rec := get(t, s, "/page?n=5&pages=3", nil)
	body, _ := io.ReadAll(rec.Body)
	if rec.Code != 200 || len(body) != 3*bytesPerPage {
		t.Fatalf("status %d, %d bytes", rec.Code, len(body))
	}
	if want := fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)); rec.Header().Get(guestapi.ChecksumHeader) != want {
		t.Errorf("checksum header %q, want %q", rec.Header().Get(guestapi.ChecksumHeader), want)
	}
	again := get(t, s, "/page?n=5&pages=3", nil)
	if string(body) != again.Body.String() {
		t.Error("the same request gave another answer, though no page was rewritten")
	}
	for _, url := range []string{"/page?n=x", "/page?pages=-1", "/page?pages=99999"} {
		if rec := get(t, s, url, nil); rec.Code != 400 {
			t.Errorf("GET %s: status %d, want 400", url, rec.Code)
		}
	}
}

func TestStatsAndVerify(t *testing.T) {
	s := newTestServer(t)
	s.set.Touch(workset.NewRandom(1), 10)
	s.set.Rewrite(3)
	s.badPage(3, "made up")
	var st guestapi.Stats
	get(t, s, "/stats", &st)
	if st.Pages != 64 || st.Touches != 10 || st.Rewrites != 1 || st.GenerationSum != 65 ||
		st.FirstBad != "page 3: made up" || st.MemTotalBytes == 0 || st.UptimeNS <= 0 {
		t.Errorf("stats %+v", st)
	}
	var v guestapi.Verify
	get(t, s, "/verify", &v)
	if v.Pages != 64 || v.Bad != 0 || v.TouchesMissing != 0 {
		t.Errorf("verify %+v", v)
	}
}

func TestTouchesRing(t *testing.T) {
	s := newTestServer(t)
	for i := range touchBins {
		s.bins = append(s.bins, guestapi.TouchBin{TNS: int64(i)})
	}
	s.bins[0].TNS, s.nextBin = int64(touchBins), 1
	var bins []guestapi.TouchBin
	get(t, s, "/touches", &bins)
	if len(bins) != touchBins || bins[0].TNS != 1 || bins[touchBins-1].TNS != int64(touchBins) {
		t.Errorf("%d bins, from %d to %d", len(bins), bins[0].TNS, bins[len(bins)-1].TNS)
	}
}

func TestTouchAll(t *testing.T) {
	s := newTestServer(t)
	batch := make([]int, 640)
	workset.Sweep(64)(batch)
	s.set.TouchAll(batch)
	if bad, missing := s.set.VerifyAll(); bad != 0 || missing != 0 {
		t.Errorf("%d bad pages, %d touches missing", bad, missing)
	}
	if _, _, touches, _, _ := s.set.Counters(); touches != 640 {
		t.Errorf("%d touches, want 640", touches)
	}
}
