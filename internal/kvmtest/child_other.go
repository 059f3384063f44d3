//go:build !amd64

package kvmtest

import (
	"fmt"
	"os"
	"runtime"
)

// Main ends a KVM process with a message: its guest is x86 code.
func Main() {
	if os.Getenv(envMark) != "" {
		fmt.Fprintln(os.Stderr, "KVM process: the test guest is for amd64, not", runtime.GOARCH)
		os.Exit(2)
	}
}
