package sysmem

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mapping is one line of /proc/PID/maps.
type Mapping struct {
	Start, End uint64 // addresses, in bytes; End is exclusive
	Offset     uint64 // of Start in the file, in bytes
	Perms      string // as "rw-s"
	ID         FileID // zero for anonymous memory
	Path       string // as the kernel prints it; empty for anonymous memory
}

// Len is the length of the mapping in bytes.
func (m Mapping) Len() uint64 { return m.End - m.Start }

// Shared reports whether writes reach the file.
func (m Mapping) Shared() bool { return len(m.Perms) == 4 && m.Perms[3] == 's' }

// Maps returns all mappings of process pid in the order of addresses.
func Maps(pid int) ([]Mapping, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		return nil, fmt.Errorf("list mappings of process %d: %w", pid, err)
	}
	defer f.Close()
	var ms []Mapping
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 0, 8<<10), 64<<10) // a path may have PATH_MAX bytes, escaped
	for sc.Scan() {
		m, err := parseMapping(sc.Text())
		if err != nil {
			return nil, fmt.Errorf("list mappings of process %d: %w", pid, err)
		}
		ms = append(ms, m)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("list mappings of process %d: %w", pid, err)
	}
	return ms, nil
}

// parseMapping reads "start-end perms offset major:minor inode   path".
func parseMapping(line string) (Mapping, error) {
	var m Mapping
	bad := fmt.Errorf("line %q is not of the form of /proc/PID/maps", line)
	var field [5]string
	rest := line
	for i := range field {
		var ok bool
		field[i], rest, ok = strings.Cut(rest, " ")
		if !ok && i < 4 {
			return m, bad
		}
	}
	m.Path = strings.TrimLeft(rest, " ")
	lo, hi, ok := strings.Cut(field[0], "-")
	if !ok || len(field[1]) != 4 {
		return m, bad
	}
	m.Perms = field[1]
	major, minor, ok := strings.Cut(field[3], ":")
	if !ok {
		return m, bad
	}
	var maj, mnr uint64
	for _, v := range []struct {
		s    string
		base int
		to   *uint64
	}{
		{lo, 16, &m.Start}, {hi, 16, &m.End}, {field[2], 16, &m.Offset},
		{major, 16, &maj}, {minor, 16, &mnr}, {field[4], 10, &m.ID.Ino},
	} {
		n, err := strconv.ParseUint(v.s, v.base, 64)
		if err != nil {
			return m, bad
		}
		*v.to = n
	}
	if m.End <= m.Start {
		return m, bad
	}
	m.ID.Dev = unix.Mkdev(uint32(maj), uint32(mnr))
	return m, nil
}

// FileMappings returns the mappings of the file id in process pid, in the order
// of addresses; none is no error. Where the file system prints another device
// number than stat(2) gives (btrfs, overlayfs), the candidates are looked at
// through /proc/PID/map_files, which needs CAP_SYS_ADMIN.
func FileMappings(pid int, id FileID) ([]Mapping, error) {
	all, err := Maps(pid)
	if err != nil {
		return nil, err
	}
	var out, maybe []Mapping
	for _, m := range all {
		switch {
		case m.ID == id:
			out = append(out, m)
		case m.ID.Ino == id.Ino && id.Ino != 0:
			maybe = append(maybe, m)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	for _, m := range maybe {
		var st unix.Stat_t
		path := fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, m.Start, m.End)
		if unix.Stat(path, &st) == nil && (FileID{uint64(st.Dev), st.Ino}) == id {
			out = append(out, m)
		}
	}
	return out, nil
}
