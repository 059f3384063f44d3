package pagecache

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func mapFile(path string, size uint64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

var unixTime = time.Unix(1000, 0)

func checksum(mem []byte) uint32 { return crc32.Checksum(mem[:headerCRCAt], castagnoli) }

const (
	childEnv   = "PAGECACHE_TEST_RESIDENCY"
	childPages = 100_000
	childTag   = 0xfeed
)

// child is the daemon that is killed: it leaves claims behind, says so, and
// waits on a pipe that nobody closes before it is dead.
func child(path string) error {
	mem, err := mapFile(path, Size(childPages))
	if err != nil {
		return err
	}
	r, err := Create(mem, childPages, childTag)
	if err != nil {
		return err
	}
	r.Claim(1000, 500, make(Mask, MaskWords(500)))
	if err := r.Commit(1000, 300, nil); err != nil {
		return err
	}
	r.Zero(50_000, 20_000)
	fmt.Println("ready")
	_, err = bufio.NewReader(os.Stdin).ReadByte()
	return fmt.Errorf("was not killed: %w", err)
}

// TestSurvivesKill: a residency in a shared file outlives a daemon that is
// killed, and its claims are taken back.
func TestSurvivesKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "residency")
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || readErr != nil || line != "ready\n" {
		t.Fatalf("child said %q (%v) and ended with %v", line, readErr, err)
	}

	mem, err := mapFile(path, Size(childPages))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	}()
	if _, err := Create(mem, childPages, childTag); err == nil {
		t.Fatal("Create took memory that is in use")
	}
	r, err := Attach(mem, childPages, childTag)
	if err != nil {
		t.Fatal(err)
	}
	want := Counts{Absent: childPages - 20_500, Installing: 200, Resident: 300, Zero: 20_000}
	if got := r.Counts(); got != want {
		t.Fatalf("attached: %+v, want %+v", got, want)
	}
	if n := r.Recover(); n != 200 {
		t.Fatalf("recovered %d claims, want 200", n)
	}
	want.Absent, want.Installing = want.Absent+200, 0
	if got := r.Counts(); got != want || r.State(1299) != Resident || r.State(1300) != Absent {
		t.Fatalf("recovered: %+v, want %+v", got, want)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAttachDamaged: every kind of damage is refused by name.
func TestAttachDamaged(t *testing.T) {
	const pages = 1000
	resum := func(mem []byte) {
		binary.LittleEndian.PutUint32(mem[headerCRCAt:], checksum(mem))
	}
	for _, c := range []struct {
		name   string
		damage func(mem []byte)
		says   string
	}{
		{"magic", func(m []byte) { m[0] = 'X' }, "magic"},
		{"empty", func(m []byte) { clear(m) }, "magic"},
		{"flipped bit", func(m []byte) { m[17] ^= 1 }, "checksum"},
		{"version", func(m []byte) { m[8] = 9; resum(m) }, "version 9"},
		{"header size", func(m []byte) { m[13] = 0; resum(m) }, "header of 0 bytes"},
		{"pages", func(m []byte) { m[16]++; resum(m) }, "the region has 1000"},
		{"tag", func(m []byte) { m[24]++; resum(m) }, "another region or session"},
		{"padding", func(m []byte) { m[100] = 1 }, "header byte 100"},
		{"tail", func(m []byte) { m[headerSize+pages/4] = 1 }, "last word"},
	} {
		mem := make([]byte, Size(pages))
		if _, err := Create(mem, pages, 5); err != nil {
			t.Fatal(err)
		}
		c.damage(mem)
		if _, err := Attach(mem, pages, 5); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want one that says %q", c.name, err, c.says)
		}
	}
	mem := make([]byte, Size(pages)+16)
	for _, f := range []func() error{
		func() error { _, err := Create(mem[:Size(pages)-1], pages, 0); return err },
		func() error { _, err := Create(mem, 0, 0); return err },
		func() error { _, err := Attach(mem, 1<<60, 0); return err },
		func() error { _, err := Create(mem[1:], pages, 0); return err },
		func() error { _, err := New(0); return err },
		func() error { _, err := New(MaxPages + 1); return err },
	} {
		if f() == nil {
			t.Error("bad memory or size was taken")
		}
	}
}

// FuzzAttach: whatever stands in the memory, Attach refuses it or gives a
// residency whose numbers agree with each other.
func FuzzAttach(f *testing.F) {
	good := make([]byte, Size(100))
	r, err := Create(good, 100, 1)
	if err != nil {
		f.Fatal(err)
	}
	r.Zero(3, 50)
	f.Add(good[:headerUsed], good[headerSize:], uint64(100), false)
	f.Add([]byte(headerMagic), []byte{1, 2, 3}, uint64(7), true)
	f.Fuzz(func(t *testing.T, head, table []byte, pages uint64, sum bool) {
		if pages > 1<<20 {
			return
		}
		mem := make([]byte, Size(pages))
		copy(mem[:headerSize], head)
		copy(mem[headerSize:], table)
		if sum {
			binary.LittleEndian.PutUint32(mem[headerCRCAt:], checksum(mem))
		}
		r, err := Attach(mem, pages, 1)
		if err != nil {
			return
		}
		c := r.Counts()
		if c.Absent+c.Installing+c.Resident+c.Zero != pages || r.Remaining() != c.Absent+c.Installing {
			t.Fatalf("counts %+v of %d pages, %d remaining", c, pages, r.Remaining())
		}
		if n := r.Recover(); n != c.Installing || r.Counts().Installing != 0 {
			t.Fatalf("recovered %d of %d claims", n, c.Installing)
		}
		if n := r.Zero(0, pages); n != c.Absent+c.Installing || r.Remaining() != 0 {
			t.Fatalf("zeroed %d of %d", n, c.Absent+c.Installing)
		}
	})
}

// TestSparseTerabyte: the table of a terabyte takes memory where it is written.
func TestSparseTerabyte(t *testing.T) {
	const pages = 1 << 40 / 4096
	rss := func() uint64 {
		b, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			t.Fatal(err)
		}
		var size, resident uint64
		if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
			t.Fatal(err)
		}
		return resident * uint64(os.Getpagesize())
	}
	before := rss()
	p, r := plannerFor(t, pages, 4096, DefaultPolicies()...)
	for i := range uint64(8) {
		r.Claim(i<<24, 512, make(Mask, 8))
		if err := r.Commit(i<<24, 512, nil); err != nil {
			t.Fatal(err)
		}
	}
	if grown := int64(rss() - before); grown > 24<<20 {
		t.Errorf("a table with eight runs in it takes %d bytes", grown)
	}
	if n := r.Zero(0, pages); n != pages-8*512 || r.Remaining() != 0 {
		t.Fatalf("zeroed %d, %d remain", n, r.Remaining())
	}
	if n := p.Next(make([]Run, 1), 512); n != 0 || !p.Idle() {
		t.Fatalf("Next = %d on a complete region", n)
	}
	if grown := int64(rss() - before); grown > 100<<20 {
		t.Errorf("a full table takes %d bytes", grown)
	}
}

// TestNoAllocations: nothing on the way of a page or a run takes memory.
func TestNoAllocations(t *testing.T) {
	p, r := plannerFor(t, 1<<20, 4096, DefaultPolicies()...)
	w, l := NewWindow(WindowConfig{Run: 2 << 20}), NewLimiter(1e9, 1<<20)
	buf, won := make([]Run, 4), make(Mask, MaskWords(DefaultRunPages))
	now := unixTime
	var page uint64
	step := func() {
		page += 4099
		p.Fault(1, page%(1<<20))
		p.Around(1, page%(1<<20), 8)
		if s := r.ClaimPage(page % (1 << 20)); s == Absent {
			if r.Release(page%(1<<20), 1, nil) != nil {
				t.Fatal("release")
			}
		}
		now = now.Add(1e6)
		w.OnSent(4096, now)
		n := p.Next(buf, 512)
		for i, run := range buf[:n] {
			count := uint64(run.Count)
			r.Claim(run.First, count, won)
			switch {
			case i == 0:
				if r.Release(run.First, count, won) != nil || p.Return(run) != nil {
					t.Fatal("return")
				}
			default:
				if r.Commit(run.First, count, won) != nil || p.Done(run) != nil {
					t.Fatal("commit")
				}
			}
		}
		r.Zero(page%(1<<20), 1)
		r.NextAbsent(page%(1<<20), 1<<20)
		w.OnDelivered(4096, now, now.Add(1e5))
		l.Charge(int64(w.Next()), now)
		l.Delay(now)
	}
	for range 100 {
		step() // maps and slices reach their size
	}
	if n := testing.AllocsPerRun(500, step); n != 0 {
		t.Errorf("%v allocations a step", n)
	}
}
