package tcp

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// scratch is memory outside the Go heap that grows to what was asked for.
type scratch struct{ b []byte }

// get returns n bytes with any content, valid until the next get or free.
func (s *scratch) get(n int) ([]byte, error) {
	if n > len(s.b) {
		s.free()
		size := 64 << 10
		for size < n {
			size *= 2
		}
		b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return nil, fmt.Errorf("map %d bytes of scratch memory: %w", size, err)
		}
		s.b = b
	}
	return s.b[:n], nil
}

func (s *scratch) free() {
	if s.b != nil {
		unix.Munmap(s.b)
		s.b = nil
	}
}
