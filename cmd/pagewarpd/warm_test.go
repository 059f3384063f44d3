package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
)

// TestDaemonKilledInAWarmDrain kills a daemon by SIGKILL while a machine arrives
// of whose memory a third is there otherwise, a third is right, and the rest is
// empty. Its successor knows nothing of candidates and finishes.
func TestDaemonKilledInAWarmDrain(t *testing.T) {
	for _, role := range []relocate.Role{relocate.RoleSource, relocate.RoleDestination} {
		t.Run(string(role), func(t *testing.T) {
			t.Parallel()
			m := makeMatrix(t, vmtest.Dir(t), place{}, place{})
			m.proxy = vmtest.StartProxy(t, m.b.addr)
			m.to = m.proxy.Addr()
			twin := filepath.Join(m.root, "twin", "ram.mem")
			makeTwin(t, m.vm.RAM, twin)
			conf, err := os.OpenFile(m.b.conf(), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(conf, "\n[cache]\ndir = %q\nsize = \"1G\"\nallow = [%q]\n", filepath.Join(m.root, "cache"), filepath.Dir(twin))
			if err := conf.Close(); err != nil {
				t.Fatal(err)
			}
			m.begin("", "")
			m.relocate(relocate.Options{Bandwidth: slow, Warm: twin})
			vmtest.Wait(t, "candidates to be confirmed", func() bool {
				s := m.b.status(relocate.RoleDestination)
				return s.Phase == relocate.PhaseDraining && s.PagesSame > 100 && s.PagesRemaining > 1000
			})
			n := m.a
			if role == relocate.RoleDestination {
				n = m.b
			}
			if err := n.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			n.awaitDeath()
			n.start("")
			m.arrived()
		})
	}
}

// makeTwin writes a file with the memory of a machine, but of every three pages
// one with other content and one left out.
func makeTwin(t *testing.T, ram, twin string) {
	t.Helper()
	if err := os.Mkdir(filepath.Dir(twin), 0o700); err != nil {
		t.Fatal(err)
	}
	b := append([]byte(nil), vmtest.MapRAM(t, ram)...)
	for at := 0; at < len(b); at += 4096 {
		switch at / 4096 % 3 {
		case 1:
			b[at+100] ^= 0xff
		case 2:
			clear(b[at : at+4096])
		}
	}
	if err := os.WriteFile(twin, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
