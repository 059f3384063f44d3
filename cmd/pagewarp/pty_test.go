package main

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/pagewarp/pagewarp/cmd/internal/daemon/daemontest"
	"github.com/pagewarp/pagewarp/relocate"
)

// session is the command as a process of its own on a terminal.
type session struct {
	tty  *os.File
	text buffer
	cmd  *exec.Cmd
	read chan struct{} // closed when the terminal has been read to its end
}

func onTerminal(t *testing.T, args ...string) *session {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &session{cmd: exec.Command(exe, args...), read: make(chan struct{})}
	s.cmd.Env = append(os.Environ(), asCommand+"=1", "TERM=xterm")
	if s.tty, err = pty.StartWithSize(s.cmd, &pty.Winsize{Rows: 24, Cols: 160}); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.read)
		io.Copy(&s.text, s.tty) // ends with EIO when the last writer has gone; pty(7)
	}()
	t.Cleanup(func() {
		s.cmd.Process.Kill() // for a test that failed early
		s.cmd.Wait()
		s.tty.Close()
		<-s.read
	})
	return s
}

// end waits for the process and returns its exit code.
func (s *session) end(t *testing.T) int {
	t.Helper()
	limit := time.AfterFunc(20*time.Second, func() { s.cmd.Process.Kill() })
	defer limit.Stop()
	s.cmd.Wait() // the code says it all
	await(t, "the end of the terminal", s.read)
	return s.cmd.ProcessState.ExitCode()
}

func (s *session) ctrlC(t *testing.T) {
	t.Helper()
	if _, err := s.tty.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
}

func drain(h *daemontest.Host) {
	h.Phase("web1", relocate.PhaseDraining, func(s *relocate.Status) {
		s.PagesTotal, s.PagesRemaining, s.PagesDemand, s.PagesPrecache, s.Connected = 524288, 262144, 1234, 200000, true
		s.RateBytes, s.ETASec = 100<<20, 12
		s.FaultLatency = relocate.Latency{P50: 180, P99: 950, Max: 2000, Count: 1234}
	})
}

func TestTerminal(t *testing.T) {
	h, sock := serve(t)
	s := onTerminal(t, "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock)
	s.text.await(t, "connecting")
	h.Phase("web1", relocate.PhasePreparing, nil)
	drain(h)
	for _, want := range []string{"preparing", "the guest runs at the destination", "50 %", "demand 1 234, precache 200 000", "100 MiB/s", "12 s left", "fault p50 180 µs p99 950 µs"} {
		s.text.await(t, want)
	}
	h.Phase("web1", relocate.PhaseDone, func(s *relocate.Status) { s.PagesRemaining, s.DowntimeMS = 0, 7.5 })
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	out := s.text.String()
	for _, want := range []string{"100 %", "every page has arrived", "web1 runs at 127.0.0.1:7070", "downtime  7.5 ms"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q on the terminal\n%s", want, out)
		}
	}
	if i, j := strings.LastIndex(out, "100 %"), strings.Index(out, "web1 runs at"); i > j {
		t.Errorf("the bar is drawn over the summary\n%q", out)
	}
}

// TestTerminalPreTransfer has two bars, one after the other.
func TestTerminalPreTransfer(t *testing.T) {
	h, sock := serve(t)
	s := onTerminal(t, "relocate", "web1", "--to", "127.0.0.1:7070", "--pre-transfer", "--socket", sock)
	s.text.await(t, "connecting")
	h.Phase("web1", relocate.PhasePreTransfer, func(s *relocate.Status) {
		s.PagesTotal, s.PagesRemaining, s.Connected = 524288, 524288, true
		s.PreTransferPass, s.PreTransferSeen, s.PagesPreTransfer, s.BytesPreTransfer, s.RateBytes = 2, 393216, 500001, 1<<30, 200<<20
	})
	for _, want := range []string{"the guest runs on", "75 %", "pass 2, 500 001 pages copied, 1 GiB, 200 MiB/s"} {
		s.text.await(t, want)
	}
	h.Phase("web1", relocate.PhaseReady, nil)
	drain(h)
	for _, want := range []string{"the destination waits for the machine", "50 %", "demand 1 234"} {
		s.text.await(t, want)
	}
	h.Phase("web1", relocate.PhaseDone, func(s *relocate.Status) { s.PagesRemaining, s.DowntimeMS, s.PreTransferMS = 0, 7.5, 4000 })
	if code := s.end(t); code != 0 || !strings.Contains(s.text.String(), "before    500 001 pages copied in 4.0 s") {
		t.Errorf("exit code %d\n%s", code, s.text.String())
	}
}

func TestTerminalInterrupt(t *testing.T) {
	h, sock := serve(t)
	s := onTerminal(t, "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock)
	s.text.await(t, "connecting")
	h.Phase("web1", relocate.PhasePreparing, nil)
	s.text.await(t, "preparing")
	s.ctrlC(t)
	if code := s.end(t); code != exitInterrupted || !strings.Contains(s.text.String(), "runs on at the source") {
		t.Errorf("exit code %d\n%s", code, s.text.String())
	}
	if st := h.Statuses()[0]; st.Phase != relocate.PhaseRolledBack {
		t.Errorf("the relocation is %s", st.Phase)
	}
}

func TestTerminalInterruptPastTheSwitch(t *testing.T) {
	h, sock := serve(t)
	s := onTerminal(t, "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock)
	s.text.await(t, "connecting")
	drain(h)
	s.text.await(t, "50 %")
	s.ctrlC(t)
	if code := s.end(t); code != exitInterrupted || !strings.Contains(s.text.String(), "finish on their own") {
		t.Errorf("exit code %d\n%s", code, s.text.String())
	}
	if st := h.Statuses()[0]; st.Phase != relocate.PhaseDraining {
		t.Errorf("the relocation is %s", st.Phase)
	}
}

func TestTop(t *testing.T) {
	h, sock := serve(t)
	if _, err := h.Relocate(t.Context(), "web1", "hostB:7070", relocate.Options{}); err != nil {
		t.Fatal(err)
	}
	drain(h)
	for _, words := range [][]string{{"top"}, {"status", "web1", "--watch"}} {
		s := onTerminal(t, append(words, "--socket", sock)...)
		for _, want := range []string{"\x1b[H\x1b[2J", "draining", "hostB:7070", "180 µs/950 µs", "100 MiB/s"} {
			s.text.await(t, want)
		}
		s.ctrlC(t)
		if code := s.end(t); code != 0 {
			t.Errorf("%v: exit code %d", words, code)
		}
	}
}

// TestClosedPipe: whoever read the output has gone (`| head`). The command follows the
// relocation all the same, and its exit code says what has become of the machine.
func TestClosedPipe(t *testing.T) {
	h, sock := serve(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var text buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.CopyN(&text, r, 1) // the first byte that it shows
		r.Close()
	}()
	await(t, "the first line", read)
	drain(h)
	h.Phase("web1", relocate.PhaseLost, nil)
	ended := make(chan struct{})
	go func() { defer close(ended); cmd.Wait() }()
	await(t, "the command's end", ended)
	if got := cmd.ProcessState; got.ExitCode() != exitLost {
		t.Errorf("it ended with %v, want exit code %d", got, exitLost)
	}
}
