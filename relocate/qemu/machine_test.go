package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	qemuBinary = "qemu-system-x86_64"
	ramSize    = 32 << 20
	counterAt  = 0x9000 // guest-physical, and so the offset in the memory file
)

// firmware is the whole guest: at the reset vector it counts up a word of RAM for
// ever. Its padding is random, so that the ROM block fills the migration stream.
//
//	xor ax,ax; mov ds,ax; l: inc dword [0x9000]; jmp l
func firmware() []byte {
	rom := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range rom {
		rom[i] = byte(r.Uint32())
	}
	copy(rom[len(rom)-16:], []byte{0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x00, 0x90, 0xeb, 0xf9})
	return rom
}

// source is a machine as an operator would have started it: a daemon.
type source struct {
	*VM
	dir  string // rewritten for the destination
	mem  string
	proc *Process

	handed bool // QEMU is handed its end of the state's stream, at both sides
}

// memArgs is a machine that can be relocated.
func memArgs(mem string) []string {
	return []string{"-machine", "pc,memory-backend=mem", "-m", "32M",
		"-object", "memory-backend-file,id=mem,size=32M,mem-path=" + mem + ",share=on,prealloc=on"}
}

// bigState are devices with more device state than a socket buffers.
var bigState = []string{"-device", "e1000e,romfile=", "-device", "e1000e,romfile=", "-device", "e1000e,romfile=", "-device", "e1000e,romfile="}

// start runs a source. Its memory is in tmpfs, its monitor at dir/a/q.
func start(t *testing.T, args func(mem string) []string, extra ...string) *source {
	t.Helper()
	if _, err := exec.LookPath(qemuBinary); err != nil {
		t.Fatalf("%v: apt-get install qemu-system-x86", err)
	}
	root, err := os.MkdirTemp("/dev/shm", testDirPrefix())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	s := &source{dir: filepath.Join(root, "a")}
	s.mem = filepath.Join(s.dir, "mem")
	rom, pid, qmp := filepath.Join(root, "rom"), filepath.Join(s.dir, "pid"), filepath.Join(s.dir, "q")
	for _, d := range []string{s.dir, filepath.Join(root, "b")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(rom, firmware(), 0o600); err != nil {
		t.Fatal(err)
	}
	argv := append(args(s.mem), "-name", "counter", "-accel", "tcg", "-nodefaults", "-display", "none", "-vga", "std",
		"-bios", rom, "-qmp", "unix:"+qmp+",server=on,wait=off", "-pidfile", pid, "-daemonize")
	if out, err := exec.CommandContext(within(t, 20*time.Second), qemuBinary, append(argv, extra...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", qemuBinary, err, out)
	}
	raw, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	at, err := startTime(n)
	if err != nil {
		t.Fatal(err)
	}
	if s.proc, err = Adopt(n, at, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(t, s.proc) })
	if s.VM, err = ConnectProcess(within(t, 10*time.Second), qmp, s.proc); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func kill(t *testing.T, p *Process) {
	t.Helper()
	if err := p.Kill(context.Background()); err != nil {
		t.Error(err)
	}
}

func (s *source) inspect(t *testing.T) Description {
	t.Helper()
	d, err := s.Inspect(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// template maps the source's directory to the destination's.
func (s *source) template() Template {
	return Template{Rewrite: []Rewrite{{From: s.dir, To: s.destDir()}}}
}

func (s *source) destDir() string { return filepath.Join(filepath.Dir(s.dir), "b") }
func (s *source) destMem() string { return filepath.Join(s.destDir(), "mem") }

func (s *source) spawnConfig(t *testing.T) SpawnConfig {
	t.Helper()
	qmp := filepath.Join(s.destDir(), "own")
	argv, err := DestinationArgv(s.inspect(t), s.template(), qmp)
	if err != nil {
		t.Fatal(err)
	}
	return SpawnConfig{Argv: argv, LogPath: filepath.Join(s.destDir(), "log"), QMPPath: qmp}
}

// destination is the other side, awaiting the state.
type destination struct {
	*VM
	proc   *Process
	in     *Inbound
	stream *StateStream
}

func (s *source) spawn(t *testing.T) *destination {
	t.Helper()
	ctx := within(t, 20*time.Second)
	v, p, err := Spawn(ctx, s.spawnConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close(); kill(t, p) })
	d := &destination{VM: v, proc: p}
	if d.in, err = v.PrepareDestination(ctx); err != nil {
		t.Fatal(err)
	}
	if s.handed {
		stream, end, err := NewStatePair(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		d.stream = stream
		t.Cleanup(func() { stream.Close() })
		if err := d.in.IncomingFrom(ctx, end); err != nil {
			t.Fatal(err)
		}
		return d
	}
	dial, err := NewStateDialer(s.destDir(), v.UID)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.in.Incoming(ctx, dial.URI()); err != nil {
		t.Fatal(err)
	}
	if d.stream, err = dial.Dial(ctx, v.PID, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.stream.Close() })
	return d
}

// begin starts the migration; nobody reads the stream yet.
func (s *source) begin(t *testing.T) (*Outgoing, *StateStream) {
	t.Helper()
	ctx := within(t, 20*time.Second)
	o, err := s.PrepareSource(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	if s.handed {
		stream, end, err := NewStatePair(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stream.Close() })
		o.AbortWith(stream)
		if err := o.StartMigrateTo(ctx, end); err != nil {
			t.Fatal(err)
		}
		return o, stream
	}
	l, err := ListenState(s.dir, s.UID)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.StartMigrate(ctx, l.URI()); err != nil {
		l.Close()
		t.Fatal(err)
	}
	stream, err := l.Accept(ctx, s.PID, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	o.AbortWith(stream)
	return o, stream
}

// counter reads the guest's word from a memory file.
func counter(t *testing.T, file string) uint32 {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [4]byte
	if _, err := f.ReadAt(b[:], counterAt); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(b[:])
}

// counts waits until the guest has gone on counting from where it is.
func counts(t *testing.T, file string) {
	t.Helper()
	was := counter(t, file)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(10 * time.Second); ; {
		if counter(t, file) != was {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: the guest stands still at %d", file, was)
		}
	}
}

// copyMemory is a real copy into the file that the destination maps already.
func copyMemory(t *testing.T, from, to string) {
	t.Helper()
	a, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if n, err := io.Copy(b, a); err != nil || n != ramSize {
		t.Fatalf("copied %d bytes: %v", n, err)
	}
}

// settings prints capabilities and parameters, to compare.
func settings(t *testing.T, v *VM) string {
	t.Helper()
	var b bytes.Buffer
	for _, q := range []string{"query-migrate-capabilities", "query-migrate-parameters"} {
		var out any
		if err := v.Execute(within(t, 5*time.Second), q, nil, &out); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, out)
	}
	return b.String()
}
