package touch

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// envMark in the environment turns a start of our binary into a touch process.
const envMark = "PAGEWARP_TOUCH_PROCESS"

// MaxThreads is the most threads that may touch at a time in one process.
const MaxThreads = 64

// request is one command; it travels as one packet of JSON, with at most one
// descriptor: the file to map, or the memory for page numbers and latencies.
type request struct {
	ID      uint64
	Op      string
	Addr    uint64
	Len     uint64
	To      uint64
	First   uint64
	Count   uint64
	Seed    uint64
	Page    uint64 // page size in bytes
	Nanos   int64
	Threads int
	Flags   int
	Write   bool
}

// reply answers the request of the same ID, with at most one descriptor.
type reply struct {
	ID    uint64
	Err   string
	Addr  uint64
	Count uint64
}

// SendPacket writes v as JSON and fd (if 0 or more) as one packet.
func SendPacket(c *net.UnixConn, v any, fd int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}

// ReceivePacket reads one packet of JSON into v, and returns the descriptor that came with
// it, or -1.
func ReceivePacket(c *net.UnixConn, v any) (int, error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return -1, err
	}
	fd := -1
	if oobn > 0 {
		if fd, err = rights(oob[:oobn]); err != nil {
			return -1, err
		}
	}
	if n == 0 || flags&unix.MSG_TRUNC != 0 {
		return fd, errors.New("packet of the touch process is empty or cut off")
	}
	return fd, json.Unmarshal(buf[:n], v)
}

func rights(oob []byte) (int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return -1, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			return fd, nil
		}
	}
	return -1, nil
}

// PacketConn makes a connection of a packet socket and closes fd.
func PacketConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "touch-socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d is not a unix socket", fd)
	}
	return u, nil
}
