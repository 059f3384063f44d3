package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/fault"
	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/relocate"
)

func TestMain(m *testing.M) {
	touch.Main()
	floor.Main()
	fault.Main()
	goleak.VerifyTestMain(m)
}

func writePages(t *testing.T, path string, size int64, pages map[int64]string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for n, s := range pages {
		if _, err := f.WriteAt([]byte(s), n*comparePage+100); err != nil {
			t.Fatal(err)
		}
	}
}

// A page that the verification finds bad is in the guest's own count as well.
func TestBadPages(t *testing.T) {
	for _, c := range []struct {
		v    guestapi.Verify
		s    guestapi.Stats
		want uint64
	}{
		{guestapi.Verify{Pages: 9}, guestapi.Stats{}, 0},
		{guestapi.Verify{Pages: 9, Bad: 1}, guestapi.Stats{BadPages: 1}, 1},
		{guestapi.Verify{Pages: 9}, guestapi.Stats{BadPages: 2}, 2},
		{guestapi.Verify{Pages: 9, TouchesMissing: -7}, guestapi.Stats{}, 1},
		{guestapi.Verify{Pages: 9, Bad: 1, TouchesMissing: 7}, guestapi.Stats{BadPages: 3}, 4},
	} {
		if got := BadPages(c.v, c.s); got != c.want {
			t.Errorf("%+v, %+v: %d, want %d", c.v, c.s, got, c.want)
		}
	}
}

func TestCompare(t *testing.T) {
	dir := t.TempDir()
	a, b, short := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "short")
	const pages = 1000 // not a multiple of the buffer
	writePages(t, a, pages*comparePage, map[int64]string{3: "same", 300: "left", 999: "end"})
	writePages(t, b, pages*comparePage, map[int64]string{3: "same", 300: "LEFT", 700: "only here"})
	writePages(t, short, (pages-1)*comparePage, nil)

	d, err := Compare(t.Context(), a, b)
	if err != nil {
		t.Fatal(err)
	}
	if d.Pages != pages || d.Mismatches != 3 || !slices.Equal(d.First, []uint64{300, 700, 999}) {
		t.Errorf("got %+v, want pages 300, 700 and 999 of 1000 to differ", d)
	}
	for _, other := range []string{short, a, filepath.Join(dir, "missing")} {
		if _, err := Compare(t.Context(), a, other); err == nil {
			t.Errorf("compared with %s", other)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Compare(ctx, a, b); !errors.Is(err, context.Canceled) {
		t.Errorf("after its context's end Compare returned %v", err)
	}
}

func noCertificates(string, string, netip.Addr) (ca, cert, key string, err error) {
	return "", "", "", errors.New("a certificate was asked for in an insecure run")
}

// deaf stands for a daemon that starts and never answers.
type deaf struct{ Client }

func (deaf) Statuses(context.Context, string) ([]relocate.Status, error) {
	return nil, errors.New("connection refused")
}
func (deaf) Close() {}

// A daemon that ends at once is reported with its last words, and the hosts are
// removed.
func TestPairWithoutADaemon(t *testing.T) {
	daemon := filepath.Join(t.TempDir(), "pagewarpd")
	if err := os.WriteFile(daemon, []byte("#!/bin/sh\necho no such option $1 >&2; exit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Run(t.Context(), Config{
		Tools: Tools{Pagewarpd: daemon, Insecure: true, Certificates: noCertificates, Dial: func(string) Client { return deaf{} }},
		Out:   t.TempDir(), Print: io.Discard,
	})
	if err == nil || !strings.Contains(err.Error(), "no such option --config") {
		t.Fatalf("got %v, want the daemon's last words", err)
	}
	if l := left(t); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

// left lists the namespaces and folders of this process's rigs.
func left(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{"/run/netns", "/dev/shm"} {
		found, err := filepath.Glob(fmt.Sprintf("%s/pwrig-%d-*", dir, os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// statusOnly is a client that can only ask for the status.
type statusOnly struct {
	Client
	http *http.Client
}

func dialSocket(socket string) Client {
	var d net.Dialer
	return statusOnly{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
	}}}
}

func (c statusOnly) Statuses(ctx context.Context, _ string) ([]relocate.Status, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/v1/status", nil)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var r struct{ Relocations []relocate.Status }
	return r.Relocations, json.NewDecoder(res.Body).Decode(&r)
}

func (c statusOnly) Close() { c.http.CloseIdleConnections() }

// watcher calls f when a line with want is written.
type watcher struct {
	want string
	f    func()
	seen bool
}

func (w *watcher) Write(b []byte) (int, error) {
	if strings.Contains(string(b), w.want) {
		w.seen = true
		w.f()
	}
	return len(b), nil
}

// A demonstration that is interrupted while the guest boots leaves nothing.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	daemon := filepath.Join(t.TempDir(), "pagewarpd")
	build := exec.CommandContext(ctx, "go", "build", "-o", daemon, "github.com/pagewarp/pagewarp/cmd/pagewarpd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v\n%s", err, out)
	}
	booting := &watcher{want: "boots", f: cancel}
	_, err := Run(ctx, Config{
		Tools: Tools{Pagewarpd: daemon, Insecure: true, Certificates: noCertificates, Dial: dialSocket},
		Out:   t.TempDir(), Accel: "tcg", RAM: 256 << 20, WorkingSetMiB: 32, Print: booting,
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want the context's end", err)
	}
	if !booting.seen {
		t.Error("the guest was never booted")
	}
	if l := left(t); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}
