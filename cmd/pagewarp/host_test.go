package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/pki"
)

func TestPKI(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if r := pagewarp(t, "pki", "issue", "hostA", "--dir", dir); r.code != exitFailed || !strings.Contains(r.err, "pagewarp pki init --dir "+dir) {
		t.Errorf("without authority: %+v", r)
	}
	if r := pagewarp(t, "pki", "init", "--dir", dir); r.code != 0 || !strings.Contains(r.out, "valid until") {
		t.Fatalf("%+v", r)
	}
	r := pagewarp(t, "pki", "issue", "hostA", "--dir", dir, "--san", "hostA.example.org", "--san", "10.0.0.1")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	// What is printed to be pasted must be a configuration that works.
	_, lines, _ := strings.Cut(r.out, "[tls]")
	c, err := config.Parse("printed", "[tls]"+lines)
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Open(pki.Files{CA: c.TLS.CA, Cert: c.TLS.Cert, Key: c.TLS.Key}, nil); err != nil {
		t.Error(err)
	}
	if r := pagewarp(t, "pki", "issue", "hostA", "--dir", dir); r.code != exitFailed || !strings.Contains(r.err, "--force") {
		t.Errorf("a second time: %+v", r)
	}
	if r := pagewarp(t, "pki", "issue", "hostA", "--dir", dir, "--force"); r.code != 0 {
		t.Errorf("with --force: %+v", r)
	}
	if r := pagewarp(t, "pki", "show", "--dir", dir); r.code != 0 || !strings.Contains(r.out, "authority") || !strings.Contains(r.out, "hostA") || !strings.Contains(r.out, "824") {
		t.Errorf("%+v", r)
	}
	var es []pki.Entry
	if r := pagewarp(t, "pki", "show", "--dir", dir, "--json"); json.Unmarshal([]byte(r.out), &es) != nil || len(es) != 2 || strings.Contains(r.out, "null") {
		t.Errorf("%+v", r)
	}
}

// script writes a program that prints text.
func script(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(p, []byte("#!/bin/sh\necho '"+text+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDoctor(t *testing.T) {
	_, sock := serve(t)
	var fs []finding
	r := pagewarp(t, "doctor", "--json", "--socket", sock, "--qemu", script(t, "QEMU emulator version 7.2.19 (Debian)"))
	if err := json.Unmarshal([]byte(r.out), &fs); err != nil {
		t.Fatal(err, r)
	}
	failed := false
	for _, f := range fs {
		failed = failed || f.Level == fail
		if f.Level != fine && f.Remedy == "" {
			t.Errorf("no remedy: %+v", f)
		}
		if (f.Check == "daemon" || f.Check == "qemu") && f.Level != fine {
			t.Errorf("%+v", f)
		}
	}
	if failed != (r.code == exitFailed) || len(fs) != 9 {
		t.Errorf("exit code %d for %+v", r.code, fs)
	}
	r = pagewarp(t, "doctor", "--socket", sock+"x", "--qemu", "/nonexistent/qemu")
	if r.code != exitFailed || !strings.Contains(r.out, "apt install") || !strings.Contains(r.out, "systemctl start pagewarpd") || r.err != "" {
		t.Errorf("%+v", r)
	}
}

func TestDoctorChecks(t *testing.T) {
	for text, level := range map[string]string{
		"QEMU emulator version 7.2.19 (Debian 1:7.2)": fine, "QEMU emulator version 11.1.0": fine,
		"QEMU emulator version 6.2.0": warn, "hello": fail,
	} {
		if f := checkQEMU(t.Context(), script(t, text)); f.Level != level {
			t.Errorf("%s: %+v", text, f)
		}
	}
	if f := checkShm("/nonexistent"); f.Level != fail || f.Remedy == "" {
		t.Errorf("%+v", f)
	}
	if f := checkShm("/proc"); f.Level != warn {
		t.Errorf("%+v", f)
	}
}

func TestVersion(t *testing.T) {
	_, sock := serve(t)
	if r := pagewarp(t, "version", "--socket", sock); r.code != 0 || !strings.Contains(r.out, "pid 7") {
		t.Errorf("%+v", r)
	}
	if r := pagewarp(t, "version", "--socket", sock+"x"); r.code != 0 || !strings.Contains(r.out, "unreachable") {
		t.Errorf("%+v", r)
	}
}

// TestStrangeDaemon: something else answers on the socket.
func TestStrangeDaemon(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nhi"))
			c.Close()
		}
	}()
	defer func() { l.Close(); <-done }()
	if r := pagewarp(t, "vm", "list", "--socket", sock); r.code == 0 || r.err == "" {
		t.Errorf("%+v", r)
	}
}
