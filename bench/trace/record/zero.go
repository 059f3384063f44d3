package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// zeroRuns returns the runs of pages of a file that read as zero: [first, count].
func zeroRuns(path string) (runs [][2]uint64, pages uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("the source's memory: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	pages = uint64(info.Size()) / pageSize
	buf, zero := make([]byte, 256*pageSize), make([]byte, pageSize)
	add := func(first, count uint64) {
		if n := len(runs); n > 0 && runs[n-1][0]+runs[n-1][1] == first {
			runs[n-1][1] += count
		} else if count > 0 {
			runs = append(runs, [2]uint64{first, count})
		}
	}
	for at := uint64(0); at < pages; {
		data, err := unix.Seek(int(f.Fd()), int64(at*pageSize), unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			add(at, pages-at)
			break
		}
		if err != nil {
			return nil, 0, fmt.Errorf("find data in %s: %w", path, err)
		}
		first := uint64(data) / pageSize
		add(at, first-at)
		n, err := f.ReadAt(buf, int64(first*pageSize))
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
		n = n / pageSize * pageSize
		if n == 0 {
			break
		}
		for i := 0; i < n; i += pageSize {
			if bytes.Equal(buf[i:i+pageSize], zero) {
				add(first+uint64(i)/pageSize, 1)
			}
		}
		at = first + uint64(n)/pageSize
	}
	return runs, pages, nil
}
