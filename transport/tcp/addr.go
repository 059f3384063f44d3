package tcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
)

// splitAddr reads "host:port" or "unix:/path".
func splitAddr(addr string) (network, address string, err error) {
	if p, ok := strings.CutPrefix(addr, "unix:"); ok {
		if p == "" {
			return "", "", fmt.Errorf("address %q has no path; want unix:/path", addr)
		}
		return "unix", p, nil
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return "", "", fmt.Errorf("address %q is neither host:port nor unix:/path: %w", addr, err)
	}
	return "tcp", addr, nil
}

// listenNet opens the listening socket. A unix socket's file is made with mode
// 0600; one that is left over from a dead process is replaced.
func listenNet(addr string) (net.Listener, error) {
	network, address, err := splitAddr(addr)
	if err != nil {
		return nil, err
	}
	if network == "tcp" {
		return net.Listen(network, address)
	}
	ln, err := listenUnix(address)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(address); err != nil {
			return nil, err
		}
		ln, err = listenUnix(address)
	}
	return ln, err
}

// listenUnix binds in a private directory beside the path and renames the
// socket into place, so that there is no moment at which it exists with a wider
// mode than 0600. Changing the umask instead would hit the whole process.
func listenUnix(path string) (net.Listener, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("listen on %s: %w", path, syscall.EADDRINUSE)
	}
	dir, err := os.MkdirTemp(dirOf(path), ".pw")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer os.RemoveAll(dir)
	tmp := dir + "/s"
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	if err = os.Chmod(tmp, 0o600); err == nil {
		err = os.Link(tmp, path) // unlike rename, fails if somebody was faster
	}
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &unixListener{UnixListener: ln, path: path}, nil
}

func dirOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[:i]
	} else if i == 0 {
		return "/"
	}
	return "."
}

// unixListener removes its file when it closes.
type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		os.Remove(l.path)
	}
	return err
}

// removeStale removes the socket at path if nobody listens on it.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("listen on %s: it exists and is not a socket; remove it or choose another path", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("listen on %s: another process is listening there", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("listen on %s: cannot tell whether the socket there is in use: %w", path, err)
	}
	return os.Remove(path)
}

func dialNet(ctx context.Context, addr string) (net.Conn, error) {
	network, address, err := splitAddr(addr)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	var oe *net.OpError
	if errors.As(err, &oe) && oe.Err != nil {
		err = oe.Err // the rest is the address, which the caller says
	}
	return nc, err
}
