package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
)

// Bounds of the API; at a bound the answer is 503 too_many.
const (
	maxRequests = 64
	maxStreams  = 32
)

// Timeouts of the API.
const (
	bodyTimeout    = 10 * time.Second
	handlerTimeout = 90 * time.Second // a relocation's first checks reach another host
	writeTimeout   = 10 * time.Second
)

// Server is the HTTP API over a Host. Safe for concurrent use.
type Server struct {
	host    Host
	log     *slog.Logger
	metrics *Metrics

	// Heartbeat is the silence after which a stream sends a sign of life; set
	// before the first request.
	Heartbeat time.Duration

	config   atomic.Pointer[config.Config]
	info     func() api.VersionReply // immutable
	requests chan struct{}           // a slot for each request
	streams  chan struct{}           // a slot for each event stream
	stopping atomic.Bool
	stop     chan struct{} // closed by EndStreams
	stopOnce sync.Once
}

// NewServer serves host under cfg; info describes the daemon.
func NewServer(host Host, cfg config.Config, info func() api.VersionReply, log *slog.Logger) *Server {
	s := &Server{
		host: host, log: log, info: info, metrics: NewMetrics(host), Heartbeat: api.Heartbeat,
		requests: make(chan struct{}, maxRequests), streams: make(chan struct{}, maxStreams),
		stop: make(chan struct{}),
	}
	s.config.Store(&cfg)
	return s
}

// SetConfig replaces the defaults that relocations take.
func (s *Server) SetConfig(cfg config.Config) { s.config.Store(&cfg) }

// Refuse makes every further request that would start something an error.
func (s *Server) Refuse() { s.stopping.Store(true) }

// EndStreams ends every event stream.
func (s *Server) EndStreams() { s.stopOnce.Do(func() { close(s.stop) }) }

// Metrics returns what /metrics shows.
func (s *Server) Metrics() *Metrics { return s.metrics }

// route is a path of the API and what it takes.
type route struct {
	path    string
	methods map[string]handler
}

// routes are those of docs/API.md.
func (s *Server) routes() []route {
	return []route{
		{"/v1/version", map[string]handler{"GET": s.version}},
		{"/v1/vms", map[string]handler{"GET": s.machines, "POST": s.add}},
		{"/v1/vms/{name}", map[string]handler{"GET": s.machine, "DELETE": s.remove}},
		{"/v1/vms/{name}/relocate", map[string]handler{"POST": s.relocate}},
		{"/v1/vms/{name}/cancel", map[string]handler{"POST": s.cancel}},
		{"/v1/vms/{name}/bandwidth", map[string]handler{"POST": s.bandwidth}},
		{"/v1/limits", map[string]handler{"GET": s.limits, "PUT": s.setLimits}},
		{"/v1/cache", map[string]handler{"GET": s.cache}},
		{"/v1/cache/{name}", map[string]handler{"DELETE": s.cacheDrop}},
		{"/v1/status", map[string]handler{"GET": s.status}},
		{"/v1/events", map[string]handler{"GET": s.events}},
		{"/metrics", map[string]handler{"GET": s.serveMetrics}},
	}
}

// Handler serves the routes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		var allow []string
		for m, h := range r.methods {
			allow = append(allow, m)
			mux.Handle(m+" "+r.path, s.wrap(r.path, h))
		}
		mux.Handle(r.path, s.wrap(r.path, func(w http.ResponseWriter, req *http.Request) error {
			w.Header().Set("Allow", strings.Join(allow, ", "))
			return api.Errorf(api.CodeBadMethod, "", "%s does not have the method %s", req.URL.Path, req.Method)
		}))
	}
	mux.Handle("/", s.wrap("/", func(_ http.ResponseWriter, req *http.Request) error {
		return api.Errorf(api.CodeNotFound, "docs/API.md lists the resources", "no such resource: %s", req.URL.Path)
	}))
	return mux
}

type handler func(http.ResponseWriter, *http.Request) error

// wrap gives a handler its bounds, its deadline, its error answer and its entry
// in metrics and log.
func (s *Server) wrap(route string, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rw := &recorder{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
					panic(p)
				}
				s.log.Error("API handler panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				writeError(rw, api.Errorf(api.CodeInternal, "report it with the daemon's log", "internal error: %v", p))
			}
			s.metrics.request(route, r.Method, rw.code())
			s.log.Debug("API request", "method", r.Method, "path", r.URL.Path, "code", rw.code(), "took", time.Since(start))
		}()
		slots := s.requests
		if route == "/v1/events" {
			slots = s.streams
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			writeError(rw, api.Errorf(api.CodeTooMany, "try again later", "%d requests are being served already", cap(slots)))
			return
		}
		// The deadlines of the connection would end event streams; each handler
		// sets its own.
		rc := http.NewResponseController(w)
		rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // unsupported only in tests
		r.Body = http.MaxBytesReader(rw, r.Body, api.MaxBody)
		if route != "/v1/events" {
			ctx, cancel := context.WithTimeout(r.Context(), handlerTimeout)
			defer cancel()
			r = r.WithContext(ctx)
		}
		if err := h(rw, r); err != nil && !rw.started {
			writeError(rw, api.FromError(err))
		}
	})
}

// recorder remembers the status code, and lets http.ResponseController through.
type recorder struct {
	http.ResponseWriter
	status  int
	started bool
}

func (r *recorder) WriteHeader(code int) {
	if !r.started {
		r.status, r.started = code, true
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	if !r.started {
		r.status, r.started = http.StatusOK, true
	}
	return r.ResponseWriter.Write(b)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}

func writeError(w http.ResponseWriter, e *api.Error) { writeJSON(w, e.Status, e) }

func writeJSON(w http.ResponseWriter, code int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return api.Errorf(api.CodeInternal, "", "encode answer: %v", err)
	}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // unsupported only in tests
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(b, '\n')) // a client that has gone needs no answer
	return nil
}

// readJSON reads exactly one JSON object of known fields.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the object")
			var tooBig *http.MaxBytesError
			if errors.As(more, &tooBig) {
				err = more
			}
		}
	}
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		return api.Errorf(api.CodeTooLarge, "", "the body is over %d bytes", api.MaxBody)
	case errors.Is(err, io.EOF):
		return api.Errorf(api.CodeBadRequest, "", "the body is empty; a JSON object is expected")
	case err != nil:
		return api.Errorf(api.CodeBadRequest, "", "the body: %v", err)
	}
	// From here on the handler waits for the host, not for the client.
	http.NewResponseController(w).SetReadDeadline(time.Time{}) // unsupported only in tests
	return nil
}

// httpServer wraps h for one listener. Clients on the socket are this host's
// root; the limits are against accidents.
func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: bodyTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

func machineName(r *http.Request) (string, error) {
	n := r.PathValue("name")
	if !config.ValidName(n) {
		return "", badName(n)
	}
	return n, nil
}

func badName(n string) error {
	return api.Errorf(api.CodeBadRequest, "use 1 to 64 letters, digits, '.', '_' and '-'", "machine name %q is not allowed", clip(n))
}

func clip(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%s… (%d bytes)", s[:80], len(s))
	}
	return s
}
