package report

import (
	"bufio"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is what the figures were measured on.
type Machine struct {
	CPU         string `json:"cpu"`
	Cores       int    `json:"cores"` // that this process may use
	MemoryBytes uint64 `json:"memory_bytes"`
	Kernel      string `json:"kernel"`
	Arch        string `json:"arch"`
	// LoadAvg is the one-minute load when the report was begun: on a shared
	// machine it says how much the figures are worth.
	LoadAvg float64 `json:"loadavg"`
}

// ThisMachine returns the facts of this machine; what cannot be read is left
// at its zero value.
func ThisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Arch: runtime.GOARCH}
	m.CPU = firstField("/proc/cpuinfo", "model name")
	if kb, ok := strings.CutSuffix(firstField("/proc/meminfo", "MemTotal"), " kB"); ok {
		n, _ := strconv.ParseUint(kb, 10, 64)
		m.MemoryBytes = n << 10
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(b), " ")
		m.LoadAvg, _ = strconv.ParseFloat(first, 64)
	}
	return m
}

func firstField(path, key string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		k, v, ok := strings.Cut(s.Text(), ":")
		if ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// Versions names the software that took part.
type Versions struct {
	Pagewarp string `json:"pagewarp"`
	Go       string `json:"go"`
	Kernel   string `json:"kernel"`
	QEMU     string `json:"qemu,omitempty"`
	Guest    string `json:"guest_kernel,omitempty"`
	Commit   string `json:"-"`
}

// commit is set by the build: -ldflags "-X …/bench/report.commit=…".
var commit string

// BuildVersions returns what the binary and the machine say of themselves,
// with the version of the QEMU that is first in PATH.
func BuildVersions() Versions {
	v := Versions{Go: runtime.Version(), Kernel: ThisMachine().Kernel, Commit: commit, Pagewarp: "devel"}
	if bi, ok := debug.ReadBuildInfo(); ok {
		if bi.Main.Version != "" {
			v.Pagewarp = bi.Main.Version
		}
		modified := false
		for _, s := range bi.Settings {
			switch {
			case s.Key == "vcs.revision" && v.Commit == "":
				v.Commit = s.Value
			case s.Key == "vcs.modified":
				modified = s.Value == "true"
			}
		}
		if modified && v.Commit != "" && commit == "" {
			v.Commit += "-modified"
		}
	}
	if v.Commit == "" {
		v.Commit = "unknown"
	}
	v.QEMU = QEMUVersion("qemu-system-x86_64")
	return v
}

// QEMUVersion returns the version that the QEMU binary reports, or "".
func QEMUVersion(binary string) string {
	out, err := exec.Command(binary, "--version").Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(line, "QEMU emulator version ")
}
