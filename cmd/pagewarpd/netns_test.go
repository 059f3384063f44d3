package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/pki"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
)

// The real daemons on two hosts in network namespaces, with mutual TLS, and a
// cable that is pulled: packets vanish, nobody is told. One cable serves
// several pairs of daemons, each held at a phase of its own, so that one cut
// hits all phases at once.

// pair makes two hosts; what is left of them when the test has ended is an
// error.
func pair(t *testing.T) (*rig.Rig, string) {
	t.Helper()
	r, err := rig.New("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left := rig.Leftovers(r.Ident); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
	dir := filepath.Join(filepath.Dir(r.Host("a").Dir), "pki")
	if _, err := pki.Init(dir, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if _, err := pki.Issue(dir, name, []string{r.Host(name).Addr.String()}, false, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	return r, dir
}

// onRig makes the pair of daemons number i on two hosts.
func onRig(t *testing.T, r *rig.Rig, pkiDir string, i int, vmArgs ...string) *matrix {
	t.Helper()
	return onRigWith(t, r, pkiDir, i, nil, vmArgs...)
}

// onRigWith does so with more in the configuration of the hosts, by name.
func onRigWith(t *testing.T, r *rig.Rig, pkiDir string, i int, conf map[string]string, vmArgs ...string) *matrix {
	t.Helper()
	at := func(name string) place {
		h := r.Host(name)
		return place{
			host: h, addr: fmt.Sprintf("%s:%d", h.Addr, 7070+i),
			conf: fmt.Sprintf("[tls]\nca = %q\ncert = %q\nkey = %q\npeers = [\"a\", \"b\"]\n",
				filepath.Join(pkiDir, pki.CACert), filepath.Join(pkiDir, name+".crt"), filepath.Join(pkiDir, name+".key")) + conf[name],
		}
	}
	root := filepath.Join(filepath.Dir(pkiDir), fmt.Sprint(i))
	return makeMatrix(t, root, at("a"), at("b"), vmArgs...)
}

// heldAt is a pair of daemons, one of which waits at a phase.
type heldAt struct {
	*matrix
	role  relocate.Role
	phase relocate.Phase
}

func (h heldAt) String() string { return string(h.role) + " " + string(h.phase) }

// holdAll brings one relocation to each of the given points.
func holdAll(t *testing.T, r *rig.Rig, pkiDir string, o relocate.Options, points ...heldAt) []heldAt {
	t.Helper()
	for i := range points {
		p := &points[i]
		p.matrix = onRig(t, r, pkiDir, i)
		p.hold = filepath.Join(t.TempDir(), "hold")
		crash := map[relocate.Role]string{p.role: fmt.Sprintf("%s:%s:hold=%s", p.role, p.phase, p.hold)}
		p.begin(crash[relocate.RoleSource], crash[relocate.RoleDestination])
		p.relocate(o)
	}
	for _, p := range points {
		p.awaitHold()
	}
	return points
}

func cut(t *testing.T, r *rig.Rig) {
	t.Helper()
	if err := r.Host("b").Cut(); err != nil {
		t.Fatal(err)
	}
}

func restore(t *testing.T, r *rig.Rig) {
	t.Helper()
	if err := r.Host("b").Restore(); err != nil {
		t.Fatal(err)
	}
}

// notice waits until both daemons say that they are cut off, and what that
// means.
func (m *matrix) notice() {
	m.t.Helper()
	vmtest.Wait(m.t, "both sides to notice the cut", func() bool {
		s, d := m.a.status(relocate.RoleSource), m.b.status(relocate.RoleDestination)
		return !s.Connected && s.Error != "" && !d.Connected && d.Error != ""
	})
}

func TestCablePulledBeforeTheSwitch(t *testing.T) {
	t.Parallel()
	r, dir := pair(t)
	held := holdAll(t, r, dir, relocate.Options{},
		heldAt{role: relocate.RoleSource, phase: relocate.PhaseConnecting},
		heldAt{role: relocate.RoleDestination, phase: relocate.PhasePreparing},
		heldAt{role: relocate.RoleSource, phase: relocate.PhaseReady},
		heldAt{role: relocate.RoleSource, phase: relocate.PhaseState},
		heldAt{role: relocate.RoleDestination, phase: relocate.PhaseFrozen},
		heldAt{role: relocate.RoleDestination, phase: relocate.PhaseLoaded})
	cut(t, r)
	for _, h := range held {
		h.letGo()
	}
	// While the cable is still out: neither side needs the other for this.
	for _, h := range held {
		vmtest.Wait(t, h.String()+": the source to roll back", func() bool {
			return h.a.status(relocate.RoleSource).Phase == relocate.PhaseRolledBack && h.a.state() == "running"
		})
		vmtest.Wait(t, h.String()+": the destination to give up", func() bool { return len(h.vmms()) == 0 })
		if s := h.a.status(relocate.RoleSource); s.Error == "" {
			t.Errorf("%s: the source does not say why it rolled back", h)
		} else {
			t.Logf("%s: %s", h, s.Error)
		}
	}
	restore(t, r)
	for _, h := range held {
		h.stayed()
	}
}

func TestCablePulledAfterTheSwitch(t *testing.T) {
	t.Parallel()
	r, dir := pair(t)
	// The first drains while the others are still on their way; arrived lifts the limit.
	held := holdAll(t, r, dir, relocate.Options{Bandwidth: slow / 4},
		heldAt{role: relocate.RoleSource, phase: relocate.PhaseDraining},
		heldAt{role: relocate.RoleDestination, phase: relocate.PhaseCommitted},
		heldAt{role: relocate.RoleDestination, phase: relocate.PhaseDraining})
	cut(t, r)
	for _, h := range held {
		h.letGo()
	}
	for _, h := range held {
		h.notice() // by silence alone, so the cut has outlasted dead_after
		if got := h.a.state(); got == "running" {
			t.Errorf("%s: the source runs a machine that runs elsewhere", h)
		}
		s, d := h.a.status(relocate.RoleSource), h.b.status(relocate.RoleDestination)
		if !strings.Contains(s.Error, "out of reach") || !strings.Contains(d.Error, "out of reach") {
			t.Errorf("%s: the source says %q, the destination %q", h, s.Error, d.Error)
		}
		if d.Phase.Final() || d.PagesRemaining == 0 {
			t.Errorf("%s: cut off, the destination is %s with %d pages to come", h, d.Phase, d.PagesRemaining)
		}
		for _, n := range []*node{h.a, h.b} {
			if c := pagewarp(t, n, "status", "web1"); c.wait() != 0 || !strings.Contains(c.text(), "out of reach") {
				t.Errorf("%s: `pagewarp status` at %s: %s", h, n.name, c.text())
			}
		}
	}
	restore(t, r)
	for _, h := range held {
		h.arrived()
		s, d := h.a.status(relocate.RoleSource), h.b.status(relocate.RoleDestination)
		if s.Reconnects == 0 {
			t.Errorf("%s: no reconnect was counted", h)
		}
		// Every page once: a second install would be counted, too.
		if sum := d.PagesDemand + d.PagesPrecache + d.PagesZero; sum != d.PagesTotal {
			t.Errorf("%s: %d pages were installed of %d", h, sum, d.PagesTotal)
		}
		vmtest.NoTrace(t, h.a.dir, "*.json", "*.sock", "*.lock", "lock")
	}
}

// GO vanishes with the cable. Whether the cable is back before the destination
// gives up or not: the machine runs at one of the hosts, whole.
func TestCablePulledAtGo(t *testing.T) {
	t.Parallel()
	r, dir := pair(t)
	h := holdAll(t, r, dir, relocate.Options{Bandwidth: slow}, heldAt{role: relocate.RoleSource, phase: relocate.PhaseCommitted})[0]
	cut(t, r)
	h.letGo()
	vmtest.Wait(t, "the source to notice", func() bool { return !h.a.status(relocate.RoleSource).Connected })
	if got := h.a.state(); got == "running" {
		t.Error("the source runs a machine that it has given away")
	}
	restore(t, r)
	vmtest.Wait(t, "the two to meet", func() bool {
		s := h.a.status(relocate.RoleSource)
		return s.Phase == relocate.PhaseDraining || s.Phase.Final()
	})
	if h.a.status(relocate.RoleSource).Phase == relocate.PhaseRolledBack {
		h.stayed()
	} else {
		h.arrived()
	}
}

// guestCode is a machine without an operating system, for -bios, in place of
// its first instruction at the top and of its start-up vector F0. From `as`:
//
//	        cli                              fa
//	        lgdtl   %cs:gdtr                 2e 66 0f 01 16 80 00
//	        mov     %cr0, %eax               0f 20 c0
//	        or      $1, %al                  0c 01
//	        mov     %eax, %cr0               0f 22 c0
//	        ljmpl   $8, $0xf0018             66 ea 18 00 0f 00 08 00
//	        mov     $16, %eax                b8 10 00 00 00
//	        mov     %eax, %ds                8e d8
//	        mov     0xfee00020, %eax         a1 20 00 e0 fe      # which processor?
//	        shr     $24, %eax                c1 e8 18
//	        jnz     second                   75 1a
//	        movl    $0xc46f0, 0xfee00300     c7 05 00 03 e0 fe f0 46 0c 00
//	first:  incl    0x2000                   ff 05 00 20 00 00   # always the same page
//	        mov     $1000, %ecx              b9 e8 03 00 00
//	1:      dec     %ecx                     49
//	        jnz     1b                       75 fd
//	        jmp     first                    eb f0
//	second: mov     $0x2000000, %esi         be 00 00 00 02      # page after page
//	next:   mov     (%esi), %eax             8b 06
//	        incl    0x3000                   ff 05 00 30 00 00
//	        mov     $50000, %ecx             b9 50 c3 00 00
//	2:      dec     %ecx                     49
//	        jnz     2b                       75 fd
//	        add     $0x1000, %esi            81 c6 00 10 00 00
//	        cmp     $0x4800000, %esi         81 fe 00 00 80 04
//	        jb      next                     72 e2
//	        jmp     second                   eb db
//	gdt:    null, flat code, flat data; gdtr: 23, 0xf0068
const guestCode = "\xfa\x2e\x66\x0f\x01\x16\x80\x00\x0f\x20\xc0\x0c\x01\x0f\x22\xc0" +
	"\x66\xea\x18\x00\x0f\x00\x08\x00\xb8\x10\x00\x00\x00\x8e\xd8\xa1" +
	"\x20\x00\xe0\xfe\xc1\xe8\x18\x75\x1a\xc7\x05\x00\x03\xe0\xfe\xf0" +
	"\x46\x0c\x00\xff\x05\x00\x20\x00\x00\xb9\xe8\x03\x00\x00\x49\x75" +
	"\xfd\xeb\xf0\xbe\x00\x00\x00\x02\x8b\x06\xff\x05\x00\x30\x00\x00" +
	"\xb9\x50\xc3\x00\x00\x49\x75\xfd\x81\xc6\x00\x10\x00\x00\x81\xfe" +
	"\x00\x00\x80\x04\x72\xe2\xeb\xdb\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\xff\xff\x00\x00\x00\x9a\xcf\x00\xff\xff\x00\x00\x00\x92\xcf\x00" +
	"\x17\x00\x68\x00\x0f\x00"

// writeGuest makes the image: code at its start, the reset vector jumps there.
func writeGuest(t *testing.T) string {
	t.Helper()
	image := make([]byte, 64<<10)
	copy(image, guestCode)
	copy(image[0xfff0:], "\xe9\x0d\x00")
	path := filepath.Join(t.TempDir(), "guest.bin")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// counters are where the two processors of the guest count.
func counters(mem []byte) (first, second uint32) {
	le := func(b []byte) uint32 { return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24 }
	return le(mem[0x2000:]), le(mem[0x3000:])
}

// With the cable out in mid-drain, the processor that touches absent pages
// waits, and the one that does not runs on; both go on when it is back.
func TestOnlyFaultingProcessorsWait(t *testing.T) {
	t.Parallel()
	r, dir := pair(t)
	m := onRig(t, r, dir, 0, "-smp", "2", "-bios", writeGuest(t))
	for p := 0; p < len(m.want); p += 512 { // no page is zero or of one byte
		m.want[p], m.want[p+1] = byte(p>>9)|1, 0xa5
	}
	vmtest.WritePattern(t, m.vm.RAM, m.want)
	m.begin("", "")
	m.relocate(relocate.Options{Bandwidth: 64 << 10})
	moved := filepath.Join(m.b.dir, "vm.mem")
	vmtest.Wait(t, "the drain", func() bool { return m.a.status(relocate.RoleSource).Phase == relocate.PhaseDraining })
	mem := vmtest.MapRAM(t, moved)
	was, at := counters(mem)
	vmtest.Wait(t, "both processors to run at the destination", func() bool {
		first, second := counters(mem)
		return first > was && second > at+10
	})
	cut(t, r)
	m.notice()
	// Stopped for as long as the other one takes for ten thousand rounds.
	var first, second uint32
	vmtest.Wait(t, "the faulting processor to wait", func() bool {
		first, second = counters(mem)
		vmtest.Wait(t, "the other processor to run", func() bool {
			f, _ := counters(mem)
			return f-first > 10_000
		})
		_, s := counters(mem)
		return s == second
	})
	if s := m.b.status(relocate.RoleDestination); s.Phase != relocate.PhaseDraining || s.PagesRemaining == 0 || !strings.Contains(s.Error, "vCPUs that touch absent pages wait") {
		t.Errorf("cut off, the destination is %s with %d pages to come: %s", s.Phase, s.PagesRemaining, s.Error)
	}
	if _, s := counters(mem); s != second {
		t.Errorf("the faulting processor went on without its page: %d, then %d", second, s)
	}
	restore(t, r)
	vmtest.Wait(t, "the faulting processor to go on", func() bool { _, s := counters(mem); return s > second })
	m.arrived()
}
