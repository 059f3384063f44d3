package qemu

import (
	"fmt"
	"os"
	"strings"
)

// logFile is where a QEMU's standard error goes; the zero value is none.
type logFile struct {
	path string
	from int64 // size when this QEMU was started, bytes
}

// tail is the last 2 KiB, from the start of a line.
func (l logFile) tail() string {
	if l.path == "" {
		return ""
	}
	f, err := os.Open(l.path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 2048
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	from := max(l.from, st.Size()-most)
	buf := make([]byte, most)
	n, _ := f.ReadAt(buf, from) // the end of the file is no error here
	s := string(buf[:n])
	if from > l.from {
		_, s, _ = strings.Cut(s, "\n")
	}
	return strings.TrimSpace(s)
}

// suffix is the tail, worded for the end of an error message.
func (l logFile) suffix() string {
	tail := l.tail()
	if tail == "" {
		return ""
	}
	return fmt.Sprintf("; the end of %s: %s", l.path, tail)
}
