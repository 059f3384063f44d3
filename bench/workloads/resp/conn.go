package resp

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
)

const (
	maxValue    = 1 << 20
	valueHeader = 16 // key, version, checksum
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// conn is one connection. Not for concurrent use.
type conn struct {
	net.Conn
	in  *bufio.Reader
	out []byte
}

// serverError is what the server answered with.
type serverError string

func (e serverError) Error() string { return "the server said " + string(e) }

func (c *conn) command(args ...[]byte) error {
	c.out = fmt.Appendf(c.out[:0], "*%d\r\n", len(args))
	for _, a := range args {
		c.out = fmt.Appendf(c.out, "$%d\r\n", len(a))
		c.out = append(append(c.out, a...), '\r', '\n')
	}
	_, err := c.Write(c.out)
	return err
}

// reply reads one reply: a simple string or bulk string into dst, nil for the
// null bulk string.
func (c *conn) reply(dst []byte) ([]byte, error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line, whole := strings.CutSuffix(line, "\r\n")
	if !whole || line == "" {
		return nil, fmt.Errorf("reply %.40q: not of this protocol", line)
	}
	switch line[0] {
	case '+':
		return append(dst[:0], line[1:]...), nil
	case '-':
		return nil, serverError(line[1:])
	case '$':
		n, err := strconv.Atoi(line[1:])
		if n == -1 && err == nil {
			return nil, nil
		}
		if err != nil || n < 0 || n > maxValue {
			return nil, fmt.Errorf("reply %.40q: want a length from 0 to %d", line, maxValue)
		}
		if cap(dst) < n+2 {
			dst = make([]byte, n+2)
		}
		dst = dst[:n+2]
		if _, err := io.ReadFull(c.in, dst); err != nil {
			return nil, err
		}
		if string(dst[n:]) != "\r\n" {
			return nil, fmt.Errorf("a reply of %d bytes goes on with %q", n, dst[n:])
		}
		return dst[:n], nil
	}
	return nil, fmt.Errorf("reply %.40q: not one of GET or SET", line)
}

// value fills dst, which must hold the header, with the value of a key in a
// version; half of it no codec can shrink.
func value(dst []byte, key uint64, version uint32) {
	binary.LittleEndian.PutUint64(dst, key)
	binary.LittleEndian.PutUint32(dst[8:], version)
	r := workset.NewRandom(key<<32 ^ uint64(version))
	body := dst[valueHeader:]
	for i := range body {
		body[i] = byte(i)
	}
	for i := 0; i+8 <= len(body)/2; i += 8 {
		binary.LittleEndian.PutUint64(body[i:], r.Next())
	}
	binary.LittleEndian.PutUint32(dst[12:], crc32.Checksum(body, castagnoli))
}

// check says what is wrong with a value.
func check(v []byte, key uint64, version uint32) error {
	if len(v) < valueHeader {
		return fmt.Errorf("key %d has a value of %d bytes", key, len(v))
	}
	gotKey, gotVersion := binary.LittleEndian.Uint64(v), binary.LittleEndian.Uint32(v[8:])
	sum := binary.LittleEndian.Uint32(v[12:])
	switch got := crc32.Checksum(v[valueHeader:], castagnoli); {
	case gotKey != key || gotVersion != version:
		return fmt.Errorf("key %d is version %d of key %d, want version %d", key, gotVersion, gotKey, version)
	case got != sum:
		return fmt.Errorf("the value of key %d has the checksum %08x, want %08x", key, got, sum)
	}
	return nil
}
