package qemu

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails on goroutines, descriptors and files in tmpfs left behind.
func TestMain(m *testing.M) {
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close() // so that the runtime's own poller is there before we count
	}
	fds, files := openFiles(), tmpfsFiles()
	code := m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if after := openFiles(); len(after) > len(fds) && code == 0 {
		fmt.Fprintf(os.Stderr, "descriptors left open:\n%s\nbefore:\n%s\n", strings.Join(after, "\n"), strings.Join(fds, "\n"))
		code = 1
	}
	if after := tmpfsFiles(); len(after) > len(files) && code == 0 {
		fmt.Fprintf(os.Stderr, "files left behind: %q\n", after)
		code = 1
	}
	os.Exit(code)
}

func openFiles() []string {
	var names []string
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		if name, err := os.Readlink(l); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// tmpfsFiles are the directories of this process's machines.
func tmpfsFiles() []string {
	names, _ := filepath.Glob(filepath.Join("/dev/shm", testDirPrefix()+"*"))
	return names
}

func testDirPrefix() string { return fmt.Sprintf("pwq%d-", os.Getpid()) }
