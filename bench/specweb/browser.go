package specweb

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/bench/specweb/model"
	"github.com/pagewarp/pagewarp/bench/specweb/server"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

// imageConns is how many connections fetch a page's images.
const imageConns = 2

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// buffers holds what pages are read into. Downloads are not: they are only
// summed up.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// visit is what came of the visit of one page.
type visit struct {
	kind  kind
	bytes int
	// transfer is the time from a download's first byte to its last.
	transfer time.Duration
}

// browser is one session's connections and cookie. It is for one goroutine.
type browser struct {
	run       *Run
	transport *http.Transport
	cookie    string
}

func newBrowser(r *Run) *browser {
	return &browser{run: r, transport: &http.Transport{
		MaxConnsPerHost: imageConns, DisableCompression: true, TLSClientConfig: r.tls, TLSHandshakeTimeout: r.cfg.Deadline,
		DialContext: r.dial, ReadBufferSize: 16 << 10,
	}}
}

func (b *browser) close() { b.transport.CloseIdleConnections() }

// dial connects; an attempt that stays without an answer is repeated until ctx
// ends.
func (r *Run) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	for {
		once, cancel := context.WithTimeout(ctx, r.cfg.DialTimeout)
		c, err := r.cfg.Dial(once, network, addr)
		timedOut := once.Err() != nil
		cancel()
		if err == nil || !timedOut || ctx.Err() != nil {
			return c, err
		}
	}
}

// visit requests a page and its images, and verifies all. wantPage is what the
// server must say of the page.
func (b *browser) visit(ctx context.Context, page int, path, wantPage string) (visit, error) {
	p := &b.run.work.Pages[page]
	base := b.run.cfg.Plain
	if p.TLS {
		base = b.run.cfg.Secure
	}
	base = strings.TrimSuffix(base, "/")
	buf := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(buf)
	buf.Reset()
	got, v, err := b.get(ctx, base, path, p.Download, buf)
	if err != nil {
		return v, err
	}
	if got != wantPage {
		v.kind = corrupt
		return v, fmt.Errorf("GET %s: the server says it is page, user and request %q of the session, want %q", path, got, wantPage)
	}
	if p.Raw {
		return v, nil
	}
	images := imagePaths(buf.Bytes())
	if len(images) != p.Images {
		v.kind = corrupt
		return v, fmt.Errorf("GET %s: the page has %d images, want %d", path, len(images), p.Images)
	}
	return b.fetchImages(ctx, base, images, v)
}

// fetchImages fetches images over two connections.
func (b *browser) fetchImages(ctx context.Context, base string, images []string, v visit) (visit, error) {
	var mu sync.Mutex
	var first error
	next := 0
	take := func() string {
		mu.Lock()
		defer mu.Unlock()
		if next == len(images) || first != nil {
			return ""
		}
		next++
		return images[next-1]
	}
	fetch := func() {
		var buf bytes.Buffer
		for path := take(); path != ""; path = take() {
			buf.Reset()
			_, image, err := b.get(ctx, base, path, false, &buf)
			mu.Lock()
			v.bytes += image.bytes
			if err != nil && first == nil {
				first, v.kind = err, image.kind
			}
			mu.Unlock()
		}
	}
	var wg sync.WaitGroup
	for range min(imageConns, len(images)) - 1 {
		wg.Go(fetch)
	}
	fetch()
	wg.Wait()
	return v, first
}

// get makes one request. A page is left in buf, a download is only summed up.
func (b *browser) get(ctx context.Context, base, path string, download bool, buf *bytes.Buffer) (page string, v visit, err error) {
	limit := b.run.cfg.Deadline
	if download {
		limit *= 4
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v.kind = noAnswer
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return "", v, err
	}
	if b.cookie != "" {
		req.AddCookie(&http.Cookie{Name: server.SessionCookie, Value: b.cookie})
	}
	resp, err := b.transport.RoundTrip(req)
	if err != nil {
		return "", v, fmt.Errorf("GET %s: %w", path, err)
	}
	defer resp.Body.Close()
	first := time.Now()
	sum := crc32.New(castagnoli)
	to := io.Writer(sum)
	if !download || resp.StatusCode != http.StatusOK {
		to = io.MultiWriter(sum, buf)
	}
	n, err := io.Copy(to, io.LimitReader(resp.Body, maxBody))
	v.bytes = int(n)
	if err != nil {
		return "", v, fmt.Errorf("GET %s: after %d bytes: %w", path, n, err)
	}
	v.transfer = time.Since(first)
	if resp.StatusCode != http.StatusOK {
		v.kind = refused
		return "", v, fmt.Errorf("GET %s: %s: %.200s", path, resp.Status, strings.TrimSpace(buf.String()))
	}
	if got, want := fmt.Sprintf("%08x", sum.Sum32()), resp.Header.Get(guestapi.ChecksumHeader); got != want {
		v.kind = corrupt
		return "", v, fmt.Errorf("GET %s: checksum %s of %d bytes, but the header says %q", path, got, n, want)
	}
	v.kind = answered
	for _, c := range resp.Cookies() {
		if c.Name == server.SessionCookie {
			b.cookie = c.Value
		}
	}
	return resp.Header.Get(server.PageHeader), v, nil
}

// imagePaths returns the images that a page names.
func imagePaths(html []byte) []string {
	before, quote := []byte(`<img src="`), []byte{'"'}
	var paths []string
	for {
		_, rest, found := bytes.Cut(html, before)
		path, after, closed := bytes.Cut(rest, quote)
		if !found || !closed {
			return paths
		}
		paths, html = append(paths, string(path)), after
	}
}

// classify judges a page by its time and, for a download, by its rate.
func classify(w *model.Workload, p *model.Page, took time.Duration, v visit) class {
	if v.kind != answered {
		return failed
	}
	rate := math.Inf(1)
	if p.Download {
		// A large file may take long: the limits of a page judge its start, and
		// the rate judges the rest.
		took -= v.transfer
		rate = float64(v.bytes) / v.transfer.Seconds()
	}
	switch {
	case took <= w.Good && !(rate < w.GoodRate):
		return good
	case took <= w.Tolerable && !(rate < w.TolerableRate):
		return tolerable
	}
	return failed
}
