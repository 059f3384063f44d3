package engine

import (
	"fmt"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
)

// roomFor refuses a load of which this machine cannot hold so many MiB at each of the
// two hosts: else its kernel would end something, and maybe not the benchmark.
func roomFor(mib int) error {
	free, err := sysmem.Available()
	if err != nil {
		return err
	}
	if need := 2 * uint64(mib) << 20; need > uint64(max(free, 0)) {
		return fmt.Errorf("a load that takes %d MiB at each of two hosts takes %s, and this machine has %s to give: give the load a smaller ws", mib, humanize.IBytes(need), humanize.IBytes(uint64(max(free, 0))))
	}
	return nil
}

// warmHost takes and touches so many bytes of this machine's free memory, at most
// half of what is free, and gives them back. Where the machine is a virtual one
// itself, the first touch of a page that its hypervisor has not backed, or was given
// back by free page reporting, takes microseconds: here 6.7 µs a page of a file in
// memory in the place of 2.9. Which engine would pay for them is chance, so none does.
func warmHost(bytes uint64) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("sysinfo: %w", err)
	}
	bytes = min(bytes, info.Freeram*uint64(info.Unit)/2) / uint64(sysmem.PageSize) * uint64(sysmem.PageSize)
	if bytes == 0 {
		return nil
	}
	mem, err := sysmem.MapAnonymous(int64(bytes))
	if err != nil {
		return err
	}
	for i := 0; i < len(mem); i += sysmem.PageSize {
		mem[i] = 1
	}
	return sysmem.Unmap(mem)
}
