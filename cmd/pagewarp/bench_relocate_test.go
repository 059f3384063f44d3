package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// buildDaemon puts a pagewarpd where findDaemon finds it.
func buildDaemon(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", dir, "github.com/pagewarp/pagewarp/cmd/pagewarpd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("build the daemon: %v\n%s", err, out)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// whenSaid calls f once, when want has been written.
type whenSaid struct {
	want string
	f    func()
	mu   sync.Mutex
	b    bytes.Buffer
	once sync.Once
}

func (w *whenSaid) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.b.Write(p)
	if w.f != nil && strings.Contains(w.b.String(), w.want) {
		w.once.Do(w.f)
	}
	return n, err
}

func runBench(t *testing.T, errOut *whenSaid, args ...string) (code int, out string) {
	t.Helper()
	var stdout bytes.Buffer
	code = run(t.Context(), append([]string{"bench"}, args...), strings.NewReader(""), &stdout, errOut, nil)
	return code, stdout.String()
}

// rigsLeft lists what rigs of this process have left behind.
func rigsLeft(t *testing.T) (all []string) {
	t.Helper()
	for _, dir := range []string{"/run/netns", "/dev/shm"} {
		found, err := filepath.Glob(fmt.Sprintf("%s/pwrig-%d-*", dir, os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// One real relocation by each of two engines, with all that is told of it.
func TestBenchRelocate(t *testing.T) {
	buildDaemon(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "r.json")
	said := &whenSaid{}
	code, out := runBench(t, said, "relocate", "--engine", "pagewarp,qemu-postcopy,qemu-postcopy@root", "--qemu-root", dir, "--load", "touch:ws=24",
		"--ram", "160M", "--repeat", "1", "--watch", "2s", "--logs", filepath.Join("..", "..", "build", "guest"), "--out", dir, "--json", file)
	if code != exitOK {
		t.Fatalf("exit code %d\n%s\n%s", code, out, said.b.String())
	}
	for _, want := range []string{"pagewarp, QEMU ", "qemu-postcopy, QEMU ", "cannot run here: qemu-postcopy@root: there is no QEMU", "load random:ws=24"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var written struct{ Result engine.Result }
	if err := json.Unmarshal(text, &written); err != nil {
		t.Fatal(err)
	}
	r := written.Result
	if len(r.Rows) != 2 || len(r.Unavailable) != 1 {
		t.Fatalf("%d rows, %d unavailable\n%s", len(r.Rows), len(r.Unavailable), out)
	}
	for _, row := range r.Rows {
		if row.Error != "" || row.BadPages != 0 {
			t.Errorf("%s: %d bad pages, error %q", row.Engine, row.BadPages, row.Error)
		}
		if row.DowntimeMS <= 0 || row.TotalMS < row.DowntimeMS || row.BeforePerSec <= 0 || len(row.Series) < 40 {
			t.Errorf("%s: down %g ms, total %g ms, %g/s before, %d values", row.Engine, row.DowntimeMS, row.TotalMS, row.BeforePerSec, len(row.Series))
		}
		// The working set's incompressible half has to go across in any case.
		if row.Source.SentBytes < 12<<20 || row.Source.CPUSeconds <= 0 || row.Destination.PeakBytes < 24<<20 {
			t.Errorf("%s: source %+v, destination %+v", row.Engine, row.Source, row.Destination)
		}
		// Ours starts the destination's QEMU meanwhile; QEMU's own way may be over
		// before the guest has had a tick of 10 ms, which is what the kernel tells.
		if row.Engine == engine.Pagewarp && row.Source.GuestSeconds <= 0 {
			t.Errorf("%s: no CPU time of the guest's: %+v", row.Engine, row.Source)
		}
		if row.BlackoutMS != nil {
			t.Errorf("%s: a blackout of no client: %g ms", row.Engine, *row.BlackoutMS)
		}
	}
	if f := r.Rows[0].Fault; f == nil || f.Count == 0 || f.P99 < f.P50 {
		t.Errorf("pagewarp's fault latency: %+v", f)
	}
	for _, name := range []string{"relocate-random.svg", "relocate-random.png"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if left := rigsLeft(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Without precache a relocation is watched, not completed, and the guest's memory
// is right all the same.
func TestBenchRelocateOnDemand(t *testing.T) {
	buildDaemon(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "r.json")
	said := &whenSaid{}
	code, out := runBench(t, said, "relocate", "--engine", "pagewarp-on-demand", "--load", "touch:ws=24", "--ram", "160M", "--repeat", "1",
		"--watch", "1s", "--logs", filepath.Join("..", "..", "build", "guest"), "--out", dir, "--json", file)
	if code != exitOK {
		t.Fatalf("exit code %d\n%s\n%s", code, out, said.b.String())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var written struct{ Result engine.Result }
	if err := json.Unmarshal(text, &written); err != nil {
		t.Fatal(err)
	}
	if len(written.Result.Rows) != 1 {
		t.Fatalf("%d rows\n%s", len(written.Result.Rows), out)
	}
	row := written.Result.Rows[0]
	if row.Error != "" || row.BadPages != 0 || row.TotalMS != 0 || row.DowntimeMS <= 0 || row.Fault == nil || row.Fault.Count == 0 {
		t.Errorf("%+v", row)
	}
	if len(row.Notes) != 1 || !strings.Contains(row.Notes[0], "still at the source") {
		t.Errorf("notes %q", row.Notes)
	}
	if left := rigsLeft(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// crashingQEMU makes a root whose QEMU crashes when it is to run a guest.
func crashingQEMU(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	qemu := engine.RootQEMU(root)
	if err := os.MkdirAll(filepath.Dir(qemu), 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\ncase $1 in -version) echo QEMU emulator version 11.1.3;; -machine) echo;; *) echo Segmentation fault >&2; exit 139;; esac\n"
	if err := os.WriteFile(qemu, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

// interruptAt presses Ctrl-C once a benchmark has said something.
func interruptAt(t *testing.T, step string) *whenSaid {
	return &whenSaid{want: step, f: func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
	}}
}

// Ctrl-C while the guest boots leaves nothing but the rows that were finished, of
// which a peer that crashed is one.
func TestBenchRelocateInterrupted(t *testing.T) {
	buildDaemon(t)
	for _, c := range []struct {
		name, engines, says string
		rows                int
	}{
		{"first", "pagewarp", "interrupted; nothing was left behind", 0},
		{"after a crash", "qemu-precopy@root,pagewarp", "the report has what was finished", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "r.json")
			said := interruptAt(t, "boot the guest for pagewarp")
			code, out := runBench(t, said, "relocate", "--engine", c.engines, "--qemu-root", crashingQEMU(t), "--load", "idle:ws=16",
				"--ram", "160M", "--accel", "tcg", "--logs", dir, "--out", dir, "--json", file)
			if code != exitInterrupted || !strings.Contains(said.b.String(), c.says) {
				t.Errorf("exit code %d\n%s\n%s", code, out, said.b.String())
			}
			if n := strings.Count(out, "FAILED: qemu-precopy@root, run 1"); n != c.rows {
				t.Errorf("%d finished rows are told, want %d:\n%s", n, c.rows, out)
			}
			if c.rows == 0 {
				if _, err := os.Stat(file); !os.IsNotExist(err) {
					t.Errorf("a report of nothing: %v", err)
				}
			} else {
				wantInterrupted(t, file, c.rows)
			}
			if left := rigsLeft(t); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// All that --limit and --watch take can be told of: the guest counts for so long.
func TestBenchRelocateLongest(t *testing.T) {
	buildDaemon(t)
	dir := t.TempDir()
	f := benchRelocateFlags{engines: []string{engine.Pagewarp}, load: "touch:ws=16", ram: "1G", link: "none", codec: "auto", vcpus: 1, limit: time.Hour, watch: time.Hour, out: dir}
	f.repeat, f.logs = 1, dir
	o, err := f.options(func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if o.MoveLimit+o.After > guestapi.TouchSpan*3/4 {
		t.Errorf("a relocation of %v that is watched for %v is allowed, the guest's count goes back for %v", o.MoveLimit, o.After, guestapi.TouchSpan)
	}
}

// What any benchmark has left behind is told after Ctrl-C, not only bench relocate's.
func TestInterruption(t *testing.T) {
	left := errors.Join(context.Canceled, fmt.Errorf("%w: network namespace x", rig.ErrLeftBehind))
	for _, results := range []bool{false, true} {
		if says := interruption(results, left).Error(); !strings.Contains(says, "network namespace x") || strings.Contains(says, "left behind") {
			t.Errorf("results %v: %q", results, says)
		}
	}
	if says := interruption(false, context.Canceled).Error(); says != "interrupted; nothing was left behind" {
		t.Errorf("%q", says)
	}
}

// wantInterrupted checks the file of a comparison that was interrupted.
func wantInterrupted(t *testing.T, file string, rows int) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var written struct {
		Interrupted bool
		Result      engine.Result
	}
	if err := json.Unmarshal(text, &written); err != nil {
		t.Fatal(err)
	}
	if !written.Interrupted || len(written.Result.Rows) != rows || len(written.Result.Engines) == 0 {
		t.Errorf("want %d rows of a run that was interrupted:\n%s", rows, text)
	}
}

func TestBenchRelocateUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--engine", "qemu-poscopy"}, "did you mean qemu-postcopy?"},
		{[]string{"--engine", "pagewarp,pagewarp"}, "is given twice"},
		{[]string{"--load", "chrun"}, "did you mean churn?"},
		{[]string{"--load", "churn:rat=1"}, "it has ws, half, rate"},
		{[]string{"--ram", "many"}, "--ram: memory of \"many\""},
		{[]string{"--link", "fast"}, "or none"},
		{[]string{"--repeat", "0"}, "--repeat 0"},
		{[]string{"--vcpus", "0"}, "--vcpus 0"},
		{[]string{"--limit", "0s"}, "--limit 0s"},
		{[]string{"--watch", "0s"}, "--watch 0s"},
	} {
		said := &whenSaid{}
		if code, _ := runBench(t, said, append([]string{"relocate"}, c.args...)...); code != exitUsage || !strings.Contains(said.b.String(), c.want) {
			t.Errorf("%q: exit code %d, %q; want %q", c.args, code, said.b.String(), c.want)
		}
	}
}

func TestBenchPeers(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out := runBench(t, &whenSaid{}, "peers", "--qemu-root", dir)
	for _, want := range []string{"qemu-postcopy-preempt ", "qemu-multifd@root cannot run here", "--make-root", "criu-lazy@root cannot run here: there is no CRIU", "of a process"} {
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("exit code %d, no %q in\n%s", code, want, out)
		}
	}
	said := &whenSaid{}
	if code, _ := runBench(t, said, "peers", "--make-root", "--qemu-root", dir); code != exitFailed || !strings.Contains(said.b.String(), "make a root: ") {
		t.Errorf("a root in a folder that is in use: exit code %d, %q", code, said.b.String())
	}
}

// A peer that crashes is a row that says so, in the report as well.
func TestBenchRelocateCrashedPeer(t *testing.T) {
	buildDaemon(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "r.json")
	said := &whenSaid{}
	code, out := runBench(t, said, "relocate", "--engine", "qemu-precopy@root", "--qemu-root", crashingQEMU(t), "--load", "idle:ws=16",
		"--ram", "160M", "--repeat", "2", "--accel", "tcg", "--logs", dir, "--out", dir, "--json", file)
	if code != exitFailed || !strings.Contains(said.b.String(), errNoneMoved.Error()) {
		t.Errorf("exit code %d\n%s", code, said.b.String())
	}
	if !strings.Contains(out, "FAILED: qemu-precopy@root, run 1") || !strings.Contains(out, "Segmentation fault") {
		t.Errorf("the crash is not told:\n%s", out)
	}
	text, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(text, []byte("Segmentation fault")) {
		t.Errorf("the report lacks it: %v\n%s", err, text)
	}
	if left := rigsLeft(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
