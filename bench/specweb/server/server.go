package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
	"github.com/pagewarp/pagewarp/bench/specweb/model"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

// Paths and headers of the server.
const (
	// PagePath comes before a page's name, with the parameters user (at the
	// first page), n (any number), and dir and file for a download.
	PagePath = "/specweb/page/"
	// ImagePath comes before an image's number.
	ImagePath = "/specweb/image/"
	// InfoPath answers with Info.
	InfoPath = "/specweb/info"
	// PageHeader says "PAGE USER COUNT" of a page's session, this request
	// counted.
	PageHeader = "X-Specweb-Page"
	// SessionCookie carries the session.
	SessionCookie = "specweb"
)

// Config says what to serve.
type Config struct {
	Workload *model.Workload
	// Sessions is the number of simultaneous sessions that the load will have:
	// it sizes the file set and the session memory.
	Sessions int
	// Scale multiplies data sizes and times; 0 < Scale <= 1.
	Scale float64
	// PoolMiB is the size of the content's memory, 16 by default; it grows to
	// what the file set needs.
	PoolMiB int
	// Incompressible is the share of the content, 0 to 1, that no codec can
	// shrink.
	Incompressible float64
	// MaxBytes bounds the memory of content and sessions; 0 is no bound.
	MaxBytes uint64
	// DialBackEnd connects to the back end.
	DialBackEnd func(context.Context) (net.Conn, error)
	// OnBad, if not nil, is told of every page of memory that fails its check.
	OnBad func(n int, why string)
}

// Info is what a server says of itself.
type Info struct {
	Workload string  `json:"workload"`
	Sessions int     `json:"sessions"`
	Scale    float64 `json:"scale"`
	// PoolPages and SessionPages are the pages of 4 KiB of its memory.
	PoolPages    int `json:"pool_pages"`
	SessionPages int `json:"session_pages"`
	// Requests counts pages, Images images; Live, Started, Expired and Evicted
	// sessions: Expired those that timed out, Evicted those that ended early
	// for want of room.
	Requests uint64 `json:"requests"`
	Images   uint64 `json:"images"`
	Live     int    `json:"sessions_live"`
	Started  uint64 `json:"sessions_started"`
	Expired  uint64 `json:"sessions_expired"`
	Evicted  uint64 `json:"sessions_evicted"`
	// Checks, Rewrites and BadPages count pages of memory that were verified,
	// written anew, and failed their check.
	Checks   uint64 `json:"checks"`
	Rewrites uint64 `json:"rewrites"`
	BadPages uint64 `json:"bad_pages"`
}

const (
	payload     = workset.PageBytes - 64 // bytes taken from each page of the pool, a little less than it has
	maxSessions = 100_000

	// Sessions that end without a logout are kept until they time out, so there
	// are more of them than visitors.
	sessionFactor = 4
	sessionExtra  = 1024
)

// Server serves one workload. Its methods may be called concurrently.
type Server struct {
	cfg      Config
	pool     *workset.Set
	memory   *workset.Set // of the sessions
	sessions *sessions
	backEnd  backEndClient
	files    *model.FileSet // nil but for Support
	fileAt   []int          // the first page of each file, by directory*FilesPerDir+file
	fileSum  []atomic.Uint64
	buffers  sync.Pool // of *bytes.Buffer

	requests, images atomic.Uint64
}

// New makes the server's memory; Close gives it back.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Workload == nil || cfg.DialBackEnd == nil:
		return nil, errors.New("make a SPECweb-style server: no workload or no way to the back end")
	case cfg.Sessions < 1 || cfg.Sessions > maxSessions:
		return nil, fmt.Errorf("make a SPECweb-style server: %d sessions: want 1 to %d", cfg.Sessions, maxSessions)
	case !(cfg.Scale > 0 && cfg.Scale <= 1):
		return nil, fmt.Errorf("make a SPECweb-style server: scale %g: want more than 0, and 1 at most", cfg.Scale)
	case cfg.PoolMiB < 0 || !(cfg.Incompressible >= 0 && cfg.Incompressible <= 1):
		return nil, fmt.Errorf("make a SPECweb-style server: %d MiB with a share of %g incompressible", cfg.PoolMiB, cfg.Incompressible)
	}
	if cfg.PoolMiB == 0 {
		cfg.PoolMiB = 16
	}
	s := &Server{cfg: cfg, backEnd: backEndClient{dial: cfg.DialBackEnd}, buffers: sync.Pool{New: func() any { return new(bytes.Buffer) }}}
	pages := cfg.PoolMiB << 20 / workset.PageBytes
	if cfg.Workload.Index("download") >= 0 {
		s.files = model.NewFileSet(cfg.Sessions, cfg.Scale)
		pages = max(pages, s.placeFiles())
	}
	sessionPages := (sessionFactor*cfg.Sessions + sessionExtra) * sessionPages
	if need := uint64(pages+sessionPages) * workset.PageBytes; cfg.MaxBytes > 0 && need > cfg.MaxBytes {
		return nil, fmt.Errorf("make a SPECweb-style server: its content and %d sessions need %d MiB, there are %d: give it more memory, or take fewer sessions, a smaller scale or pool",
			cfg.Sessions, need>>20, cfg.MaxBytes>>20)
	}
	var err error
	if s.pool, err = workset.New(pages, cfg.Incompressible, cfg.OnBad); err != nil {
		return nil, fmt.Errorf("make the content: %w", err)
	}
	if s.memory, err = workset.New(sessionPages, cfg.Incompressible, cfg.OnBad); err != nil {
		return nil, errors.Join(fmt.Errorf("make the sessions' memory: %w", err), s.pool.Close())
	}
	s.sessions = newSessions(s.memory, cfg.Workload.SessionTimeout(cfg.Scale))
	return s, nil
}

// placeFiles lays the files out one after the other and returns how many pages
// they take.
func (s *Server) placeFiles() int {
	s.fileAt = make([]int, s.files.Dirs*model.FilesPerDir)
	s.fileSum = make([]atomic.Uint64, len(s.fileAt))
	at := 0
	for i := range s.fileAt {
		s.fileAt[i] = at
		at += (s.files.Bytes(i%model.FilesPerDir) + payload - 1) / payload
	}
	return at
}

// Close gives the memory back; no request may be under way.
func (s *Server) Close() error {
	s.backEnd.close()
	return errors.Join(s.pool.Close(), s.memory.Close())
}

// Pool is the content's memory.
func (s *Server) Pool() *workset.Set { return s.pool }

// Verify checks all memory once and returns how many pages were bad.
func (s *Server) Verify() (pages, bad uint64) {
	for _, set := range []*workset.Set{s.pool, s.memory} {
		b, _ := set.VerifyAll()
		bad += b
		pages += uint64(set.Pages())
	}
	return pages, bad
}

// Info returns what InfoPath answers.
func (s *Server) Info() Info {
	i := Info{
		Workload: s.cfg.Workload.Name, Sessions: s.cfg.Sessions, Scale: s.cfg.Scale,
		PoolPages: s.pool.Pages(), SessionPages: s.memory.Pages(), Requests: s.requests.Load(), Images: s.images.Load(),
	}
	i.Live, i.Started, i.Expired, i.Evicted = s.sessions.counts()
	for _, set := range []*workset.Set{s.pool, s.memory} {
		checks, rewrites, _, bad, _ := set.Counters()
		i.Checks, i.Rewrites, i.BadPages = i.Checks+checks, i.Rewrites+rewrites, i.BadPages+bad
	}
	return i
}

// Register adds the server's paths to mux.
func (s *Server) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET "+PagePath+"{page}", s.page)
	mux.HandleFunc("GET "+ImagePath+"{image}", s.image)
	mux.HandleFunc("GET "+InfoPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Info()) // the client is gone: its own affair
	})
}

// image answers with a static image.
func (s *Server) image(w http.ResponseWriter, req *http.Request) {
	n, err := strconv.Atoi(req.PathValue("image"))
	if err != nil || n < 0 || n >= model.MaxImage {
		http.Error(w, fmt.Sprintf("image %q: want a number below %d", req.PathValue("image"), model.MaxImage), http.StatusNotFound)
		return
	}
	s.images.Add(1)
	s.sendRaw(w, rand.New(rand.NewPCG(uint64(n), 1)), model.ImageBytes(n, s.cfg.Scale), "image/gif")
}

// sendRaw answers with n bytes out of the pool, from a place that r draws.
func (s *Server) sendRaw(w http.ResponseWriter, r *rand.Rand, n int, contentType string) {
	buf := s.buffers.Get().(*bytes.Buffer)
	defer s.buffers.Put(buf)
	buf.Reset()
	if !s.fill(buf, r.IntN(s.pool.Pages()), n) {
		badMemory(w)
		return
	}
	s.send(w, buf.Bytes(), contentType)
}

// fill appends n bytes of the pool's content, from page at on and round, and
// reports whether every page was good.
func (s *Server) fill(buf *bytes.Buffer, at, n int) bool {
	ok := true
	buf.Grow(n)
	for i := 0; n > 0; i++ {
		part := buf.AvailableBuffer()[:min(n, payload)]
		_, good := s.pool.Read((at+i)%s.pool.Pages(), part)
		ok = ok && good
		buf.Write(part)
		n -= len(part)
	}
	return ok
}

func badMemory(w http.ResponseWriter) {
	http.Error(w, "a page of memory failed its check", http.StatusInternalServerError)
}

func (s *Server) send(w http.ResponseWriter, body []byte, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set(guestapi.ChecksumHeader, fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)))
	_, _ = w.Write(body) // the client is gone: its own affair
}
