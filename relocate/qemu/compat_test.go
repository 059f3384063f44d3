package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPrograms counts how often a program is run that is asked for again and again.
func TestPrograms(t *testing.T) {
	dir := t.TempDir()
	path, runs := filepath.Join(dir, "qemu-system-x86_64"), filepath.Join(dir, "runs")
	version := filepath.Join(dir, "version")
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(version, "7.2.0", 0o644)
	script := fmt.Sprintf(`#!/bin/sh
echo "$1" >> %s
[ "$1" = -version ] && exec echo "QEMU emulator version $(cat %s)"
echo Supported machines are:; echo pc-7.2 Standard PC
`, runs, version)
	write(path, script, 0o755)
	count := func() int {
		b, _ := os.ReadFile(runs)
		return strings.Count(string(b), "-version")
	}
	d := Description{Machine: "pc-7.2", Version: Version{7, 2, 0, ""}}
	var p Programs
	ctx := within(t, 30*time.Second)
	for range 3 {
		if err := p.Check(ctx, path, d); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(); n != 1 {
		t.Errorf("run %d times for three checks, want once", n)
	}
	// Refused only by what it says now.
	newer := d
	newer.Version.Major = 8
	wantError(t, p.Check(ctx, path, newer), ErrTooOld, "at least 8.2")
	if n := count(); n != 2 {
		t.Errorf("run %d times, want once more before it is refused", n)
	}
	write(version, "8.2.0", 0o644) // behind the script, which is the same
	if err := p.Check(ctx, path, newer); err != nil {
		t.Error(err)
	}
	// Another file of that name.
	write(path+".new", script+"# upgraded\n", 0o755)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	before := count()
	if err := p.Check(ctx, path, newer); err != nil {
		t.Error(err)
	}
	if n := count(); n != before+1 {
		t.Errorf("another program was run %d times, want once", n-before)
	}
	wantError(t, p.Check(ctx, filepath.Join(dir, "none"), d), ErrBinary, "install")
	if _, err := p.Learn(ctx, filepath.Join(dir, "none")); err == nil {
		t.Error("a program that is not there was learned")
	}
}

// TestProbeOfAScriptThatHangs: what a script has started keeps its standard output open, and
// must not keep the daemon.
func TestProbeOfAScriptThatHangs(t *testing.T) {
	dir := t.TempDir()
	script, child := filepath.Join(dir, "qemu-system-hung"), filepath.Join(dir, "child")
	text := "#!/bin/sh\nsleep 60 &\necho $! >" + child + ".new\nmv " + child + ".new " + child + "\nwait\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { _, err := Probe(ctx, script); ended <- err }()
	var pid int
	for end := time.Now().Add(20 * time.Second); pid == 0; time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(child); err == nil {
			if pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
				t.Fatal(err)
			}
		} else if time.Now().After(end) {
			t.Fatal("the script has not started")
		}
	}
	cancel()
	select {
	case err := <-ended:
		wantError(t, err, ErrBinary, script)
	case <-time.After(20 * time.Second):
		t.Error("the probe waits for what its program has started")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Error(err)
	}
}
