package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/pki"
	"github.com/pagewarp/pagewarp/internal/vmtest"
)

// What a destination must refuse, and how the operator gets to know. The
// daemons are the real ones, and so is the operator's command.

// authority issues certificates for 127.0.0.1, as lines of the configuration.
func authority(t *testing.T, made time.Time) func(name string, issued time.Time) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := pki.Init(dir, "test", made); err != nil {
		t.Fatal(err)
	}
	return func(name string, issued time.Time) string {
		t.Helper()
		i, err := pki.Issue(dir, name, []string{"127.0.0.1"}, false, issued)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("[tls]\nca = %q\ncert = %q\nkey = %q\n", i.CA, i.Cert, i.Key)
	}
}

// refused relocates and expects a rollback for reasons that the operator reads.
func (m *matrix) refused(says ...string) {
	m.t.Helper()
	c := pagewarp(m.t, m.a, "relocate", "web1", "--to", m.to)
	for _, s := range says {
		c.exits(3, s)
	}
	m.stayed()
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ours, theirs := authority(t, now), authority(t, now)
	for _, tt := range []struct{ name, a, b, says string }{
		{"destination of another CA", ours("a1", now), theirs("b1", now), "not signed by our CA"},
		{"destination without certificates", ours("a2", now), "", "does not speak TLS"},
		{"source without certificates", "", ours("b3", now), "set [tls]"},
		{"destination not in tls.peers", ours("a4", now) + "peers = [\"other\"]\n", ours("b4", now), `peer "b4" is not in tls.peers`},
		{"source not in tls.peers", ours("a5", now), ours("b5", now) + "peers = [\"other\"]\n", "peer refused our certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := makeMatrix(t, vmtest.Dir(t), place{conf: tt.a}, place{conf: tt.b})
			m.begin("", "")
			m.refused(tt.says)
		})
	}
}

// A certificate runs out under a daemon that serves: the next connection is
// refused, at either side; and the next start of the daemon, too.
func TestCertificateExpires(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ expired, says string }{
		{"destination", "peer's certificate has expired"},
		{"source", "peer refused our certificate"},
	} {
		t.Run(tt.expired, func(t *testing.T) {
			t.Parallel()
			program(t, "pagewarpd") // it may have to be built, while nothing expires
			now := time.Now()
			issue := authority(t, now.Add(-pki.HostValidity))
			end := now.Add(8 * time.Second)
			conf := map[string]string{"source": issue("a", now), "destination": issue("b", now)}
			conf[tt.expired] = issue(tt.expired, end.Add(-pki.HostValidity))
			m := makeMatrix(t, vmtest.Dir(t), place{conf: conf["source"]}, place{conf: conf["destination"]})
			m.begin("", "")
			vmtest.Wait(t, "the certificate to expire", func() bool { return time.Now().After(end) })
			m.refused(tt.says)
			r := pagewarpd(t, "check", "--config", map[string]*node{"source": m.a, "destination": m.b}[tt.expired].conf())
			if r.code != exitError || !strings.Contains(r.err, "issue it again with `pagewarp pki issue "+tt.expired+" --force`") {
				t.Errorf("at its next start the daemon would say %+v", r)
			}
		})
	}
}

// script writes a program that stands before QEMU.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\nexec qemu-system-x86_64 \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDestinationNotFit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, tmpl string
		says       []string
	}{
		// QEMU gives up root before it is asked for a userfaultfd: it has then
		// neither the privilege for the system call nor access to the device.
		{"no userfaultfd permission", `add_args = ["-runas", "nobody"]`,
			[]string{"userfaultfd", "operation not permitted", "vm.unprivileged_userfaultfd=1"}},
		{"machine type unknown", "binary = \"" + script(t, `[ "$1 $2" = "-machine help" ] && { echo Supported machines are:; echo q35 Standard PC; exit; }`) + `"`,
			[]string{"machine type is unknown", "has no pc-i440fx-"}},
		{"machine type different", "set = {machine = \"q35,memory-backend=mem\"}",
			[]string{"device state"}},
		{"QEMU too old", "binary = \"" + script(t, `[ "$1" = "-version" ] && { echo QEMU emulator version 5.0.0; exit; }`) + `"`,
			[]string{"QEMU is too old"}},
		{"QEMU ends at once", "binary = \"" + script(t, `case "$*" in *-incoming*) echo no such luck >&2; exit 3;; esac`) + `"`,
			[]string{"no such luck"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := makeMatrix(t, vmtest.Dir(t), place{}, place{tmpl: tt.tmpl})
			m.begin("", "")
			m.refused(tt.says...)
		})
	}
}
