//go:build crashtest

package relocate

import (
	"os"
	"strings"
	"syscall"
	"time"
)

// crashPoint is called when a phase has been entered (journalled and shown). For
// the crash matrix, PAGEWARP_CRASH_AT lists points as "role:phase:action",
// separated by commas. Actions:
//
//	kill        SIGKILL to this process
//	hold=PATH   create PATH.reached, go on when PATH.go exists (at most 60 s)
func crashPoint(role Role, phase Phase) {
	for _, p := range strings.Split(os.Getenv("PAGEWARP_CRASH_AT"), ",") {
		action, ok := strings.CutPrefix(p, string(role)+":"+string(phase)+":")
		if !ok {
			continue
		}
		if action == "kill" {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		}
		if path, ok := strings.CutPrefix(action, "hold="); ok {
			os.WriteFile(path+".reached", nil, 0o600)
			for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
				if _, err := os.Stat(path + ".go"); err == nil {
					break
				}
			}
		}
	}
}
