package qemu

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestInspect(t *testing.T) {
	s := start(t, memArgs, "-smp", "2")
	d := s.inspect(t)
	if err := CheckRelocatable(d); err != nil {
		t.Error(err)
	}
	if d.Name != "counter" || d.VCPUs != 2 || d.Accel != "tcg" || !d.Running || d.RAMBytes != ramSize ||
		d.PID != s.proc.PID || d.Start != s.proc.Start || d.UID != os.Getuid() || !strings.HasPrefix(d.Machine, "pc-i440fx-") ||
		!strings.HasSuffix(d.Binary, qemuBinary) || !filepath.IsAbs(d.Dir) || !slices.Contains(d.Argv, "-daemonize") {
		t.Errorf("description is %+v", d)
	}
	want := []Backend{{ID: "mem", Type: "memory-backend-file", Path: s.mem, Size: ramSize, Share: true, Prealloc: true, PageSize: 4096, Used: true}}
	if !reflect.DeepEqual(d.Backends, want) {
		t.Errorf("backends are %+v", d.Backends)
	}
	if n := Notes(d); len(n) != 1 || !strings.Contains(n[0], "prealloc") {
		t.Errorf("notes are %q", n)
	}
	raw, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var again Description
	if err := json.Unmarshal(raw, &again); err != nil || !reflect.DeepEqual(again, d) {
		t.Errorf("through JSON it is %+v, %v", again, err)
	}
	maps, err := MemoryMapping(s.PID, s.mem)
	if err != nil || len(maps) != 1 || maps[0].End-maps[0].Start != ramSize || maps[0].Offset != 0 || !maps[0].Shared {
		t.Errorf("mappings are %+v, %v", maps, err)
	}

	// The monitor is held by us: the next client is told so, soon.
	begun := time.Now()
	_, err = Connect(within(t, 500*time.Millisecond), s.QMPPath)
	wantError(t, err, ErrMonitorBusy, "libvirt", "second -qmp", s.QMPPath)
	if took := time.Since(begun); took > time.Second {
		t.Errorf("took %v", took)
	}
	s.Close()
	v := connect(t, s.QMPPath)
	if v.PID != s.PID {
		t.Errorf("after Close another client sees pid %d", v.PID)
	}

	p, err := Probe(within(t, 10*time.Second), qemuBinary)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckDestination(d, p); err != nil {
		t.Error(err)
	}
	d.Machine = "pc-i440fx-99.0"
	wantError(t, CheckDestination(d, p), ErrMachineType, "pc-i440fx-99.0")
}

func TestInspectRefuses(t *testing.T) {
	object := func(o string) func(string) []string {
		return func(mem string) []string {
			return []string{"-machine", "pc,memory-backend=mem", "-m", "32M", "-object", strings.ReplaceAll(o, "MEM", mem)}
		}
	}
	for _, c := range []struct {
		name  string
		args  func(string) []string
		spoil func(*testing.T, *source)
		want  error
		words string
	}{
		{"plain RAM", func(string) []string { return []string{"-m", "32M"} }, nil, ErrNoSharedFile, "memory-backend-file"},
		{"private file", object("memory-backend-file,id=mem,size=32M,mem-path=MEM,share=off"), nil, ErrNoSharedFile, "share=on"},
		{"memfd", object("memory-backend-memfd,id=mem,size=32M,share=on"), nil, ErrMemfd, "8.1"},
		{"unused backend", func(mem string) []string {
			return []string{"-m", "32M", "-object", "memory-backend-file,id=mem,size=32M,share=on,mem-path=" + mem}
		}, nil, ErrRAMNotBacked, "memory-backend=mem"},
		{"directory", func(mem string) []string {
			return object("memory-backend-file,id=mem,size=32M,share=on,mem-path=" + filepath.Dir(mem))("")
		}, nil, ErrRAMFileLost, "directory"},
		{"deleted", memArgs, func(t *testing.T, s *source) { os.Remove(s.mem) }, ErrRAMFileLost, "no such file"},
		{"replaced", memArgs, func(t *testing.T, s *source) {
			os.Remove(s.mem)
			if err := os.WriteFile(s.mem, make([]byte, 4096), 0o600); err != nil {
				t.Fatal(err)
			}
		}, ErrRAMFileLost, "does not map"},
		{"migrating", memArgs, func(t *testing.T, s *source) { s.begin(t) }, ErrMigrating, "migrate_cancel"},
		{"blocked", func(mem string) []string {
			return append(memArgs(mem), "-device", "nvme,serial=1")
		}, nil, ErrMigrationBlocked, "nvme"},
		{"temporary disk", func(mem string) []string { return append(memArgs(mem), "-snapshot") }, nil, ErrDevice, "-snapshot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, c.args)
			if c.spoil != nil {
				c.spoil(t, s)
			}
			err := CheckRelocatable(s.inspect(t))
			wantError(t, err, c.want, c.words)
		})
	}
}

func TestSpawnRefuses(t *testing.T) {
	s := start(t, memArgs)
	base := s.spawnConfig(t)
	for _, c := range []struct {
		name  string
		edit  func(*SpawnConfig)
		want  error
		words string
	}{
		{"no such program", func(c *SpawnConfig) { c.Argv[0] = "/no/such/qemu" }, ErrBinary, "/no/such/qemu"},
		{"machine type", func(c *SpawnConfig) {
			i := slices.Index(c.Argv, "-machine")
			c.Argv[i+1] = "pc-i440fx-99.0,memory-backend=mem"
		}, ErrMachineType, "pc-i440fx-99.0"},
		{"memory", func(c *SpawnConfig) {
			for i, a := range c.Argv {
				a = strings.ReplaceAll(a, "size=32M", "size=200T")
				if c.Argv[i] = a; a == "32M" {
					c.Argv[i] = "200T"
				}
			}
		}, ErrNoMemory, "log"},
		{"not incoming", func(c *SpawnConfig) {
			i := slices.Index(c.Argv, "-incoming")
			c.Argv = slices.Delete(c.Argv, i, i+2)
		}, ErrRunState, "-incoming defer"},
		{"bad argument", func(c *SpawnConfig) { c.Argv = append(c.Argv, "-device", "no-such-device") }, ErrExited, "no-such-device"},
		{"socket path", func(c *SpawnConfig) { c.QMPPath = "/" + strings.Repeat("x", 120) }, nil, "shorter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := base
			conf.Argv = slices.Clone(base.Argv)
			c.edit(&conf)
			begun := time.Now()
			v, p, err := Spawn(t.Context(), conf)
			if err == nil {
				v.Close()
				kill(t, p)
				t.Fatal("it started")
			}
			if c.want != nil {
				wantError(t, err, c.want)
			}
			if !strings.Contains(err.Error(), c.words) {
				t.Errorf("error %q does not mention %q", err, c.words)
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			t.Log(err)
		})
	}
	counts(t, s.mem)
}

// TestSpawnSession: the daemon's end must not reach the machine, and a later
// daemon finds it again.
func TestSpawnSession(t *testing.T) {
	s := start(t, memArgs)
	d := s.spawn(t)
	if sid, err := unix.Getsid(d.PID); err != nil || sid != d.PID {
		t.Errorf("session is %d, %v; pid %d", sid, err, d.PID)
	}
	d.Close()
	p, err := Adopt(d.proc.PID, d.proc.Start, filepath.Join(s.destDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := ConnectProcess(within(t, 5*time.Second), d.QMPPath, p)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if st, err := v.RunState(t.Context()); err != nil || st.Status != "inmigrate" {
		t.Errorf("state is %v, %v", st, err)
	}
	kill(t, p)
	wantError(t, p.Err(), ErrExited)
	select {
	case <-v.Done():
	case <-within(t, 2*time.Second).Done():
		t.Error("the connection outlives QEMU")
	}
}
