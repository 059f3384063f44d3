package sched

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Monitor is the slack that QuietMonitor is to be given. By so much the runtime's
// monitor may be late in what it is for: to take a processor from a thread that
// sleeps in a system call, or from a goroutine that has run for 10 ms. With processors
// in reserve (GOMAXPROCS above the number of CPUs) neither is waited for.
const Monitor = 500 * time.Microsecond

// QuietMonitor lets the kernel wake the monitor thread of Go's runtime (sysmon) up to
// slack later than it asks for, and than the 50 µs that the kernel allows itself by
// default. While threads come and go in system calls it wants to be woken every 20 µs.
// Each time costs up to 20 µs of a CPU (perf sched, during a switch-over on two CPUs, two
// daemons), which the guest and its pages need. It takes CAP_SYS_NICE.
func QuietMonitor(slack time.Duration) error {
	tid, err := monitorThread()
	if err != nil {
		return fmt.Errorf("find the runtime's monitor thread: %w", err)
	}
	// By the thread's own number, which /proc knows though it does not list it: the
	// folder of a process's threads has no such file.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid), []byte(strconv.FormatInt(slack.Nanoseconds(), 10)), 0); err != nil {
		return fmt.Errorf("timer slack of the runtime's monitor thread: %w (CAP_SYS_NICE allows it)", err)
	}
	return nil
}

// usualSlack gives the calling thread the kernel's default slack, 50 µs: one that the
// monitor has made was born with the monitor's.
func usualSlack() {
	unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(50*time.Microsecond), 0, 0, 0) // cannot fail
}

// monitorThread is the first thread that the runtime has made, before anything of the
// program ran (runtime.main, src/runtime/proc.go): the kernel lists threads in the
// order of their making.
func monitorThread() (int, error) {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(2)
	if err != nil {
		return 0, err
	}
	if len(names) < 2 {
		return 0, fmt.Errorf("the process has %d threads", len(names))
	}
	return strconv.Atoi(names[1])
}
