package sysmem

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func memfd(t testing.TB, size int64) int {
	t.Helper()
	fd, err := CreateMemfd("sysmem-test", size, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestSparseTebibyte(t *testing.T) {
	const size = 1 << 40
	fd := memfd(t, size)
	a, err := MapShared(fd, 0, size, true)
	if err != nil {
		t.Fatal(err)
	}
	b, err := MapShared(fd, 0, size, false)
	if err != nil {
		t.Fatal(err)
	}
	const at = size - 4096*3
	a[at] = 42
	if b[at] != 42 {
		t.Fatalf("alias reads %d at %#x, want 42", b[at], at)
	}
	start, end, err := NextData(fd, 0)
	if err != nil || start != at || end != at+4096 {
		t.Fatalf("NextData = %#x, %#x, %v; want %#x, %#x", start, end, err, at, at+4096)
	}
	if _, _, err := NextData(fd, end); err != io.EOF {
		t.Fatalf("NextData behind the last page: %v, want EOF", err)
	}
	if err := PunchHole(fd, at, 4096); err != nil {
		t.Fatal(err)
	}
	if _, _, err := NextData(fd, 0); err != io.EOF {
		t.Fatalf("NextData after PunchHole: %v, want EOF", err)
	}
	ms, err := FileMappings(os.Getpid(), must(IDOf(fd)))
	if err != nil {
		t.Fatal(err)
	}
	var total uint64
	for _, m := range ms {
		total += m.Len()
		if !m.Shared() || !strings.Contains(m.Path, "memfd:sysmem-test") {
			t.Errorf("mapping %+v: want a shared one of the memfd", m)
		}
	}
	if total != 2*size {
		t.Errorf("mappings of the memfd cover %#x bytes, want %#x: %+v", total, uint64(2*size), ms)
	}
	if err := errors.Join(Unmap(a), Unmap(b)); err != nil {
		t.Fatal(err)
	}
	if ms, err = FileMappings(os.Getpid(), must(IDOf(fd))); err != nil || len(ms) != 0 {
		t.Errorf("mappings after Unmap: %+v, %v", ms, err)
	}
}

func TestFSOf(t *testing.T) {
	info, err := FSOf(memfd(t, 4096))
	if err != nil || info.Kind != FSTmpfs || info.PageSize != PageSize {
		t.Errorf("memfd: %+v, %v; want tmpfs with base pages", info, err)
	}
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err = FSOf(int(f.Fd())); err != nil || info.Kind != FSOther {
		t.Errorf("/proc: %+v, %v; want other", info, err)
	}
	if _, err = FSOf(-1); err == nil {
		t.Error("descriptor -1 has a file system")
	}
}

func TestCreateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	fd, err := CreateFile(path, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := CreateFile(path, 4096); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second CreateFile: %v, want EEXIST", err)
	}
	again, err := OpenOf(os.Getpid(), fd, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(again)
	if must(IDOf(again)) != must(IDOf(fd)) {
		t.Error("OpenOf opened another file")
	}
}

func TestHugeMemfdSaysPageSize(t *testing.T) {
	fd, err := CreateMemfd("huge", 4<<20, 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	info, err := FSOf(fd)
	if err != nil || info.Kind != FSHugetlbfs || info.PageSize != 2<<20 {
		t.Errorf("huge memfd: %+v, %v; want hugetlbfs of 2 MiB", info, err)
	}
	if _, err := CreateMemfd("odd", 4096, 12345); err == nil {
		t.Error("a page size of 12345 bytes was accepted")
	}
}

func TestAnonymousAdvise(t *testing.T) {
	b, err := MapAnonymous(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b[5] = 1
	if err := Advise(b, unix.MADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if b[5] != 0 {
		t.Error("page survived MADV_DONTNEED")
	}
	if err := Unmap(b); err != nil {
		t.Fatal(err)
	}
}

func TestParseMapping(t *testing.T) {
	m, err := parseMapping("7f00deadb000-7f00deadd000 rw-s 00001000 00:01 2049      /memfd:a b (deleted)")
	want := Mapping{Start: 0x7f00deadb000, End: 0x7f00deadd000, Offset: 0x1000, Perms: "rw-s",
		ID: FileID{unix.Mkdev(0, 1), 2049}, Path: "/memfd:a b (deleted)"}
	if err != nil || m != want {
		t.Errorf("got %+v, %v; want %+v", m, err, want)
	}
	if m, err = parseMapping("1000-2000 ---p 00000000 00:00 0 "); err != nil || m.Path != "" || m.Shared() {
		t.Errorf("anonymous: %+v, %v", m, err)
	}
	for _, bad := range []string{"", "1000 rw-p 0 00:00 0", "2000-1000 rw-p 0 00:00 0", "1-2 rwp 0 0:0 0",
		"1-2 rw-p 0 0 0", "1-2 rw-p zz 0:0 0", "1-2 rw-p 0 0:0 x"} {
		if m, err := parseMapping(bad); err == nil {
			t.Errorf("%q parsed as %+v", bad, m)
		}
	}
}

func TestSameFill(t *testing.T) {
	// slow is the definition, word by word.
	slow := func(p []byte) bool {
		if len(p) == 0 || len(p)%8 != 0 {
			return false
		}
		for i := range p {
			if p[i] != p[i%8] {
				return false
			}
		}
		return true
	}
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "unit")
		p := make([]byte, 8*rapid.IntRange(0, 600).Draw(t, "words"))
		for i := range p {
			p[i] = unit[i%8]
		}
		if len(p) > 0 && rapid.Bool().Draw(t, "damage") {
			p[rapid.IntRange(0, len(p)-1).Draw(t, "at")] ^= rapid.Byte().Draw(t, "by")
		}
		word, same := SameFill(p)
		if same != slow(p) {
			t.Fatalf("SameFill says %v for %d bytes", same, len(p))
		}
		for i := range p {
			if same && byte(word>>(8*(i%8))) != p[i] {
				t.Fatalf("word %#x does not give byte %d", word, i)
			}
		}
	})
	page := make([]byte, 4096)
	if word, same := SameFill(page); !same || word != 0 {
		t.Errorf("zero page: %#x, %v", word, same)
	}
	if n := testing.AllocsPerRun(100, func() { SameFill(page) }); n != 0 {
		t.Errorf("%v allocations a page", n)
	}
}

func FuzzParseMapping(f *testing.F) {
	f.Add("7f00deadb000-7f00deadd000 rw-s 00001000 00:01 2049      /memfd:a b (deleted)")
	f.Fuzz(func(t *testing.T, line string) {
		if m, err := parseMapping(line); err == nil && (m.End <= m.Start || len(m.Perms) != 4) {
			t.Errorf("%q parsed as %+v", line, m)
		}
	})
}

func BenchmarkSameFill(b *testing.B) {
	zero, last := make([]byte, 4096), make([]byte, 4096)
	last[2000] = 1
	first := make([]byte, 4096)
	first[9], first[4095] = 1, 1
	for _, c := range []struct {
		name string
		page []byte
	}{{"zero", zero}, {"middle-differs", last}, {"end-differs", first}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(4096)
			b.ReportAllocs()
			for b.Loop() {
				SameFill(c.page)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
