package report

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What is no ordinary file is written to, and stays what it is: --json /dev/null may
// not cost root that device.
func TestWriteFileKeepsWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(pipe, []byte("lost")); err == nil {
		t.Error("written to a pipe that nobody reads")
	}
	r, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Writable(pipe); err != nil {
		t.Error(err)
	}
	if err := WriteFile(pipe, []byte("report")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(pipe); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Fatalf("the pipe is %v now, %v", info.Mode(), err)
	}
	b := make([]byte, 6)
	if n, err := r.Read(b); err != nil || string(b[:n]) != "report" {
		t.Errorf("read %q, %v", b[:n], err)
	}

	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"first", "second"} {
		if want == "first" {
			if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := WriteFile(link, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("the link's file has %q, %v, want %q", got, err, want)
		}
	}
	if to, err := os.Readlink(link); err != nil || to != file {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	for path, want := range map[string]bool{"/dev/null": true, "/dev/stdout": true, file: false, filepath.Join(dir, "new"): false, dir: false} {
		if _, direct := destination(path); direct != want {
			t.Errorf("%s: direct %v, want %v", path, direct, want)
		}
	}
}
