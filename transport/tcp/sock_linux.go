package tcp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/pagewarp/pagewarp/internal/syspoll"
	"golang.org/x/sys/unix"
)

// sock is a stream socket with vectored I/O. It starts on Go's poller and can
// be switched to blocking system calls. One reader and one writer at a time.
type sock struct {
	net.Conn // the poller's view; closed once the socket is blocking

	rc   syscall.RawConn // of Conn or of file; changed by setBlocking only
	file *os.File        // blocking mode: the duplicate; nil otherwise
	spin time.Duration

	// The closures for RawConn are made once, so that no call allocates.
	rfn, wfn func(fd uintptr) bool
	riov     []unix.Iovec // arguments and results of rfn, owned by the reader
	rn       int
	rerr     unix.Errno
	wiov     []unix.Iovec // the same of wfn, owned by the writer
	wn       int
	werr     unix.Errno
	wflags   int // of sendmsg
	ifn, bfn func(fd uintptr)
	bound    int          // argument of bfn, bytes; owned by the writer
	berr     error        // result of bfn
	info     unix.TCPInfo // result of ifn, owned by the writer
	rone     [1]unix.Iovec
	wone     [1]unix.Iovec
}

// newSock returns nil if nc is not a TCP or unix stream socket.
func newSock(nc net.Conn) (*sock, error) {
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil, nil
	}
	rc, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("get at the socket: %w", err)
	}
	s := &sock{Conn: nc, rc: rc, wflags: unix.MSG_NOSIGNAL}
	s.rfn, s.wfn = s.doRecv, s.doSend
	s.ifn = func(fd uintptr) { tcpInfo(fd, &s.info) }
	s.bfn = func(fd uintptr) { s.berr = boundBuffer(int(fd), s.bound) }
	return s, nil
}

func (s *sock) doRecv(fd uintptr) bool {
	if s.file == nil {
		s.rn, s.rerr = msgIO(unix.SYS_RECVMSG, fd, s.riov, 0, true)
		return s.rerr != unix.EAGAIN
	}
	if s.tryRecv(fd) {
		return true
	}
	if s.spin > 0 {
		for end := time.Now().Add(s.spin); time.Now().Before(end); {
			if s.tryRecv(fd) {
				return true
			}
		}
	}
	syspoll.Readable(int(fd))
	if !s.tryRecv(fd) {
		s.rn, s.rerr = msgIO(unix.SYS_RECVMSG, fd, s.riov, 0, true)
	}
	return true
}

// tryRecv takes what is there without sleeping. It reports false for nothing.
func (s *sock) tryRecv(fd uintptr) bool {
	s.rn, s.rerr = msgIO(unix.SYS_RECVMSG, fd, s.riov, unix.MSG_DONTWAIT, false)
	return s.rerr != unix.EAGAIN
}

func (s *sock) doSend(fd uintptr) bool {
	if s.file != nil {
		s.wn, s.werr = msgIO(unix.SYS_SENDMSG, fd, s.wiov, s.wflags|unix.MSG_DONTWAIT, false)
		if s.werr != unix.EAGAIN {
			return true
		}
	}
	s.wn, s.werr = msgIO(unix.SYS_SENDMSG, fd, s.wiov, s.wflags, true)
	return s.werr != unix.EAGAIN || s.file != nil
}

// recv reads at least one byte into iov.
func (s *sock) recv(iov []unix.Iovec) (int, error) {
	s.riov = iov
	for {
		if err := s.rc.Read(s.rfn); err != nil {
			return 0, err
		}
		switch s.rerr {
		case 0:
			if s.rn == 0 {
				return 0, io.EOF
			}
			return s.rn, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, os.ErrDeadlineExceeded
		default:
			return 0, os.NewSyscallError("recvmsg", s.rerr)
		}
	}
}

// send writes a part of iov, at least one byte.
func (s *sock) send(iov []unix.Iovec) (int, error) {
	s.wiov = iov
	for {
		if err := s.rc.Write(s.wfn); err != nil {
			return 0, err
		}
		switch s.werr {
		case 0:
			return s.wn, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, os.ErrDeadlineExceeded
		default:
			return 0, os.NewSyscallError("sendmsg", s.werr)
		}
	}
}

// Read and Write make a sock fit under crypto/tls.
func (s *sock) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return s.recv(appendIovec(s.rone[:0], p))
}

func (s *sock) Write(p []byte) (int, error) {
	for done := 0; ; {
		if done == len(p) {
			return done, nil
		}
		n, err := s.send(appendIovec(s.wone[:0], p[done:]))
		done += n
		if err != nil {
			return done, err
		}
	}
}

// setBlocking takes the socket off the poller. Nobody may be in a call.
func (s *sock) setBlocking(spin time.Duration) error {
	fd := -1
	var derr error
	err := s.rc.Control(func(p uintptr) { fd, derr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, derr); err != nil {
		return fmt.Errorf("duplicate the socket: %w", err)
	}
	// Closing takes the descriptor out of the poller's epoll set; O_NONBLOCK
	// belongs to the open file, which both share, so it is cleared afterwards.
	s.Conn.Close()
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return fmt.Errorf("make the socket blocking: %w", err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return fmt.Errorf("get at the socket: %w", err)
	}
	s.file, s.rc, s.spin = f, rc, spin
	return nil
}

// Close wakes whoever is in a call. The descriptor itself goes when the last
// call has returned (os.File counts them).
func (s *sock) Close() error {
	if s.file == nil {
		return s.Conn.Close()
	}
	s.rc.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	return s.file.Close()
}

// SetDeadline is both of the following.
func (s *sock) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline bounds the calls that start after it, when blocking.
func (s *sock) SetReadDeadline(t time.Time) error {
	if s.file == nil {
		return s.Conn.SetReadDeadline(t)
	}
	return s.timeout(unix.SO_RCVTIMEO, t)
}

// SetWriteDeadline bounds the calls that start after it, when blocking.
func (s *sock) SetWriteDeadline(t time.Time) error {
	if s.file == nil {
		return s.Conn.SetWriteDeadline(t)
	}
	return s.timeout(unix.SO_SNDTIMEO, t)
}

func (s *sock) timeout(opt int, t time.Time) error {
	var tv unix.Timeval // zero: no limit
	if !t.IsZero() {
		tv = unix.NsecToTimeval(int64(max(time.Until(t), time.Microsecond)))
	}
	return s.control("set the socket's timeout", func(fd int) error {
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &tv)
	})
}

// link returns what the kernel knows of the connection, nothing of a unix socket. The
// rate is that at which the peer has acknowledged data of late, by its estimate
// (tcpi_delivery_rate of tcp_info: samples in which we were the slow ones only ever
// raise it; Cheng and Cardwell, draft-cheng-iccrg-delivery-rate-estimation).
func (w *wire) link() linkState {
	if w.sock == nil || w.base.LocalAddr().Network() != "tcp" {
		return linkState{}
	}
	s := w.sock
	s.info.Delivery_rate = 0
	if s.rc.Control(s.ifn) != nil {
		return linkState{} // a socket that has ended; its writer will see that
	}
	return linkState{
		rate: float64(s.info.Delivery_rate), acked: s.info.Bytes_acked,
		rtt: time.Duration(s.info.Rtt) * time.Microsecond, minRTT: time.Duration(s.info.Min_rtt) * time.Microsecond,
	}
}

func (s *sock) control(what string, f func(fd int) error) error {
	var ferr error
	err := s.rc.Control(func(fd uintptr) { ferr = f(int(fd)) })
	if err = errors.Join(err, ferr); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
