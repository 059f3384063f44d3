//go:build kmodvm || rdmavm

package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
	"golang.org/x/sys/unix"
)

// What the tests that run in a VM share.

// view maps a machine's memory for reading.
func view(t *testing.T, path string) []byte {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	defer unix.Close(fd)
	mem, err := sysmem.MapShared(fd, 0, vmtest.RAMBytes, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sysmem.Unmap(mem); err != nil {
			t.Error(err)
		}
	})
	return mem
}

// ended reports whether the command has.
func (c *cli) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// sameMemory compares the whole memory of two machines.
func sameMemory(t *testing.T, first, second string) {
	t.Helper()
	x, y := view(t, first), view(t, second)
	for p := 0; p < len(x); p += 4096 {
		if !bytes.Equal(x[p:p+4096], y[p:p+4096]) {
			t.Fatalf("%s and %s differ, first at %#x", first, second, p)
		}
	}
	t.Logf("compared %d pages of %s and %s: 0 differ", len(x)>>12, first, second)
}

// move relocates web1 by the operator's command and returns the final status.
func move(t *testing.T, from, to *node, args ...string) relocate.Status {
	t.Helper()
	c := pagewarp(t, from, append([]string{"relocate", "web1", "--to", to.addr, "--json", "-"}, args...)...)
	// An emulator within an emulator, on a machine that does other things as well.
	vmtest.Wait(t, "two thirds of the pages", func() bool {
		return c.ended() || to.status(relocate.RoleDestination).PagesRemaining < vmtest.RAMBytes>>12/3
	})
	vmtest.Wait(t, "the command to end", c.ended)
	if code := c.wait(); code != 0 {
		t.Fatalf("pagewarp relocate %q exited with %d: %s", args, code, c.text())
	}
	var s relocate.Status
	text := c.text()
	if err := json.Unmarshal([]byte(text[strings.Index(text, "{"):strings.LastIndex(text, "}")+1]), &s); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	vmtest.Wait(t, "the machine to be adopted", func() bool { s := to.state(); return s == "running" || s == "paused" })
	return s
}
