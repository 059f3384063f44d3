package specweb

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/specweb/model"
	"github.com/pagewarp/pagewarp/bench/specweb/server"
)

func TestMain(m *testing.M) {
	server.Main() // the tests start this binary as the server and the back end
	goleak.VerifyTestMain(m)
}

const testScale = 0.005

func local(t *testing.T, workload string, sessions int) *server.Local {
	t.Helper()
	l, err := server.StartLocal(t.Context(), workload, sessions, testScale)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Stop(); err != nil {
			t.Errorf("stop the server: %v", err)
		}
	})
	return l
}

func start(t *testing.T, l *server.Local, c Config) *Run {
	t.Helper()
	if l != nil {
		c.Plain, c.Secure = "http://"+l.Plain, "https://"+l.Secure
	}
	c.Scale, c.Seed = testScale, 1
	r, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// await waits until the run has noted what ok asks for.
func await(t *testing.T, r *Run, ok func(Summary) bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		l := r.Log()
		s := l.Summary(l.Start, l.End)
		if ok(s) {
			return
		}
		if time.Now().After(deadline) {
			r.Stop()
			t.Fatalf("waited in vain; so far %+v", s)
		}
		time.Sleep(5 * time.Millisecond) // polls a condition that has a deadline
	}
}

// Each workload against a real server, with its back end in a third process.
func TestWorkloads(t *testing.T) {
	for _, name := range model.Names() {
		t.Run(name, func(t *testing.T) {
			r := start(t, local(t, name, 8), Config{Workload: name, Sessions: 8})
			await(t, r, func(s Summary) bool { return s.Counts.Pages() >= 300 })
			l := r.Stop()
			s := l.Summary(l.Start, l.End)
			if s.Errors != 0 || s.GoodShare < 0.95 || s.TimeUS.Count != int64(s.Good+s.Tolerable+s.Failed) {
				t.Errorf("summary %+v", s)
			}
			seen := 0
			for _, p := range s.Pages {
				if p.Counts.Pages() > 0 {
					seen++
				}
			}
			if seen < 6 {
				t.Errorf("%d types of page were seen", seen)
			}
			var all Counts
			for _, b := range l.Bins(l.Start, l.End) {
				all.Good, all.Tolerable, all.Failed, all.Errors = all.Good+b.Good, all.Tolerable+b.Tolerable, all.Failed+b.Failed, all.Errors+b.Errors
			}
			if all != s.Counts {
				t.Errorf("the bins hold %+v, the summary %+v", all, s.Counts)
			}
			res := r.Result(l, l.Start, l.End, true)
			var text strings.Builder
			if err := res.Text(&text); err != nil || !strings.Contains(text.String(), "SPECweb-style") || !strings.Contains(text.String(), "scale 0.005") {
				t.Errorf("%v\n%s", err, &text)
			}
			svg, png := filepath.Join(t.TempDir(), "x.svg"), filepath.Join(t.TempDir(), "x.png")
			if err := res.WritePlot(svg, png); err != nil {
				t.Error(err)
			}
			for _, f := range []string{svg, png} {
				if st, err := os.Stat(f); err != nil || st.Size() < 5000 {
					t.Errorf("%s: %v, %v", f, st, err)
				}
			}
		})
	}
}

// stallable is a connection whose writes wait while gate is not nil and open.
type stallable struct {
	net.Conn
	gate *atomic.Pointer[chan struct{}]
}

func (c *stallable) Write(p []byte) (int, error) {
	if gate := c.gate.Load(); gate != nil {
		<-*gate
	}
	return c.Conn.Write(p)
}

// In an open loop pages are due at a fixed rate, and a stall shows in all of
// those that it delayed.
func TestOpenLoopCountsFromTheIntendedStart(t *testing.T) {
	const rate = 50
	const stall = 600 * time.Millisecond
	var gate atomic.Pointer[chan struct{}]
	r := start(t, local(t, model.Banking, 4), Config{Workload: model.Banking, Sessions: 4, Rate: rate,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, network, addr)
			return &stallable{c, &gate}, err
		}})
	await(t, r, func(s Summary) bool { return s.Good >= 20 })
	resume := make(chan struct{})
	gate.Store(&resume)
	at := time.Now()
	<-time.After(stall) // the length of the stall is the experiment's
	gate.Store(nil)
	close(resume)
	before, _ := r.Progress()
	await(t, r, func(s Summary) bool { return s.Counts.Pages() >= before.Pages()+40 })
	log := r.Stop()
	late := 0
	for _, s := range log.span(at, log.End) {
		if s.took > stall/4 {
			late++
		}
	}
	// 30 pages are due in the stall; those of its last quarter may be in time,
	// and only those. A closed loop would have had 4, one for each session.
	if late < 20 {
		t.Errorf("%d pages were late, want those of the whole stall", late)
	}
	s := log.Summary(log.Start, log.End)
	if s.Errors != 0 {
		t.Errorf("errors: %q", s.FirstErrors)
	}
	if most := int(s.Seconds*rate) + 1; s.Counts.Pages() > most {
		t.Errorf("%d pages, only %d were due", s.Counts.Pages(), most)
	}
}

// A server that never answers again is not hidden by the end of the run.
func TestPagesDueAtTheEndAreTold(t *testing.T) {
	l := local(t, model.Support, 2)
	var stalled atomic.Bool
	r := start(t, l, Config{Workload: model.Support, Sessions: 2, Rate: 100, DialTimeout: 20 * time.Second,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if stalled.Load() {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		}})
	await(t, r, func(s Summary) bool { return s.Good >= 20 })
	stalled.Store(true)
	await(t, r, func(s Summary) bool { return s.Unanswered >= 50 })
	if log := r.Stop(); log.Summary(log.Start, log.End).Unanswered < 50 {
		t.Error("the end of the run hid the pages that were due")
	}
}

func TestErrorsAreTold(t *testing.T) {
	mode := atomic.Int32{}
	backing := local(t, model.Support, 2)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == server.InfoPath || mode.Load() == 0 {
			proxy(t, w, req, backing.Plain, func(h http.Header, b []byte) []byte { return b })
			return
		}
		switch mode.Load() {
		case 1: // one byte is wrong
			proxy(t, w, req, backing.Plain, func(_ http.Header, b []byte) []byte { b[len(b)/2] ^= 1; return b })
		case 2: // a server that lost the session's state
			proxy(t, w, req, backing.Plain, func(h http.Header, b []byte) []byte {
				h.Set(server.PageHeader, "home 1 99")
				return b
			})
		case 3:
			http.Error(w, "a page of memory failed its check", http.StatusInternalServerError)
		case 4:
			panic(http.ErrAbortHandler)
		}
	}))
	defer srv.Close()
	r := start(t, nil, Config{Workload: model.Support, Sessions: 2, Plain: srv.URL})
	await(t, r, func(s Summary) bool { return s.Good >= 5 })
	for m := int32(1); m <= 4; m++ {
		before := r.Log().Summary(time.Time{}, time.Now()).Errors
		mode.Store(m)
		await(t, r, func(s Summary) bool { return s.Errors >= before+3 })
	}
	l := r.Stop()
	s := l.Summary(l.Start, l.End)
	text := strings.Join(s.FirstErrors, "\n")
	if s.Corrupt < 4 || s.Refused < 2 || s.NoAnswer < 2 || len(s.FirstErrors) != 3 || !strings.Contains(text, "failed its check") {
		t.Errorf("summary %+v", s)
	}
	if s.Failed < s.Errors {
		t.Errorf("%d failed pages with %d errors", s.Failed, s.Errors)
	}
}

// proxy passes a request on and its answer back, changed.
func proxy(t *testing.T, w http.ResponseWriter, req *http.Request, to string, change func(http.Header, []byte) []byte) {
	out, err := http.NewRequestWithContext(req.Context(), "GET", "http://"+to+req.URL.RequestURI(), nil)
	if err != nil {
		t.Error(err)
		return
	}
	out.Header = req.Header
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler) // the client has stopped
	}
	defer resp.Body.Close()
	body := make([]byte, resp.ContentLength)
	for n := 0; n < len(body); {
		k, err := resp.Body.Read(body[n:])
		if n += k; err != nil && n < len(body) {
			panic(http.ErrAbortHandler)
		}
	}
	h := w.Header()
	for k, v := range resp.Header {
		h[k] = v
	}
	body = change(h, body)
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(body)
}

func TestStartErrors(t *testing.T) {
	other := local(t, model.Banking, 2)
	plain, secure := "http://"+other.Plain, "https://"+other.Secure
	for _, tc := range []struct {
		c    Config
		want string
	}{
		{Config{Workload: "bankin", Sessions: 1}, "choose one of banking"},
		{Config{Workload: model.Banking}, "0 sessions"},
		{Config{Workload: model.Banking, Sessions: 1, Scale: 2}, "scale 2"},
		{Config{Workload: model.Banking, Sessions: 1, Rate: -1}, "open loop of -1"},
		{Config{Workload: model.Banking, Sessions: 1, Plain: plain}, "give the server's https"},
		{Config{Workload: model.Ecommerce, Sessions: 1, Secure: secure}, "give the server's http:"},
		{Config{Workload: model.Banking, Sessions: 1, Secure: plain}, "want https://HOST:PORT"},
		{Config{Workload: model.Support, Sessions: 1, Plain: plain, Scale: testScale}, "serves banking"},
		{Config{Workload: model.Banking, Sessions: 1, Secure: secure, Scale: 0.5}, "at the scale"},
		{Config{Workload: model.Banking, Sessions: 3, Secure: secure, Scale: testScale}, "memory for 2 sessions"},
		{Config{Workload: model.Support, Sessions: 1, Plain: "http://127.0.0.1:1"}, "ask the server"},
	} {
		r, err := Start(t.Context(), tc.c)
		if err == nil {
			r.Stop()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("Start(%+v): error %v, want one with %q", tc.c, err, tc.want)
		}
	}
}

// The ways of the sessions follow from the seed.
func TestSessionsAreRepeatable(t *testing.T) {
	ways := func(seed uint64) (paths []string) {
		w, err := model.ByName(model.Support)
		if err != nil {
			t.Fatal(err)
		}
		r := &Run{cfg: Config{Sessions: 3, Scale: 1, Seed: seed}, work: w, files: model.NewFileSet(3, 1)}
		v := newVisitor(r, 2)
		for page, n := 0, uint64(1); page != model.End; page, n = w.Next(page, v.rand), n+1 {
			paths = append(paths, v.path(page, n), w.Think(v.rand, 1).String())
		}
		return paths
	}
	if a, b := ways(5), ways(5); !reflect.DeepEqual(a, b) || len(a) < 2 {
		t.Errorf("the same seed gave %q and %q", a, b)
	}
	if a, b := ways(5), ways(6); reflect.DeepEqual(a, b) {
		t.Error("two seeds gave the same session")
	}
}

func TestClassify(t *testing.T) {
	w, _ := model.ByName(model.Support)
	page, download := &w.Pages[0], &w.Pages[w.Index("download")]
	fast := visit{bytes: 990_000, transfer: 9 * time.Second}
	for _, tc := range []struct {
		p    *model.Page
		took time.Duration
		v    visit
		want class
	}{
		{page, 3 * time.Second, visit{}, good},
		{page, 3*time.Second + 1, visit{}, tolerable},
		{page, 5*time.Second + 1, visit{}, failed},
		{page, time.Second, visit{kind: corrupt}, failed},
		{download, 11 * time.Second, fast, good},
		{download, 13 * time.Second, fast, tolerable},
		{download, 15 * time.Second, fast, failed},
		{download, 11 * time.Second, visit{bytes: 960_000, transfer: 10 * time.Second}, tolerable},
		{download, 11 * time.Second, visit{bytes: 900_000, transfer: 10 * time.Second}, failed},
	} {
		if got := classify(w, tc.p, tc.took, tc.v); got != tc.want {
			t.Errorf("%s after %s with %+v: class %d, want %d", tc.p.Name, tc.took, tc.v, got, tc.want)
		}
	}
}

// A page that nobody waits for any more when the load ends has failed if its time was
// over, and is nobody's fault else.
func TestBrokenOff(t *testing.T) {
	w, err := model.ByName(model.Banking)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	r := &Run{cfg: Config{MaxSamples: 9}, work: w, log: Log{Start: now.Add(-time.Minute), work: w}}
	r.brokenOff(now.Add(-w.Tolerable/2), 0)
	if r.counts != (Counts{}) {
		t.Errorf("a page within its time: %+v", r.counts)
	}
	r.brokenOff(now.Add(-2*w.Tolerable), 0)
	if r.counts != (Counts{Failed: 1, Errors: 1}) {
		t.Errorf("a page of twice the time that is tolerable: %+v", r.counts)
	}
	if s := r.log.Summary(r.log.Start, time.Now()); s.NoAnswer != 1 || len(s.FirstErrors) != 1 || !strings.Contains(s.FirstErrors[0], "page login was not there 8.0 s after") {
		t.Errorf("%+v", s)
	}
	r.cfg.Rate = 10
	r.brokenOff(now.Add(-time.Minute), 0)
	if r.counts.Failed != 1 {
		t.Errorf("of an open loop, which counts it by itself: %+v", r.counts)
	}
}
