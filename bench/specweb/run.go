package specweb

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/bench/specweb/model"
	"github.com/pagewarp/pagewarp/bench/specweb/server"
)

// Run is a load in progress.
type Run struct {
	cfg    Config          // complete
	work   *model.Workload // immutable
	files  *model.FileSet
	tls    *tls.Config
	cancel context.CancelFunc
	wg     sync.WaitGroup
	next   atomic.Uint64 // number of the next page of an open loop
	active atomic.Int64  // sessions that have started

	mu     sync.Mutex
	log    Log    // guarded by mu, but for what Start has set
	counts Counts // guarded by mu
}

// Start asks the server whether it serves this workload, and then starts the
// load, which goes on until Stop is called or ctx ends. The caller calls Stop
// in any case when the error is nil.
func Start(ctx context.Context, cfg Config) (*Run, error) {
	w, err := cfg.complete()
	if err != nil {
		return nil, fmt.Errorf("start a SPECweb-style load: %w", err)
	}
	r := &Run{cfg: cfg, work: w, files: model.NewFileSet(cfg.Sessions, cfg.Scale)}
	if r.tls, err = server.ClientTLS(); err != nil {
		return nil, err
	}
	if err := r.checkServer(ctx); err != nil {
		return nil, fmt.Errorf("start a SPECweb-style load: %w", err)
	}
	ctx, r.cancel = context.WithCancel(ctx)
	now := time.Now()
	r.log = Log{Start: now, work: w, rate: cfg.Rate, firstDue: now.Add(cfg.Ramp)}
	for user := range cfg.Sessions {
		r.wg.Go(func() {
			if pause(ctx, cfg.Ramp*time.Duration(user)/time.Duration(cfg.Sessions)) {
				r.active.Add(1)
				newVisitor(r, uint64(user)).run(ctx)
			}
		})
	}
	return r, nil
}

// checkServer compares what the server says of itself with the configuration.
func (r *Run) checkServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Deadline)
	defer cancel()
	base := or(r.cfg.Plain, r.cfg.Secure)
	b := newBrowser(r)
	defer b.close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+server.InfoPath, nil)
	if err != nil {
		return err
	}
	resp, err := b.transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask the server: GET %s: %w", req.URL, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return fmt.Errorf("ask the server: GET %s: %w", req.URL, err)
	}
	var i server.Info
	if err := json.Unmarshal(body, &i); resp.StatusCode != http.StatusOK || err != nil {
		return fmt.Errorf("ask the server: GET %s: %s, %.100q: this is no SPECweb-style server of pagewarp", req.URL, resp.Status, body)
	}
	if i.Workload != r.work.Name || i.Scale != r.cfg.Scale {
		return fmt.Errorf("the server at %s serves %s at the scale %g, the load is %s at %g: they must be the same", base, i.Workload, i.Scale, r.work.Name, r.cfg.Scale)
	}
	// Sessions that have ended are kept for a while, hence the slack.
	if i.Sessions < r.cfg.Sessions {
		return fmt.Errorf("the server at %s has memory for %d sessions, the load is of %d", base, i.Sessions, r.cfg.Sessions)
	}
	r.files = model.NewFileSet(i.Sessions, r.cfg.Scale)
	return nil
}

// Progress returns how many pages there were so far, and how many sessions have
// started: less than Config.Sessions only during the ramp.
func (r *Run) Progress() (counts Counts, active int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts, int(r.active.Load())
}

// Stop ends the load and returns what was noted. A later call returns the same.
func (r *Run) Stop() *Log {
	r.cancel()
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.log.End.IsZero() {
		r.log.End = time.Now()
	}
	return r.log.clone()
}

// Log returns a copy of what was noted up to now.
func (r *Run) Log() *Log {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.log.clone()
	if l.End.IsZero() {
		l.End = time.Now()
	}
	return l
}

// due returns when the next page of an open loop is due.
func (r *Run) due() time.Time {
	n := r.next.Add(1) - 1
	return r.log.firstDue.Add(time.Duration(float64(n) / r.cfg.Rate * float64(time.Second)))
}

func (r *Run) note(begin time.Time, page int, v visit, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now() // under mu, so that the log is in order
	l := &r.log
	if err != nil && l.firstError[v.kind] == "" {
		l.firstError[v.kind] = err.Error()
	}
	s := sample{at: now.Sub(l.Start), took: now.Sub(begin), bytes: int64(v.bytes), page: uint8(page), kind: v.kind}
	s.class = classify(r.work, &r.work.Pages[page], s.took, v)
	r.counts.add(s)
	if len(l.samples) == r.cfg.MaxSamples {
		l.Dropped++
		return
	}
	l.samples = append(l.samples, s)
}

// brokenOff notes a page that was under way when the load ended, if it had failed by
// then: a server that answers nothing any more would else look as good as before. Of
// the others nobody knows; that they were broken off is not the server's doing. An open
// loop counts the pages that were due and not answered.
func (r *Run) brokenOff(begin time.Time, page int) {
	took := time.Since(begin)
	if r.cfg.Rate > 0 || took <= r.work.Tolerable || r.work.Pages[page].Download {
		return
	}
	r.note(begin, page, visit{kind: noAnswer}, fmt.Errorf("page %s was not there %.1f s after it was asked for, when the load ended", r.work.Pages[page].Name, took.Seconds()))
}

// pause waits for d and reports false if ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
