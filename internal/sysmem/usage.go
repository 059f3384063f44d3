package sysmem

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Usage is what a process has of its own, in bytes. Pages of files that it has
// mapped, such as a guest's memory, are not its own and do not count.
type Usage struct {
	Anonymous  uint64 `json:"anonymous_bytes"`
	PageTables uint64 `json:"page_table_bytes"`
}

// UsageOf reads it from /proc/PID/status, see proc(5).
func UsageOf(pid int) (Usage, error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return Usage{}, err
	}
	u, err := parseUsage(string(b))
	if err != nil {
		return Usage{}, fmt.Errorf("%s: %w", path, err)
	}
	return u, nil
}

func parseUsage(status string) (u Usage, err error) {
	for _, f := range []struct {
		name string
		to   *uint64
	}{{"RssAnon:", &u.Anonymous}, {"VmPTE:", &u.PageTables}} {
		found := false
		for line := range strings.Lines(status) {
			v, ok := strings.CutPrefix(line, f.name)
			if !ok {
				continue
			}
			kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 54)
			if err != nil {
				return Usage{}, fmt.Errorf("line %q: %w", strings.TrimSpace(line), err)
			}
			*f.to, found = kb<<10, true
		}
		if !found { // a process that has ended has none
			return Usage{}, fmt.Errorf("there is no line %s", f.name)
		}
	}
	return u, nil
}

// FreeHugePages is how many huge pages of a size in bytes are free and promised
// to nobody. The error of a size that the kernel does not have is
// [fs.ErrNotExist].
func FreeHugePages(size int) (uint64, error) {
	dir := fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB/", size>>10)
	var n [2]uint64
	for i, name := range []string{"free_hugepages", "resv_hugepages"} {
		b, err := os.ReadFile(dir + name)
		if err != nil {
			return 0, err
		}
		if n[i], err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil {
			return 0, fmt.Errorf("%s%s: %w", dir, name, err)
		}
	}
	return n[0] - min(n[1], n[0]), nil
}
