package floor

import (
	"context"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
)

// streamChunk is the size of one read or write: large enough that the cost of
// the calls vanishes.
const streamChunk = 1 << 20

// Stream measures how fast bytes, a multiple of 1 MiB, go through one
// connection, written from a mapped file and read into a fresh mapped file,
// nothing else. It returns bytes per second, from the first byte asked for to
// the last one in place.
func Stream(ctx context.Context, cpus CPUs, pair Pair, bytes int64, withTLS bool) (float64, error) {
	if bytes <= 0 || bytes%streamChunk != 0 {
		return 0, fmt.Errorf("stream floor over %d bytes: want a multiple of 1 MiB", bytes)
	}
	writer, reader, err := startPair(ctx, cpus, pair, withTLS,
		task{Role: "stream-writer", Bytes: bytes}, task{Role: "stream-reader", Bytes: bytes})
	if err != nil {
		return 0, err
	}
	took, err := reader.wait(time.Microsecond)
	if err != nil {
		writer.stop()
		return 0, err
	}
	if _, err := writer.wait(time.Microsecond); err != nil {
		return 0, err
	}
	return float64(bytes) / took[0].Seconds(), nil
}

// streamFile maps a new file of the stream's size.
func streamFile(bytes int64) ([]byte, error) {
	fd, err := sysmem.CreateMemfd("floor-stream", bytes, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return sysmem.MapShared(fd, 0, bytes, true)
}

// streamWriter sends its file when asked by one byte.
func streamWriter(t *task) ([]uint32, error) {
	b, err := streamFile(t.Bytes)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(b); i += pageSize {
		touch.Fill(b[i:i+pageSize], uint64(i/pageSize), 3)
	}
	c, err := t.conn()
	if err != nil {
		return nil, err
	}
	var ask [1]byte
	if err := c.readFull(ask[:]); err != nil {
		return nil, err
	}
	for ; len(b) > 0; b = b[streamChunk:] {
		if err := c.writeFull(b[:streamChunk]); err != nil {
			return nil, err
		}
	}
	return nil, c.close()
}

// streamReader returns the time that the stream took, in µs. It has the kernel
// allocate the pages of each chunk before it reads into them, which is part of
// the time: pages that fault inside the read hold the socket's lock meanwhile,
// packets are dropped and sent again, and the stream is three to six times
// slower, which would be no floor.
func streamReader(t *task) ([]uint32, error) {
	b, err := streamFile(t.Bytes)
	if err != nil {
		return nil, err
	}
	c, err := t.conn()
	if err != nil {
		return nil, err
	}
	t0 := time.Now()
	if err := c.writeFull([]byte{1}); err != nil {
		return nil, err
	}
	for ; len(b) > 0; b = b[streamChunk:] {
		if err := sysmem.Advise(b[:streamChunk], unix.MADV_POPULATE_WRITE); err != nil {
			return nil, err
		}
		if err := c.readFull(b[:streamChunk]); err != nil {
			return nil, err
		}
	}
	return []uint32{uint32(min(time.Since(t0).Microseconds(), math.MaxUint32))}, nil
}
