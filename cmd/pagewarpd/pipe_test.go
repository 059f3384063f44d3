package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
)

// TestLogIsAClosedPipe: whoever collects the log may die. Machines whose memory is on its way
// wait for the daemon, which must not go with it.
func TestLogIsAClosedPipe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program(t, "pagewarpd"), "--state-dir", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0", "--log-level", "debug")
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	ended := make(chan struct{})
	go func() { defer close(ended); cmd.Wait() }() // how it ended is looked at below
	defer func() { cmd.Process.Kill(); <-ended }()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	r.Close()
	c := api.NewClient(filepath.Join(dir, "state", "api.sock"), 10*time.Second)
	defer c.Close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // each request is a line of the log
		if _, err := c.Version(t.Context()); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
		select {
		case <-ended:
			t.Fatalf("the daemon has ended: %v", cmd.ProcessState)
		default:
		}
	}
	if _, err := c.Version(t.Context()); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not stop")
	}
	if cmd.ProcessState.ExitCode() != exitOK {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
}
