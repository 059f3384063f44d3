package demo

import (
	"fmt"

	"github.com/pagewarp/pagewarp/internal/sysmem"
)

// DaemonBytes is the memory that the side's daemon has for itself now: its
// anonymous pages. Pages of the guest's files that it has mapped are the guest's
// and do not count.
func (s *Side) DaemonBytes() (uint64, error) {
	if s.proc == nil {
		return 0, fmt.Errorf("memory of the daemon of host %s: it does not run", s.Name)
	}
	u, err := sysmem.UsageOf(s.proc.Process.Pid)
	return u.Anonymous, err
}
