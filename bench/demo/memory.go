package demo

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// DaemonBytes is the memory that the side's daemon has for itself now: its
// anonymous pages. Pages of the guest's files that it has mapped are the guest's
// and do not count.
func (s *Side) DaemonBytes() (uint64, error) {
	path := fmt.Sprintf("/proc/%d/status", s.proc.Process.Pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no line RssAnon", path)
}
