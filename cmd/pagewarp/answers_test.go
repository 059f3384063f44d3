package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/relocate"
)

// TestEventsFollowARestart: whoever follows sees the events of the next daemon, too, whose
// numbers begin at 1 again.
func TestEventsFollowARestart(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "api.sock")
	h, stop := serveAt(t, sock)
	for _, text := range []string{"one", "two", "three"} {
		h.Event(relocate.Event{Kind: "warning", Text: text})
	}
	sig := make(chan os.Signal, 1)
	pr, pw := io.Pipe()
	done := make(chan int, 1)
	var errOut bytes.Buffer
	ctx := t.Context()
	go func() {
		done <- run(ctx, []string{"events", "-f", "--json", "--socket", sock}, nil, pw, &errOut, sig)
		pw.Close()
	}()
	d := json.NewDecoder(pr)
	expect := func(text string) {
		t.Helper()
		var e relocate.Event
		if err := d.Decode(&e); err != nil || e.Text != text {
			t.Fatalf("%+v, %v, want %q", e, err, text)
		}
	}
	expect("one")
	expect("two")
	expect("three")
	stop()
	h, _ = serveAt(t, sock)
	h.Event(relocate.Event{Kind: "warning", Text: "of the next daemon"})
	expect("of the next daemon")
	sig <- syscall.SIGINT
	if code := <-done; code != 0 || !strings.Contains(errOut.String(), "started anew") {
		t.Errorf("exit code %d, %q", code, errOut.String())
	}
}

// TestEveryAnswerIsJSON: with --json standard output is JSON whatever is asked.
func TestEveryAnswerIsJSON(t *testing.T) {
	_, sock := serve(t)
	dir := filepath.Join(t.TempDir(), "pki")
	for _, line := range []string{
		"vm list", "vm add db2 --qmp /run/db2.qmp", "vm rm db2", "status", "status web1", "limits", "limits --host-bandwidth 2G", "cache list", "cache path db1", "cache drop db1",
		"relocate web1 --to 127.0.0.1:7070 --detach --json -", "bandwidth web1 2G", "cancel web1", "events", "version", "doctor --qemu true", "rdma list",
		"pki init --dir " + dir, "pki issue hostA --dir " + dir, "pki show --dir " + dir,
	} {
		words := append(strings.Fields(line), "--socket", sock)
		if !strings.HasPrefix(line, "relocate") {
			words = append(words, "--json")
		}
		r := pagewarp(t, words...)
		d := json.NewDecoder(strings.NewReader(r.out))
		n := 0
		for ; ; n++ {
			var v any
			if err := d.Decode(&v); err == io.EOF {
				break
			} else if err != nil {
				t.Errorf("%s: %v in %q", line, err, r.out)
				break
			}
		}
		if n == 0 || n > 1 && line != "events" || r.code != exitOK && !strings.HasPrefix(line, "doctor") {
			t.Errorf("%s: %d values of JSON, %+v", line, n, r)
		}
	}
}

func TestVersionFlag(t *testing.T) {
	if r := pagewarp(t, "--version"); r.code != 0 || !strings.HasPrefix(r.out, "pagewarp ") || r.err != "" {
		t.Errorf("%+v", r)
	}
}

// TestReportThatCannotBeWritten: the exit code is what has become of the machine.
func TestReportThatCannotBeWritten(t *testing.T) {
	h, sock := serve(t)
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	wait := started(t, h, make(chan os.Signal), "relocate", "web1", "--to", "127.0.0.1:7070", "--json", filepath.Join(dir, "r.json"), "--socket", sock)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	h.Phase("web1", relocate.PhaseLost, func(s *relocate.Status) { s.Error = "its QEMU has died" })
	if r := wait(); r.code != exitLost || !strings.Contains(r.err, "write report") || !strings.Contains(r.out, "its QEMU has died") {
		t.Errorf("%+v", r)
	}
}

// full is a file system without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestOutputThatIsLost: what could not be written was not told, as text no more than as JSON.
func TestOutputThatIsLost(t *testing.T) {
	_, sock := serve(t)
	for _, words := range [][]string{{"vm", "list"}, {"vm", "list", "--json"}, {"status"}, {"version"}, {"--help"}} {
		var errOut bytes.Buffer
		code := run(t.Context(), append(words, "--socket", sock), strings.NewReader(""), full{}, &errOut, make(chan os.Signal))
		if code != exitFailed || !strings.Contains(errOut.String(), syscall.ENOSPC.Error()) {
			t.Errorf("%v: exit code %d, %q", words, code, errOut.String())
		}
	}
}

// TestFollowABusyDaemon: a daemon that serves too many at the moment is asked again. The
// command does not leave a relocation that goes on.
func TestFollowABusyDaemon(t *testing.T) {
	h, sock := serve(t)
	release := make(chan struct{})
	let := sync.OnceFunc(func() { close(release) })
	t.Cleanup(let)
	h.OnRelocate = func(name, _ string, _ relocate.Options) error {
		if name != "web1" {
			<-release
		}
		return nil
	}
	var out, errOut buffer
	done := make(chan int, 1)
	go func() {
		done <- run(t.Context(), []string{"relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock}, strings.NewReader(""), &out, &errOut, make(chan os.Signal))
	}()
	errOut.await(t, "connecting")
	c := api.NewClient(sock, time.Minute)
	defer c.Close()
	var held sync.WaitGroup
	for range 100 {
		held.Go(func() { c.Relocate(t.Context(), "other", api.RelocateRequest{To: "127.0.0.1:7070"}) }) // refused, now or in the end
	}
	errOut.await(t, "too many")
	let()
	held.Wait()
	h.Phase("web1", relocate.PhaseDone, nil)
	select {
	case code := <-done:
		if code != exitOK {
			t.Errorf("exit code %d\n%s", code, errOut.String())
		}
	case <-time.After(20 * time.Second):
		t.Errorf("the command does not end\n%s", errOut.String())
	}
}
