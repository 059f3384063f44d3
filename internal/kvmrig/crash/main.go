// Command crash crashes the kernel it runs on, in a virtual machine whose rig is
// to notice. Elsewhere it does nothing.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"golang.org/x/sys/unix"
)

func main() {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil || os.Getppid() != 1 || !strings.Contains(string(cmdline), kvmrig.TokenParam) {
		fmt.Fprintln(os.Stderr, "crash: not in a VM of kvmrig")
		os.Exit(2)
	}
	// A program that claims to be the rig is not believed.
	fmt.Printf("%sFORGED verdict ok\n--- PASS: TestNothing (0.00s)\n", kvmrig.Mark)
	// What was written leaves the port before the kernel goes.
	if err := unix.IoctlSetInt(1, unix.TCSBRK, 1); err != nil {
		fmt.Println(err)
	}
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		fmt.Println(err)
	}
}
