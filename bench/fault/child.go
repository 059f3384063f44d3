package fault

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// envTask in the environment turns a start of our binary into a process of an
// Engine.
const envTask = "PAGEWARP_ENGINE_TASK"

const (
	pageSize = 4096
	hugeSize = 2 << 20
	regionID = 1
	// maxRegion is the largest region, in bytes.
	maxRegion = 1 << 40
)

// task is what such a process is told at its start.
type task struct {
	Role     string // "server" or "daemon"
	Pages    uint64
	PageSize uint32 // bytes
	Addr     string // server: dials it; daemon: listens on it
	Mapping  uint64 // daemon: address of the memory in the touching process
	Demand   int    // channels
	Precache int    // channels
	Codec    string
	RDMA     string // device; empty is TCP
	Reserve  bool
	Land     string
	// LentBytes is that of Options.
	LentBytes int
	Cert      []byte // PEM; empty is no TLS
	Key       []byte
}

// request is one line to a process, reply one line from it.
type request struct {
	Op string
}

type reply struct {
	Err   string
	Addr  string
	Stats Stats
}

// Main is a process of an Engine, if this process was started as one, and then
// never returns; else it returns at once.
func Main() {
	s := os.Getenv(envTask)
	if s == "" {
		return
	}
	var t task
	err := json.Unmarshal([]byte(s), &t)
	if err == nil {
		switch t.Role {
		case "server":
			err = t.serve()
		case "daemon":
			err = t.faultDaemon()
		default:
			err = errors.New("there is no such role")
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s of the benchmark: %v\n", t.Role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (t *task) region() transport.Region {
	return transport.Region{ID: regionID, Name: "bench", Pages: t.Pages, PageSize: t.PageSize}
}

// tls returns the configuration for either side, nil without TLS.
func (t *task) tls() (*tls.Config, error) {
	if len(t.Cert) == 0 {
		return nil, nil
	}
	pair, err := tls.X509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(t.Cert) {
		return nil, errors.New("the certificate is not PEM")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ServerName: floor.TLSName,
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}, nil
}

// tuning is that of the daemons (package relocate).
func (t *task) tuning() tcp.Tuning { return tcp.Tuning{BlockingIO: true} }

// child is a process of an Engine as its parent sees it.
type child struct {
	role string
	cmd  *exec.Cmd
	in   io.WriteCloser

	mu  sync.Mutex // one request at a time
	out *bufio.Reader
}

// Command makes a command that will run at one of the two hosts.
type Command func(ctx context.Context, name string, args ...string) *exec.Cmd

// start starts a process with files as its descriptors from 3 on.
func start(ctx context.Context, command Command, t task, files ...*os.File) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	if command == nil {
		command = exec.CommandContext
	}
	cmd := command(ctx, self)
	cmd.Env = append(os.Environ(), envTask+"="+string(b))
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = files
	c := &child{role: t.Role, cmd: cmd}
	out, err := cmd.StdoutPipe()
	if err == nil {
		c.in, err = cmd.StdinPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start the %s of the benchmark: %w", t.Role, err)
	}
	c.out = bufio.NewReader(out)
	return c, nil
}

// read returns the next reply.
func (c *child) read() (r reply, err error) {
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return r, fmt.Errorf("the %s of the benchmark has ended: %w (is fault.Main called first in main or TestMain?)", c.role, err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("the %s of the benchmark said %q: %w", c.role, line, err)
	}
	if r.Err != "" {
		return r, fmt.Errorf("the %s of the benchmark: %s", c.role, r.Err)
	}
	return r, nil
}

// call sends one request and waits for its reply.
func (c *child) call(op string) (reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := json.NewEncoder(c.in).Encode(request{op}); err != nil {
		return reply{}, fmt.Errorf("tell the %s of the benchmark: %w", c.role, err)
	}
	return c.read()
}

// stop ends the process and waits for its end.
func (c *child) stop() {
	// It fails only if the process has ended, which is what is wanted.
	_ = c.cmd.Process.Kill()
	c.in.Close()
	_ = c.cmd.Wait()
}

// say writes one reply to the parent.
func say(r reply) error { return json.NewEncoder(os.Stdout).Encode(r) }

// listen answers the parent's requests until it is gone.
func listen(f func(op string) (reply, error)) error {
	d := json.NewDecoder(os.Stdin)
	for {
		var q request
		if err := d.Decode(&q); err != nil {
			return nil // the parent has gone
		}
		r, err := f(q.Op)
		if err != nil {
			r.Err = err.Error()
		}
		if err := say(r); err != nil {
			return err
		}
	}
}

// usage is what this process has for itself.
func usage() (sysmem.Usage, error) { return sysmem.UsageOf(os.Getpid()) }
