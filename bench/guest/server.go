package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
	web "github.com/pagewarp/pagewarp/bench/specweb/server"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

const (
	defaultPages    = 8
	maxPages        = 4096
	bytesPerPage    = 1024 // of each page's payload, in an answer
	touchBinLength  = 100 * time.Millisecond
	touchBins       = int(guestapi.TouchSpan / touchBinLength)
	maxConsoleLines = 100                    // of bad pages; the count goes on
	powerOffDelay   = 300 * time.Millisecond // for the answer to leave the machine
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type server struct {
	set      *workset.Set  // immutable once handler is called
	web      *web.Server   // nil without a SPECweb-style load; immutable as set
	ops      func() uint64 // operations of the load so far; nil for none; immutable as set
	start    time.Time     // immutable
	requests atomic.Uint64
	buffers  sync.Pool // of *bytes.Buffer

	mu       sync.Mutex
	printed  int                 // guarded by mu
	firstBad string              // guarded by mu
	bins     []guestapi.TouchBin // guarded by mu; a ring once it is full
	nextBin  int                 // guarded by mu
}

func newServer(start time.Time) *server {
	return &server{start: start, buffers: sync.Pool{New: func() any { return new(bytes.Buffer) }}}
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /page", s.page)
	mux.HandleFunc("GET /stats", s.stats)
	mux.HandleFunc("GET /touches", s.touches)
	mux.HandleFunc("GET /verify", s.verify)
	if s.web != nil {
		s.web.Register(mux)
	}
	mux.HandleFunc("GET /poweroff", func(w http.ResponseWriter, _ *http.Request) {
		const text = "powering off\n"
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		fmt.Fprint(w, text)
		time.AfterFunc(powerOffDelay, powerOff)
	})
	return mux
}

// badPage is called by the set for every failed check.
func (s *server) badPage(n int, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.firstBad == "" {
		s.firstBad = fmt.Sprintf("page %d: %s", n, why)
	}
	if s.printed++; s.printed <= maxConsoleLines {
		fmt.Printf("%s n=%d why=%q\n", guestapi.BadPageLine, n, why)
	}
}

func (s *server) page(w http.ResponseWriter, req *http.Request) {
	n, err := number(req, "n", 0, 1<<62)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pages, err := number(req, "pages", defaultPages, maxPages)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	buf := s.buffers.Get().(*bytes.Buffer)
	defer s.buffers.Put(buf)
	buf.Reset()
	buf.Grow(pages*bytesPerPage + 64)
	body := buf.AvailableBuffer()[:pages*bytesPerPage]
	r := workset.NewRandom(uint64(n))
	bad := 0
	for i := range pages {
		if _, ok := s.set.Read(r.Below(s.set.Pages()), body[i*bytesPerPage:(i+1)*bytesPerPage]); !ok {
			bad++
		}
	}
	s.requests.Add(1)
	if bad > 0 {
		http.Error(w, fmt.Sprintf("%d of %d pages failed their check", bad, pages), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set(guestapi.ChecksumHeader, fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)))
	_, _ = w.Write(body) // the client is gone: its own affair
}

// number reads a query parameter that lies between 0 and limit.
func number(req *http.Request, name string, byDefault, limit int) (int, error) {
	text := req.FormValue(name)
	if text == "" {
		return byDefault, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > limit {
		return 0, fmt.Errorf("parameter %s=%q: want a number from 0 to %d", name, text, limit)
	}
	return n, nil
}

func (s *server) stats(w http.ResponseWriter, _ *http.Request) {
	st := guestapi.Stats{
		Pages: uint64(s.set.Pages()), Requests: s.requests.Load(),
		UptimeNS: time.Since(s.start).Nanoseconds(), MemTotalBytes: memTotal(),
	}
	st.Checks, st.Rewrites, st.Touches, st.BadPages, st.GenerationSum = s.set.Counters()
	if s.web != nil {
		i := s.web.Info()
		st.Requests += i.Requests + i.Images
		st.Pages, st.BadPages, st.Checks, st.Rewrites = uint64(i.PoolPages+i.SessionPages), i.BadPages, i.Checks, i.Rewrites
	}
	s.mu.Lock()
	st.FirstBad = s.firstBad
	s.mu.Unlock()
	answer(w, st)
}

func memTotal() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return info.Totalram * uint64(info.Unit)
}

func (s *server) verify(w http.ResponseWriter, _ *http.Request) {
	begin := time.Now()
	v := guestapi.Verify{Pages: uint64(s.set.Pages())}
	if s.web != nil {
		v.Pages, v.Bad = s.web.Verify()
	} else {
		v.Bad, v.TouchesMissing = s.set.VerifyAll()
	}
	v.TookNS = time.Since(begin).Nanoseconds()
	answer(w, v)
}

// recordOps notes the load's operations of every 100 ms.
func (s *server) recordOps() {
	tick := time.NewTicker(touchBinLength)
	defer tick.Stop()
	var before uint64
	for range tick.C {
		now := s.ops()
		bin := guestapi.TouchBin{TNS: time.Since(s.start).Nanoseconds(), N: now - before}
		before = now
		s.mu.Lock()
		if len(s.bins) < touchBins {
			s.bins = append(s.bins, bin)
		} else {
			s.bins[s.nextBin] = bin
			s.nextBin = (s.nextBin + 1) % touchBins
		}
		s.mu.Unlock()
	}
}

func (s *server) touches(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	bins := make([]guestapi.TouchBin, 0, len(s.bins))
	bins = append(bins, s.bins[s.nextBin:]...)
	bins = append(bins, s.bins[:s.nextBin]...)
	s.mu.Unlock()
	answer(w, bins)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone: its own affair
}
