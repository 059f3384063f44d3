package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/specweb/model"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

// newTestServer makes a server whose back end runs in this process.
func newTestServer(t *testing.T, workload string, sessions int) *Server {
	t.Helper()
	w, err := model.ByName(workload)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "b.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeBackEnd(ctx, l) }()
	s, err := New(Config{Workload: w, Sessions: sessions, Scale: 0.01, PoolMiB: 1, Incompressible: 0.5,
		DialBackEnd: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func get(s *Server, path, session string) *httptest.ResponseRecorder {
	mux := http.NewServeMux()
	s.Register(mux)
	req := httptest.NewRequest("GET", path, nil)
	if session != "" {
		req.AddCookie(&http.Cookie{Name: SessionCookie, Value: session})
	}
	rec := httptest.NewRecorder()
	mux.ServeHTTP(rec, req)
	return rec
}

func begin(t *testing.T, s *Server, page string, user int) string {
	t.Helper()
	rec := get(s, fmt.Sprintf("%s%s?user=%d&n=1", PagePath, page, user), "")
	if rec.Code != 200 || len(rec.Result().Cookies()) != 1 {
		t.Fatalf("status %d, cookies %v: %s", rec.Code, rec.Result().Cookies(), rec.Body)
	}
	return rec.Result().Cookies()[0].Value
}

func TestEveryPageOfEveryWorkload(t *testing.T) {
	for _, name := range model.Names() {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, name, 4)
			w := s.cfg.Workload
			session := begin(t, s, w.Pages[0].Name, 7)
			for i, p := range w.Pages[1:] {
				rec := get(s, fmt.Sprintf("%s%s?n=%d&dir=0&file=%d", PagePath, p.Name, i, i), session)
				body := rec.Body.Bytes()
				if rec.Code != 200 {
					t.Fatalf("%s: status %d: %s", p.Name, rec.Code, body)
				}
				if got, want := rec.Header().Get(PageHeader), fmt.Sprintf("%s 7 %d", p.Name, i+2); got != want {
					t.Errorf("%s: header %q, want %q", p.Name, got, want)
				}
				if got, want := rec.Header().Get(guestapi.ChecksumHeader), fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)); got != want {
					t.Errorf("%s: checksum %s, want %s", p.Name, got, want)
				}
				if got := strings.Count(string(body), "<img "); got != p.Images {
					t.Errorf("%s: %d images, want %d", p.Name, got, p.Images)
				}
				if p.Download && len(body) != s.files.Bytes(i) {
					t.Errorf("%s: %d bytes, want %d", p.Name, len(body), s.files.Bytes(i))
				}
				if !p.Raw && p.Queries > 0 && !strings.Contains(string(body), "visits|") {
					t.Errorf("%s: nothing of the back end's answer in it", p.Name)
				}
			}
			if rec := get(s, ImagePath+"9", ""); rec.Code != 200 || rec.Body.Len() != model.ImageBytes(9, 0.01) {
				t.Errorf("image: status %d, %d bytes", rec.Code, rec.Body.Len())
			}
			i := s.Info()
			if i.Workload != name || i.Requests != uint64(len(w.Pages)) || i.Images != 1 || i.BadPages != 0 || i.Started != 1 {
				t.Errorf("info %+v", i)
			}
			if pages, bad := s.Verify(); bad != 0 || pages != uint64(i.PoolPages+i.SessionPages) {
				t.Errorf("%d of %d pages are bad", bad, pages)
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	s := newTestServer(t, model.Banking, 4)
	session := begin(t, s, "login", 7)
	for _, tc := range []struct {
		path, session string
		status        int
		want          string
	}{
		{PagePath + "nosuch?n=1", session, 404, "no page"},
		{PagePath + "bill_pay?n=x", session, 400, "want a number"},
		{PagePath + "bill_pay?n=1", "", 403, "begin with login"},
		{PagePath + "bill_pay?n=1", "stale", 403, "unknown"},
		{PagePath + "login?n=1", "", 403, "user="},
		{ImagePath + "100000", "", 404, "image"},
	} {
		if rec := get(s, tc.path, tc.session); rec.Code != tc.status || !strings.Contains(rec.Body.String(), tc.want) {
			t.Errorf("GET %s: status %d, %q; want %d and %q", tc.path, rec.Code, rec.Body, tc.status, tc.want)
		}
	}
	if rec := get(s, PagePath+"logout?n=1", session); rec.Code != 200 {
		t.Errorf("logout: %d", rec.Code)
	}
	if rec := get(s, PagePath+"bill_pay?n=1", session); rec.Code != 403 {
		t.Errorf("after the logout: status %d, want 403", rec.Code)
	}
	support := newTestServer(t, model.Support, 4)
	session = begin(t, support, "home", 1)
	for _, q := range []string{"dir=1&file=0", "dir=0&file=16", "dir=0"} {
		if rec := get(support, PagePath+"download?n=1&"+q, session); rec.Code != 404 {
			t.Errorf("download of %s: status %d, want 404", q, rec.Code)
		}
	}
}

func TestSessionsTimeOutAndAreBounded(t *testing.T) {
	s := newTestServer(t, model.Banking, 1)
	now := time.Now()
	s.sessions.now = func() time.Time { return now }
	first := begin(t, s, "login", 1)
	now = now.Add(s.sessions.timeout / 2)
	second := begin(t, s, "login", 2)
	now = now.Add(s.sessions.timeout/2 + time.Second)
	if rec := get(s, PagePath+"bill_pay?n=1", first); rec.Code != 403 {
		t.Errorf("a session that timed out answers %d", rec.Code)
	}
	if rec := get(s, PagePath+"bill_pay?n=1", second); rec.Code != 200 {
		t.Errorf("a session that is alive answers %d: %s", rec.Code, rec.Body)
	}
	slots := s.memory.Pages() / sessionPages
	for user := range slots {
		begin(t, s, "login", user)
	}
	i := s.Info()
	if i.Expired != 1 || i.Evicted != 1 || i.Live != slots {
		t.Errorf("%d slots, info %+v", slots, i)
	}
	if rec := get(s, PagePath+"bill_pay?n=1", second); rec.Code != 403 {
		t.Errorf("the session used least recently was not the one to go: status %d", rec.Code)
	}
}

func TestBackEndThatIsGone(t *testing.T) {
	s := newTestServer(t, model.Banking, 1)
	s.backEnd.dial = func(context.Context) (net.Conn, error) { return nil, io.ErrUnexpectedEOF }
	rec := get(s, PagePath+"login?user=1&n=1", "")
	if rec.Code != 502 || !strings.Contains(rec.Body.String(), "ask the back end") {
		t.Errorf("status %d: %s", rec.Code, rec.Body)
	}
}

// The server and its back end as processes, plain and over TLS.
func TestLocal(t *testing.T) {
	l, err := StartLocal(t.Context(), model.Ecommerce, 2, 0.01)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	}()
	config, err := ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: config}
	defer tr.CloseIdleConnections()
	for _, base := range []string{"http://" + l.Plain, "https://" + l.Secure} {
		resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get(base + PagePath + "index?user=1&n=1")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), "visits|") {
			t.Errorf("%s: %s, %v: %.200s", base, resp.Status, err, body)
		}
	}
	if _, err := tls.Dial("tcp", l.Secure, &tls.Config{ServerName: ServerName}); err == nil {
		t.Error("the certificate was accepted by one who does not know it")
	}
}

func TestNewErrors(t *testing.T) {
	w, _ := model.ByName(model.Banking)
	dial := func(context.Context) (net.Conn, error) { return nil, nil }
	for _, c := range []Config{
		{}, {Workload: w, Sessions: 1, Scale: 1},
		{Workload: w, DialBackEnd: dial, Scale: 1}, {Workload: w, DialBackEnd: dial, Sessions: 1},
		{Workload: w, DialBackEnd: dial, Sessions: 1, Scale: 1, MaxBytes: 1 << 20},
		{Workload: w, DialBackEnd: dial, Sessions: 1, Scale: 1.1}, {Workload: w, DialBackEnd: dial, Sessions: 1, Scale: 1, PoolMiB: -1},
	} {
		if s, err := New(c); err == nil {
			s.Close()
			t.Errorf("New(%+v) gave no error", c)
		}
	}
	if _, err := StartLocal(t.Context(), "nosuch", 1, 1); err == nil {
		t.Error("a server of an unknown workload started")
	}
}

// Damaged memory is told, and never served.
func TestDamagedMemory(t *testing.T) {
	s := newTestServer(t, model.Support, 1)
	session := begin(t, s, "home", 1)
	file := PagePath + "download?n=1&dir=0&file=15"
	if rec := get(s, file, session); rec.Code != 200 {
		t.Fatalf("status %d: %s", rec.Code, rec.Body)
	}
	s.pool.Damage(s.fileAt[15] + 20)
	func() {
		defer func() {
			if r := recover(); r != http.ErrAbortHandler {
				t.Errorf("a file whose memory was damaged after its first download ended with %v, want a broken connection", r)
			}
		}()
		get(s, file, session)
	}()
	s.fileSum[15].Store(0)
	if rec := get(s, file, session); rec.Code != 500 || !strings.Contains(rec.Body.String(), "failed its check") {
		t.Errorf("before its first download: status %d, %.100s", rec.Code, rec.Body)
	}
	for n := range s.memory.Pages() {
		s.memory.Damage(n)
	}
	if rec := get(s, PagePath+"search?n=1", session); rec.Code != 500 || !strings.Contains(rec.Body.String(), "failed its check") {
		t.Errorf("with damaged session memory: status %d, %.100s", rec.Code, rec.Body)
	}
	if i := s.Info(); i.BadPages < 3 {
		t.Errorf("info %+v", i)
	}
}
