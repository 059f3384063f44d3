package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/cmd/internal/units"
	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/relocate"
)

// Levels of a finding.
const (
	fine = "ok"
	warn = "warn"
	fail = "FAIL"
)

// finding is the result of one check.
type finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"`
	Found  string `json:"found"`
	Remedy string `json:"remedy,omitempty"`
}

func newDoctor(a *app) *cobra.Command {
	var qemu string
	c := &cobra.Command{
		Use: "doctor", Short: "Check whether this host can send and receive machines", Args: args(cobra.NoArgs),
		Long: `Check whether this host can send and receive machines, as the user that runs
this; run it as the daemon's user (root). Exit code 1 if something is missing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fs := []finding{checkKernel(), checkUserfault(), checkDevice(), checkPtrace(), checkShm("/dev/shm"), checkQEMU(cmd.Context(), qemu), checkKVM(), checkClock(), a.checkDaemon(cmd.Context())}
			err := a.print(fs, func(w io.Writer) {
				for _, f := range fs {
					fmt.Fprintf(w, "%-4s  %-12s %s\n", f.Level, f.Check, f.Found)
					if f.Remedy != "" {
						fmt.Fprintf(w, "      %-12s → %s\n", "", f.Remedy)
					}
				}
			})
			for _, f := range fs {
				if f.Level == fail {
					err = errors.Join(err, &exitError{code: exitFailed})
					break
				}
			}
			return err
		},
	}
	c.Flags().StringVar(&qemu, "qemu", "qemu-system-"+qemuArch(), "the QEMU `PROGRAM` to look at")
	return c
}

func qemuArch() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64"
	}
	return "x86_64"
}

// checkKernel: minor faults on shared memory came with Linux 5.14
// (UFFD_FEATURE_MINOR_SHMEM), and everything else that is needed before.
func checkKernel() finding {
	f := finding{Check: "kernel", Level: fine}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.Level, f.Found = fail, err.Error()
		return f
	}
	f.Found = unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if n, _ := fmt.Sscanf(f.Found, "%d.%d", &major, &minor); n != 2 || major < 5 || major == 5 && minor < 14 {
		f.Level, f.Remedy = fail, "Linux 5.14 is needed for userfaultfd on shared memory"
	}
	return f
}

func checkUserfault() finding {
	f := finding{Check: "userfaultfd", Level: fine, Found: "available, kernel faults (KVM) included"}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno == 0 {
		unix.Close(int(fd)) // nothing was registered
		return f
	}
	f.Level, f.Found = fail, "userfaultfd(2): "+errno.Error()
	switch errno {
	case unix.EPERM:
		f.Remedy = "run as root (CAP_SYS_PTRACE), or `sysctl -w vm.unprivileged_userfaultfd=1`"
	case unix.ENOSYS:
		f.Remedy = "the kernel has no userfaultfd (CONFIG_USERFAULTFD=y), or a container's seccomp profile hides it"
	}
	return f
}

// checkDevice: a host without the module works as well, so its absence is fine.
func checkDevice() finding {
	f := finding{Check: "device", Level: fine}
	c, err := kmod.Open()
	if errors.Is(err, kmod.ErrNoDevice) {
		f.Found = "not there, userfaultfd does its work: " + err.Error()
		return f
	}
	var list []kmod.Stat
	if err == nil {
		defer c.Close()
		list, err = c.List()
	}
	if err != nil {
		f.Level, f.Found, f.Remedy = warn, err.Error(), "without it machines arrive by userfaultfd"
		return f
	}
	f.Found = fmt.Sprintf("loaded, %d objects", len(list))
	var idle []string
	for _, s := range list {
		if pid, err := relocate.ObjectMapper(s.Name); err == nil && pid == 0 {
			idle = append(idle, s.Name)
		}
	}
	if len(idle) > 0 {
		f.Level = warn
		f.Found += ", not mapped by any process: " + strings.Join(idle, " ")
		f.Remedy = "they hold memory; `pagewarp device destroy NAME` frees it, if no machine is about to start on it"
	}
	return f
}

func checkPtrace() finding {
	f := finding{Check: "permissions", Level: fine, Found: "CAP_SYS_PTRACE"}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		f.Level, f.Found = fail, err.Error()
		return f
	}
	if data[0].Effective&(1<<unix.CAP_SYS_PTRACE) == 0 {
		f.Level, f.Found = fail, "no CAP_SYS_PTRACE"
		f.Remedy = "run as root: the daemon takes the userfaultfd from the QEMU process"
	}
	if b, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && strings.TrimSpace(string(b)) == "3" {
		f.Level, f.Found, f.Remedy = fail, "kernel.yama.ptrace_scope is 3: no process can be traced", "set it to 2 or less and reboot (3 cannot be lowered in a running system)"
	}
	return f
}

func checkShm(dir string) finding {
	f := finding{Check: "memory", Level: fine}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		f.Level, f.Found, f.Remedy = fail, fmt.Sprintf("%s: %v", dir, err), "mount a tmpfs there: `mount -t tmpfs tmpfs "+dir+"`"
		return f
	}
	size, free := s.Blocks*uint64(s.Bsize), s.Bavail*uint64(s.Bsize)
	f.Found = fmt.Sprintf("%s: %s, %s free", dir, units.FormatSize(size), units.FormatSize(free))
	if s.Type != unix.TMPFS_MAGIC && s.Type != unix.HUGETLBFS_MAGIC {
		f.Level, f.Remedy = warn, dir+" is no tmpfs; guest memory kept there would go to a disk"
	} else if free < 512<<20 {
		f.Level, f.Remedy = warn, "a machine's memory file must fit: `mount -o remount,size=90% "+dir+"`"
	}
	return f
}

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)[^\s(]*`)

func checkQEMU(ctx context.Context, program string) finding {
	f := finding{Check: "qemu", Level: fine}
	path, err := exec.LookPath(program)
	if err != nil {
		f.Level, f.Found, f.Remedy = fail, err.Error(), "install it (Debian: `apt install qemu-system-x86`), or name it with --qemu"
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second // what a script has started may keep its output open
	out, err := cmd.Output()
	m := qemuVersion.FindStringSubmatch(string(out))
	if err != nil || m == nil {
		f.Level, f.Found, f.Remedy = fail, fmt.Sprintf("%s --version: %v %.100q", path, err, out), "is it a QEMU?"
		return f
	}
	f.Found = path + " " + m[0]
	if major, _ := strconv.Atoi(m[1]); major < 7 { // the pattern has digits only
		f.Level, f.Remedy = warn, "tested from QEMU 7.2 on"
	}
	return f
}

func checkKVM() finding {
	f := finding{Check: "kvm", Level: fine, Found: "/dev/kvm opens"}
	h, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		h.Close() // nothing was done with it
		return f
	}
	f.Level, f.Found = warn, err.Error()
	f.Remedy = "machines with -accel kvm cannot arrive here; enable virtualisation in the firmware and load kvm_intel or kvm_amd"
	if errors.Is(err, fs.ErrPermission) {
		f.Remedy = "run as root or as a member of the group kvm"
	}
	return f
}

// checkClock: the downtime compares the clocks of two hosts.
func checkClock() finding {
	f := finding{Check: "clock", Level: fine, Found: "synchronised"}
	state, err := unix.Adjtimex(&unix.Timex{})
	if err != nil {
		f.Level, f.Found = warn, err.Error()
	} else if state == unix.TIME_ERROR {
		f.Level, f.Found = warn, "not synchronised"
	}
	if f.Level == warn {
		f.Remedy = "run chrony or systemd-timesyncd: the reported downtime compares two hosts' clocks (the move itself does not need them)"
	}
	return f
}

func (a *app) checkDaemon(ctx context.Context) finding {
	f := finding{Check: "daemon", Level: fine}
	v, err := a.daemon().Version(ctx)
	if err != nil {
		f.Level, f.Found = fail, err.Error()
		f.Remedy = "`systemctl start pagewarpd`; another socket is reached with --socket PATH or $" + socketEnv
		if errors.Is(err, fs.ErrPermission) {
			f.Remedy = socketIsRoots
		}
		return f
	}
	f.Found = fmt.Sprintf("%s, pid %d, peers at %s, %s", v.Version, v.PID, strings.Join(v.Listen, " "), v.Security)
	if v.FaultSource != "" {
		f.Found += ", faults by " + v.FaultSource
		if v.FaultReason != "" {
			f.Found += " (" + v.FaultReason + ")"
		}
		if v.FaultSource == "none" {
			f.Level, f.Remedy = fail, "load the module, or set fault_source = \"auto\""
		}
	}
	if v.Warning != "" {
		f.Level, f.Remedy = warn, v.Warning
	}
	return f
}
