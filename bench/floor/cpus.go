package floor

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// CPUs says where the two ends of a measurement run. Two hosts have their own
// CPUs; on one machine the scheduler may put both ends on one CPU, where a
// wake-up costs a tenth of that of an idle one, or on two, and it changes its
// mind. So both ends are pinned, for the floors as for what is compared with
// them. The zero value leaves it to the scheduler.
type CPUs struct {
	Pinned bool `json:"pinned"`
	// Source runs the page server, Destination all else.
	Source      int `json:"source"`
	Destination int `json:"destination"`
}

// PickCPUs takes the first two CPUs that this process may use; with only one,
// nothing is pinned.
func PickCPUs() (CPUs, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return CPUs{}, fmt.Errorf("ask for the CPUs of this process: %w", err)
	}
	var found []int
	for i := 0; i < 1024 && len(found) < 2; i++ {
		if set.IsSet(i) {
			found = append(found, i)
		}
	}
	if len(found) < 2 {
		return CPUs{}, nil
	}
	return CPUs{Pinned: true, Destination: found[0], Source: found[1]}, nil
}

// AtSource runs f so that the processes it starts run at the source's end.
func (c CPUs) AtSource(f func() error) error { return c.on(c.Source, f) }

// AtDestination runs f so that the processes it starts run at the destination's
// end.
func (c CPUs) AtDestination(f func() error) error { return c.on(c.Destination, f) }

// on runs f on a thread that is pinned for as long: a child process inherits
// the affinity of the thread that started it.
func (c CPUs) on(cpu int, f func() error) error {
	if !c.Pinned {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	err := f()
	if rerr := unix.SchedSetaffinity(0, &before); rerr != nil && err == nil {
		err = fmt.Errorf("unpin from CPU %d: %w", cpu, rerr)
	}
	return err
}
