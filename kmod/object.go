package kmod

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ObjectOf returns the name of the object whose node is at path, or "" where path
// is anything else: what decides is the device number, not the path. The error is
// that of looking at path.
func ObjectOf(path string) (name string, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return "", nil
	}
	// Documentation/admin-guide/sysfs-rules.rst: the link leads to the device's
	// folder, which has its name, with ! for /.
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/char/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return "", nil // of a driver without devices in sysfs: not ours
	}
	name, ours := strings.CutPrefix(filepath.Base(link), "pagewarp!")
	if !ours || filepath.Base(filepath.Dir(link)) != "pagewarp" {
		return "", nil
	}
	return name, nil
}

// MapsName is how mappings of an object's memory are called in /proc/PID/maps.
func MapsName(object string) string { return "/pagewarp:" + object }
