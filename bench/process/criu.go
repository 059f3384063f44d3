package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/rig"
)

// criuPort is where the page server of a dump listens.
const criuPort = 7998

// criu moves the process by CRIU's lazy pages: all but the private pages goes to
// the destination as images, then the process is restored there over a
// userfaultfd, which CRIU's daemon serves from the page server of the dump.
type criu struct{ name, binary string }

func (c *criu) Name() string  { return c.name }
func (c *criu) Private() bool { return true }

func (c *criu) Available(ctx context.Context) (version, program string, err error) {
	program, err = exec.LookPath(c.binary)
	if err != nil {
		return "", c.binary, fmt.Errorf("there is no CRIU at %s: make the root with `pagewarp bench peers --make-root`, or name another with --qemu-root: %w", c.binary, err)
	}
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	if version, err = criuVersion(string(out), err); err != nil {
		return "", program, fmt.Errorf("ask %s for its version: %w", program, err)
	}
	// Old versions have a check of their own code against the kernel's vDSO that
	// newer kernels fail.
	if out, err = exec.CommandContext(ctx, program, "check", "--feature", "uffd-noncoop").CombinedOutput(); err != nil {
		return version, program, fmt.Errorf("CRIU %s does not run on this kernel: %w: %s", version, err, tail(string(out)))
	}
	return version, program, pipesFor(pipeMaxFile, mayExceed())
}

const (
	pipeMaxFile = "/proc/sys/fs/pipe-max-size"
	// criuPipe is the pipe from which the page server of a lazy dump sends, in
	// bytes: it copies there, by tee(2), what is in front of the pages asked for,
	// too, and fails half-way, with no words to that effect, if that is too small.
	criuPipe = 4 << 20
)

// mayExceed says whether this process may have pipes beyond the limit.
func mayExceed() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	return unix.Capget(&h, &d[0]) == nil && d[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// pipesFor is the error of a machine on which CRIU cannot have its pipe.
func pipesFor(file string, mayExceed bool) error {
	if mayExceed {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err == nil && limit < criuPipe {
		err = fmt.Errorf("CRIU's page server needs a pipe of %d bytes, and this machine grants no CAP_SYS_RESOURCE, without which %d is the limit: sysctl -w fs.pipe-max-size=%[1]d", criuPipe, limit)
	}
	return err
}

// criuVersion reads what criu --version prints: "Version: 4.2.1" and maybe a
// line about git.
func criuVersion(out string, err error) (string, error) {
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Version: "); ok && v != "" {
			return v, nil
		}
	}
	return "", errors.Join(err, fmt.Errorf("it said %q", tail(out)))
}

func tail(s string) string {
	s = strings.TrimSpace(s)
	return s[max(0, len(s)-500):]
}

// criuDirs are the folders of one side.
type criuDirs struct{ images, work string }

func makeCRIUDirs(h *rig.Host) (d criuDirs, err error) {
	d = criuDirs{filepath.Join(h.Dir, "images"), filepath.Join(h.Dir, "work")}
	return d, errors.Join(os.Mkdir(d.images, 0o700), os.Mkdir(d.work, 0o700))
}

// common are the options of each of CRIU's commands. Logging is at warnings, or
// it takes longer than the work; cgroups are the machine's, and both hosts'.
func (d criuDirs) common(log string) []string {
	return []string{"-D", d.images, "-W", d.work, "-o", log, "-v1", "--manage-cgroups=ignore"}
}

// statusFD is the descriptor to which CRIU writes a zero byte when it is ready:
// of a lazy dump, when the process is frozen and its page server listens.
const statusFD = 3

// dumpArgs freeze the process and serve its pages until all were fetched.
func (d criuDirs) dumpArgs(pid int, at string) []string {
	return append([]string{"dump", "-t", strconv.Itoa(pid), "--lazy-pages", "--address", at, "--port", strconv.Itoa(criuPort),
		"--status-fd", strconv.Itoa(statusFD)}, d.common("dump.log")...)
}

// lazyArgs serve the restored process's faults from the dump's page server.
func (d criuDirs) lazyArgs(from string) []string {
	return append([]string{"lazy-pages", "--page-server", "--address", from, "--port", strconv.Itoa(criuPort),
		"--status-fd", strconv.Itoa(statusFD)}, d.common("lazy.log")...)
}

// restoreArgs restore the process, as a child that the command waits for.
func (d criuDirs) restoreArgs() []string {
	return append([]string{"restore", "--lazy-pages"}, d.common("restore.log")...)
}

const criuSettings = "lazy pages without TLS; the images cross the link, too; restored in a process-id namespace of its own, so that its ids are free; logging at errors only; CRIU has no compression and one connection for lazy pages"

func (c *criu) Move(ctx context.Context, j *Job) (m Moved, err error) {
	m.Settings = criuSettings
	src, err1 := makeCRIUDirs(j.A)
	dst, err2 := makeCRIUDirs(j.B)
	if err := errors.Join(err1, err2); err != nil {
		return m, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w%s%s%s", err, lastWords(filepath.Join(src.work, "dump.log")), lastWords(filepath.Join(dst.work, "lazy.log")), lastWords(filepath.Join(dst.work, "restore.log")))
		}
	}()
	m.Started = j.Begin()
	dump, err := startCRIU(ctx, j.A, src, "dump", []string{c.binary}, src.dumpArgs(j.Worker.Pid(), j.A.Addr.String()))
	if err != nil {
		return m, err
	}
	if err := dump.ready(ctx); err != nil {
		return m, err
	}
	m.Frozen = time.Now()
	size, err := copyImages(ctx, j.A, j.B, src.images, dst.images)
	if err != nil {
		return m, fmt.Errorf("bring the images to the destination: %w", err)
	}
	crossed := time.Now()
	lazy, err := startCRIU(ctx, j.B, dst, "lazy-pages", []string{c.binary}, dst.lazyArgs(j.A.Addr.String()))
	if err != nil {
		return m, err
	}
	if err := lazy.ready(ctx); err != nil {
		return m, err
	}
	// The first process of a namespace takes all others in it along when it ends:
	// here that is criu, which waits for the process that it has restored.
	restore, err := startCRIU(ctx, j.B, dst, "restore", []string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--", c.binary}, dst.restoreArgs())
	if err != nil {
		return m, err
	}
	if err := restore.while(ctx, func(ctx context.Context) error { return j.Probe.Resumed(ctx, m.Frozen) }); err != nil {
		return m, err
	}
	for _, p := range []*criuCommand{lazy, dump} {
		if err := restore.while(ctx, p.finished); err != nil {
			return m, err
		}
	}
	m.Completed = time.Now()
	m.BytesReported = size
	m.Notes = append(m.Notes, fmt.Sprintf("frozen %.0f ms after the command; %d KB of images, there %.0f ms later", ms(m.Frozen.Sub(m.Started)), size/1000, ms(crossed.Sub(m.Frozen))))
	return m, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// criuCommand is one of CRIU's commands at work.
type criuCommand struct {
	what   string
	said   string // file with its output
	status *os.File
	done   chan struct{} // closed when it was reaped
	err    error         // how it ended; valid once done is closed
}

// startCRIU starts a command inside a host; prefix ends with the program.
func startCRIU(ctx context.Context, h *rig.Host, d criuDirs, what string, prefix, args []string) (*criuCommand, error) {
	c := &criuCommand{what: "criu " + what, said: filepath.Join(d.work, what+".out"), done: make(chan struct{})}
	out, err := os.Create(c.said)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd := h.Command(ctx, prefix[0], append(prefix[1:], args...)...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, []*os.File{w}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", c.what, err), r.Close())
	}
	c.status = r
	go func() {
		c.err = cmd.Wait()
		r.Close() // wakes a reader
		close(c.done)
	}()
	return c, nil
}

// ready waits for the byte that says so.
func (c *criuCommand) ready(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.status.SetReadDeadline(time.Now()) })
	defer stop()
	var b [1]byte
	if _, err := io.ReadFull(c.status, b[:]); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("wait for %s: %w", c.what, context.Cause(ctx))
		}
		return fmt.Errorf("%s ended before it was ready%s", c.what, lastWords(c.said))
	}
	return nil
}

// finished waits for the command's end, and returns its error.
func (c *criuCommand) finished(ctx context.Context) error {
	select {
	case <-c.done:
		if c.err != nil {
			return fmt.Errorf("%s: %w%s", c.what, c.err, lastWords(c.said))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", c.what, context.Cause(ctx))
	}
}

// while does f, unless the command ends meanwhile, which is an error.
func (c *criuCommand) while(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-c.done:
			cancel(fmt.Errorf("%s has ended: %w%s", c.what, c.err, lastWords(c.said)))
		case <-ctx.Done():
		}
	}()
	return f(ctx)
}

// copyImages copies the files of one folder over the link, one after the other
// on one connection, and returns their size.
func copyImages(ctx context.Context, a, b *rig.Host, from, to string) (size uint64, err error) {
	l, err := a.Listen(ctx, "tcp", net.JoinHostPort(a.Addr.String(), "0"))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	entries, err := os.ReadDir(from)
	if err != nil {
		return 0, err
	}
	sent := make(chan error, 1)
	go func() { sent <- sendImages(l, from, entries) }()
	conn, err := b.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		return 0, errors.Join(err, l.Close(), <-sent)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return size, err
		}
		if !info.Mode().IsRegular() {
			continue
		}
		if err := receiveImage(conn, filepath.Join(to, e.Name()), info.Size()); err != nil {
			return size, errors.Join(err, conn.Close(), <-sent)
		}
		size += uint64(info.Size())
	}
	return size, <-sent
}

func sendImages(l net.Listener, from string, entries []os.DirEntry) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		_, err = io.Copy(conn, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func receiveImage(r io.Reader, path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, r, size)
	return errors.Join(err, f.Close())
}
