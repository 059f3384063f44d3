package qemu

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const someMaps = `7f0000000000-7f0000200000 rw-s 00000000 00:1b 42                         /dev/shm/m
7f0000400000-7f0000600000 rw-s 00200000 00:1b 42                         /dev/shm/m
7f0000800000-7f0000900000 r--p 00000000 fe:01 42                         /usr/lib/other
7f0000a00000-7f0000b00000 rw-p 00000000 00:00 0
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`

func TestParseMaps(t *testing.T) {
	st := unix.Stat_t{Dev: unix.Mkdev(0, 0x1b), Ino: 42}
	got, err := parseMaps(strings.NewReader(someMaps), "/dev/shm/m", &st)
	if err != nil || len(got) != 2 || got[1].Offset != 0x200000 || got[0].Start != 0x7f0000000000 || got[1].End != 0x7f0000600000 {
		t.Errorf("got %+v, %v", got, err)
	}
	st.Dev = unix.Mkdev(9, 9) // as btrfs: stat(2) gives another device than maps
	if got, err = parseMaps(strings.NewReader(someMaps), "/dev/shm/m", &st); err != nil || len(got) != 2 {
		t.Errorf("by name: %+v, %v", got, err)
	}
	if _, err := parseMaps(strings.NewReader("zz-1 rw-s 0 09:09 42 x\n"), "", &st); err == nil {
		t.Error("garbage parsed")
	}
}

func TestMemoryMappingPartial(t *testing.T) {
	f, err := os.CreateTemp("/dev/shm", testDirPrefix())
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		offset int64
		length int
		flags  int
		words  string
	}{
		{0, 4096, unix.MAP_SHARED, "part of the file"},
		{4096, 4096, unix.MAP_SHARED, "gap"},
		{0, 8192, unix.MAP_PRIVATE, "share=on"},
		{0, 8192, unix.MAP_SHARED, ""},
	} {
		mem, err := unix.Mmap(int(f.Fd()), c.offset, c.length, unix.PROT_READ, c.flags)
		if err != nil {
			t.Fatal(err)
		}
		_, err = MemoryMapping(os.Getpid(), f.Name())
		switch {
		case c.words == "" && err != nil:
			t.Error(err)
		case c.words != "" && (err == nil || !strings.Contains(err.Error(), c.words)):
			t.Errorf("error %v does not mention %q", err, c.words)
		}
		if err := unix.Munmap(mem); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add(someMaps, uint64(42))
	f.Fuzz(func(t *testing.T, s string, ino uint64) {
		st := unix.Stat_t{Dev: unix.Mkdev(0, 0x1b), Ino: ino}
		maps, err := parseMaps(strings.NewReader(s), "/dev/shm/m", &st)
		if err != nil {
			return
		}
		for i, m := range maps {
			if m.End <= m.Start || i > 0 && m.Offset < maps[i-1].Offset {
				t.Fatalf("%+v", maps)
			}
		}
	})
}

func FuzzClassify(f *testing.F) {
	f.Add(`{"return": {}}`)
	f.Add(`{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}`)
	f.Add(`{"error": {"class": "GenericError", "desc": "x"}}`)
	f.Fuzz(func(t *testing.T, s string) {
		event, r, err := classify([]byte(s))
		if kinds := (err != nil) != event != (r.err != nil) != (r.value != nil); !kinds {
			t.Fatalf("%q is an event: %v, a reply: %+v, wrong: %v", s, event, r, err)
		}
	})
}

func TestExiting(t *testing.T) {
	if exiting(os.Getpid()) {
		t.Error("this process is said to end")
	}
	c := exec.Command("true")
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if pid := c.Process.Pid; !exiting(pid) {
		t.Errorf("process %d, which has ended, is said to live", pid)
	}
}
