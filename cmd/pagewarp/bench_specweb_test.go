package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/pagewarp/pagewarp/bench/specweb"
	"github.com/pagewarp/pagewarp/bench/specweb/server"
)

// lineWatch calls f at the first line that is written.
type lineWatch struct {
	mu   sync.Mutex
	b    bytes.Buffer
	once sync.Once
	f    func()
}

func (w *lineWatch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f != nil {
		w.once.Do(w.f)
	}
	return w.b.Write(p)
}

func runSpecweb(t *testing.T, live *lineWatch, args ...string) (code int, out string) {
	t.Helper()
	var stdout bytes.Buffer
	code = run(t.Context(), append([]string{"bench", "specweb"}, args...), strings.NewReader(""), &stdout, live, nil)
	return code, stdout.String()
}

func TestBenchSpecweb(t *testing.T) {
	dir := t.TempDir()
	live := &lineWatch{}
	copied := filepath.Join(dir, "copy.json")
	code, out := runSpecweb(t, live, "--self", "--workload", "ecommerce", "--sessions", "6", "--scale", "0.005", "--duration", "2s",
		"--ramp", "100ms", "--out", dir, "--json", copied)
	if code != exitOK || !strings.Contains(out, "SPECweb-style ecommerce, 6 sessions, scale 0.005, closed loop") {
		t.Errorf("exit code %d\n%s\n%s", code, out, live.b.String())
	}
	if !strings.Contains(live.b.String(), "pages/s   good ") {
		t.Errorf("nothing was shown in the meantime: %q", live.b.String())
	}
	for _, name := range []string{"specweb-ecommerce.json", "specweb-ecommerce.svg", "specweb-ecommerce.png"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	text, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Result specweb.Result }
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if r := file.Result; !r.Complete || r.Scale != 0.005 || r.Good < 20 || len(r.Bins) < 19 || r.Label != specweb.Label {
		t.Errorf("report %.600s", text)
	}
}

// Ctrl-C leaves a report of the time up to then, and no process.
func TestBenchSpecwebInterrupted(t *testing.T) {
	dir := t.TempDir()
	live := &lineWatch{f: func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
	}}
	code, out := runSpecweb(t, live, "--self", "--workload", "support", "--sessions", "4", "--scale", "0.005", "--duration", "1h", "--out", dir)
	if code != exitInterrupted || !strings.Contains(out, ", interrupted") || !strings.Contains(live.b.String(), "up to then") {
		t.Errorf("exit code %d\n%s\n%s", code, out, live.b.String())
	}
	if _, err := os.Stat(filepath.Join(dir, "specweb-support.json")); err != nil {
		t.Error(err)
	}
}

func TestBenchSpecwebUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"either --target URL or --self": {},
		"choose one of banking":         {"--self", "--workload", "bank"},
		"--sessions 0":                  {"--self", "--sessions", "0"},
		"--scale 2":                     {"--self", "--scale", "2"},
		"--duration 0s":                 {"--self", "--duration", "0"},
		"--open-loop -1":                {"--self", "--open-loop", "-1"},
		"--target \"ftp://x\"":          {"--target", "ftp://x"},
		"each once at most":             {"--target", "http://x,http://y"},
	} {
		live := &lineWatch{}
		if code, _ := runSpecweb(t, live, args...); code != exitUsage || !strings.Contains(live.b.String(), want) {
			t.Errorf("%q: exit code %d, %q; want %d and %q", args, code, live.b.String(), exitUsage, want)
		}
	}
	live := &lineWatch{}
	if code, _ := runSpecweb(t, live, "--workload", "support", "--target", "http://127.0.0.1:1", "--out", t.TempDir()); code != exitFailed || !strings.Contains(live.b.String(), "ask the server") {
		t.Errorf("a server that is not there: exit code %d, %q", code, live.b.String())
	}
}

// A server that takes requests and answers none has not passed, though none was broken
// off before the end of the measurement.
func TestBenchSpecwebNoAnswer(t *testing.T) {
	end := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == server.InfoPath {
			if err := json.NewEncoder(w).Encode(server.Info{Workload: "support", Scale: 0.005, Sessions: 2}); err != nil {
				t.Error(err)
			}
			return
		}
		<-end
	}))
	defer s.Close()
	defer close(end)
	live := &lineWatch{}
	code, out := runSpecweb(t, live, "--target", s.URL, "--workload", "support", "--sessions", "2", "--scale", "0.005", "--duration", "1s", "--out", t.TempDir())
	if code != exitFailed || !strings.Contains(live.b.String(), "not one page was answered") {
		t.Errorf("exit code %d\n%s\n%s", code, out, live.b.String())
	}
}
