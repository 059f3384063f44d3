package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/daemon"
	"github.com/pagewarp/pagewarp/cmd/internal/daemon/daemontest"
	"github.com/pagewarp/pagewarp/relocate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve runs the API over a fake host on a unix socket.
func serve(t *testing.T, cfg config.Config) (*daemontest.Host, *daemon.Server, *api.Client, string) {
	t.Helper()
	h := daemontest.New()
	s := daemon.NewServer(h, cfg, func() api.VersionReply { return api.VersionReply{API: "v1", PID: 7} }, quietLog())
	s.Heartbeat = 20 * time.Millisecond
	sock := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(s.Handler())
	ts.Listener.Close()
	ts.Listener = l
	ts.Start()
	c := api.NewClient(sock, 10*time.Second)
	t.Cleanup(func() {
		c.Close()
		s.EndStreams()
		ts.Close()
	})
	return h, s, c, sock
}

// raw sends one request as written.
func raw(t *testing.T, sock, method, path, body string) (int, http.Header, api.Error) {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequest(method, "http://d"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var e api.Error
	if res.StatusCode >= 400 {
		if err := json.Unmarshal(b, &e); err != nil || e.Message == "" || e.Code == "" {
			t.Errorf("%s %s: the error's body is %q (%v)", method, path, b, err)
		}
	}
	return res.StatusCode, res.Header, e
}

func TestErrors(t *testing.T) {
	h, s, _, sock := serve(t, config.Default())
	const to = `{"to":"127.0.0.1:7070"}`
	for _, c := range []struct {
		method, path, body string
		status             int
		code, text         string
	}{
		{"GET", "/", "", 404, "not_found", "no such resource"},
		{"GET", "/v1/nothing", "", 404, "not_found", "/v1/nothing"},
		{"PUT", "/v1/vms", "{}", 405, "bad_method", "PUT"},
		{"POST", "/v1/version", "{}", 405, "bad_method", "POST"},
		{"GET", "/v1/vms/none", "", 404, "unknown_machine", "none"},
		{"GET", "/v1/vms/a%20b", "", 400, "bad_request", `"a b"`},
		{"GET", "/v1/vms/" + strings.Repeat("x", 65), "", 400, "bad_request", "not allowed"},
		{"DELETE", "/v1/vms/none", "", 404, "unknown_machine", "none"},
		{"POST", "/v1/vms", "", 400, "bad_request", "empty"},
		{"POST", "/v1/vms", "{", 400, "bad_request", "body"},
		{"POST", "/v1/vms", "[]", 400, "bad_request", "body"},
		{"POST", "/v1/vms", `{"name":"a","qmp":"/x"} {}`, 400, "bad_request", "follows"},
		{"POST", "/v1/vms", `{"name":"a","qpm":"/x"}`, 400, "bad_request", "qpm"},
		{"POST", "/v1/vms", `{"name":"a/b","qmp":"/x"}`, 400, "bad_request", "not allowed"},
		{"POST", "/v1/vms", `{"name":"a","qmp":"x"}`, 400, "bad_request", "absolute"},
		{"POST", "/v1/vms", `{"name":"web1","qmp":"/x"}`, 409, "exists", "exists"},
		{"POST", "/v1/vms", `{"name":"a","qmp":"/dead"}`, 422, "failed", "is QEMU running?"},
		{"POST", "/v1/vms", `{"name":"` + strings.Repeat("x", api.MaxBody) + `"}`, 413, "too_large", "65536"},
		{"POST", "/v1/vms/none/relocate", to, 404, "unknown_machine", "none"},
		{"POST", "/v1/vms/web1/relocate", `{"to":""}`, 400, "bad_request", "host:port"},
		{"POST", "/v1/vms/web1/relocate", `{"to":":7070"}`, 400, "bad_request", "no host"},
		{"POST", "/v1/vms/web1/relocate", `{"to":"hostB:7070"}`, 403, "clear_text", "clear text"},
		{"POST", "/v1/vms/web1/relocate", `{"to":"127.0.0.1:1","codec":"lz4"}`, 400, "bad_request", "lz4"},
		{"POST", "/v1/vms/web1/relocate", `{"to":"127.0.0.1:1","precache":"sweep,cold"}`, 400, "bad_request", `"cold" is not one of rings, hot`},
		{"POST", "/v1/vms/web1/relocate", `{"to":"127.0.0.1:1","bandwidth":7}`, 400, "bad_request", "page a second"},
		{"POST", "/v1/vms/web1/relocate", `{"to":"127.0.0.1:1","bandwidth":-1}`, 400, "bad_request", "-1"},
		{"POST", "/v1/vms/web1/relocate", `{"to":"127.0.0.1:1","bandwidth":70000,"no_cap":true}`, 400, "bad_request", "exclude"},
		{"POST", "/v1/vms/web1/relocate", `{"to":"127.0.0.1:1","demand_channels":65}`, 400, "bad_request", "channels"},
		{"POST", "/v1/vms/web1/cancel", "", 404, "unknown_machine", "not being relocated"},
		{"PUT", "/v1/limits", `{"host_bandwidth":10}`, 400, "bad_request", "8M or more"},
		{"PUT", "/v1/limits", `{"host_bandwidth":-1}`, 400, "bad_request", "8M or more"},
		{"PUT", "/v1/limits", `{"bandwidth":1}`, 400, "bad_request", "unknown field"},
		{"POST", "/v1/vms/web1/bandwidth", `{"bytes_per_second":10}`, 400, "bad_request", "page a second"},
		{"POST", "/v1/vms/web1/bandwidth", `{"bytes_per_second":0}`, 404, "unknown_machine", "web1"},
		{"GET", "/v1/status?vm=a/b", "", 400, "bad_request", "a/b"},
		{"GET", "/v1/events?after=x", "", 400, "bad_request", "after"},
		{"GET", "/v1/events?follow=maybe", "", 400, "bad_request", "follow"},
	} {
		status, head, e := raw(t, sock, c.method, c.path, c.body)
		if status != c.status || e.Code != c.code || !strings.Contains(e.Message, c.text) {
			t.Errorf("%s %.60s: %d %+v, want %d %s %q", c.method, c.path, status, e, c.status, c.code, c.text)
		}
		if c.status == 405 && head.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", c.method, c.path)
		}
	}
	if status, _, _ := raw(t, sock, "POST", "/v1/vms/web1/relocate", to); status != 202 {
		t.Fatalf("relocate: %d", status)
	}
	for path, code := range map[string]string{"relocate": "busy"} {
		if _, _, e := raw(t, sock, "POST", "/v1/vms/web1/"+path, to); e.Code != code || e.Remedy == "" {
			t.Errorf("%s: %+v", path, e)
		}
	}
	h.Phase("web1", relocate.PhaseDraining, nil)
	if status, _, e := raw(t, sock, "POST", "/v1/vms/web1/cancel", "{}"); status != 409 || e.Code != "too_late" {
		t.Errorf("late cancel: %d %+v", status, e)
	}
	s.Refuse()
	if status, _, e := raw(t, sock, "POST", "/v1/vms/web1/relocate", to); status != 503 || e.Code != "stopping" {
		t.Errorf("while stopping: %d %+v", status, e)
	}
}

// TestErrorsCompare shows that a sentinel survives the socket.
func TestErrorsCompare(t *testing.T) {
	for _, want := range []error{relocate.ErrUnknownMachine, relocate.ErrExists, relocate.ErrBusy, relocate.ErrTooLate, relocate.ErrNotCached, relocate.ErrRolledBack, relocate.ErrLost} {
		h, _, c, _ := serve(t, config.Default())
		h.OnRelocate = func(string, string, relocate.Options) error { return fmt.Errorf("relocate web1: %w", want) }
		_, err := c.Relocate(t.Context(), "web1", api.RelocateRequest{To: "127.0.0.1:1"})
		if !errors.Is(err, want) || errors.Is(err, io.EOF) {
			t.Errorf("%v came back as %v", want, err)
		}
		for _, other := range []error{relocate.ErrBusy, relocate.ErrLost} {
			if other != want && errors.Is(err, other) { //nolint:errorlint // two sentinels
				t.Errorf("%v is also %v", err, other)
			}
		}
	}
}

func TestClient(t *testing.T) {
	cfg := config.Default()
	cfg.Relocate = config.Relocate{Codec: "zstd", Bandwidth: 1 << 20, DemandChannels: 2, PrecacheChannels: 3}
	h, _, c, _ := serve(t, cfg)
	ctx := t.Context()
	if v, err := c.Version(ctx); err != nil || v.API != "v1" || v.PID != 7 {
		t.Error(v, err)
	}
	if m, err := c.Add(ctx, "db1", "/run/../run/db1.qmp"); err != nil || m.QMP != "/run/db1.qmp" {
		t.Error(m, err)
	}
	ms, err := c.Machines(ctx)
	if err != nil || len(ms) != 2 || ms[0].Name != "db1" || ms[1].RAMBytes != 2<<30 {
		t.Error(ms, err)
	}
	if m, err := c.Machine(ctx, "web1"); err != nil || m.PID != 4242 {
		t.Error(m, err)
	}
	if err := c.Remove(ctx, "db1"); err != nil {
		t.Error(err)
	}
	st, err := c.Relocate(ctx, "web1", api.RelocateRequest{To: "127.0.0.1:7070"})
	want := relocate.Options{Codec: "zstd", Bandwidth: 1 << 20, DemandChannels: 2, PrecacheChannels: 3}
	if err != nil || st.Options != want || st.Session == "" {
		t.Errorf("%+v, %v", st, err)
	}
	if err := c.SetBandwidth(ctx, "web1", 5000); err != nil || h.Bandwidth("web1") != 5000 {
		t.Error(err)
	}
	if err := c.Cancel(ctx, "web1"); err != nil {
		t.Error(err)
	}
	o := relocate.Options{Codec: "none", DemandChannels: 4, Paused: true, KeepSource: true, OnDemandOnly: true}
	if st, err = c.Relocate(ctx, "web1", api.RelocateRequest{To: "127.0.0.1:7070", NoCap: true, Options: o}); err != nil {
		t.Fatal(err)
	}
	if o.PrecacheChannels = 3; st.Options != o {
		t.Errorf("options %+v", st.Options)
	}
	for vm, n := range map[string]int{"": 2, "web1": 2, "db1": 0} {
		r, err := c.Status(ctx, vm)
		if err != nil || len(r.Relocations) != n || r.Daemon.PID != 7 {
			t.Errorf("status %q: %+v, %v", vm, r, err)
		}
	}
	var seen []relocate.Phase
	if err := c.Events(ctx, 1, false, func(e relocate.Event) error { seen = append(seen, e.Phase); return nil }); err != nil {
		t.Error(err)
	}
	if fmt.Sprint(seen) != "[rolled-back connecting]" {
		t.Errorf("events %v", seen)
	}
}

func TestEventsFollow(t *testing.T) {
	h, s, c, sock := serve(t, config.Default())
	got := make(chan relocate.Event)
	done := make(chan error, 1)
	go func() {
		done <- c.Events(t.Context(), 0, true, func(e relocate.Event) error { got <- e; return nil })
	}()
	for i := range 40 {
		h.Event(relocate.Event{Kind: "warning", Text: fmt.Sprint(i)})
		select {
		case e := <-got:
			if e.Text != fmt.Sprint(i) || e.Seq != uint64(i+1) {
				t.Fatalf("event %d is %+v", i, e)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no event")
		}
	}
	// The raw stream has heartbeats, and ends with the server.
	nc, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(nc, "GET /v1/events?after=40&follow=1 HTTP/1.0\r\n\r\n")
	buf := make([]byte, 4096)
	var all []byte
	for !bytes.Contains(all, []byte(`"kind":"heartbeat"`)) {
		n, err := nc.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, all)
		}
		all = append(all, buf[:n]...)
	}
	s.EndStreams()
	if err := <-done; !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestEventsCancel(t *testing.T) {
	_, _, c, _ := serve(t, config.Default())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Events(ctx, 0, true, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	_, _, c, _ := serve(t, config.Default())
	ctx, cancel := context.WithCancel(t.Context())
	const n = 40
	errs := make(chan error, n)
	for range n {
		go func() { errs <- c.Events(ctx, 0, true, nil) }()
	}
	for range n - 32 {
		var e *api.Error
		if err := <-errs; !errors.As(err, &e) || e.Code != api.CodeTooMany {
			t.Errorf("one over the bound: %v", err)
		}
	}
	cancel()
	for range 32 {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("one within the bound: %v", err)
		}
	}
}

func TestUnreachable(t *testing.T) {
	c := api.NewClient(filepath.Join(t.TempDir(), "none.sock"), time.Second)
	defer c.Close()
	_, err := c.Version(t.Context())
	var u *api.UnreachableError
	if !errors.As(err, &u) || !strings.Contains(err.Error(), "none.sock") {
		t.Errorf("%v", err)
	}
}

func TestTimeout(t *testing.T) {
	h, _, _, sock := serve(t, config.Default())
	release := make(chan struct{})
	h.OnRelocate = func(string, string, relocate.Options) error { <-release; return errors.New("x") }
	defer close(release)
	c := api.NewClient(sock, 50*time.Millisecond)
	defer c.Close()
	_, err := c.Relocate(t.Context(), "web1", api.RelocateRequest{To: "127.0.0.1:1"})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeTimeout || e.Remedy == "" {
		t.Errorf("%v", err)
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	h, _, c, _ := serve(t, config.Default())
	h.OnRelocate = func(string, string, relocate.Options) error { panic("boom") }
	_, err := c.Relocate(t.Context(), "web1", api.RelocateRequest{To: "127.0.0.1:1"})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeInternal {
		t.Errorf("%v", err)
	}
}
