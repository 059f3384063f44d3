package floor

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// envTask in the environment turns a start of our binary into a floor process.
const envTask = "PAGEWARP_FLOOR_TASK"

// errEnd: the other side has closed.
var errEnd = errors.New("connection ended")

// task is what a floor process is told; its descriptor is number 3.
type task struct {
	Role  string
	Count int    // round trips, or faults
	Warm  int    // round trips before the first that counts
	Bytes int64  // of a stream
	Last  uint64 // address of the fault that ends the fault server
	Cert  []byte // PEM, to run over TLS
	Key   []byte // PEM, server only
}

var roles = map[string]func(*task) ([]uint32, error){
	"fault-server":  faultServer,
	"rtt-server":    rttServer,
	"rtt-client":    rttClient,
	"stream-writer": streamWriter,
	"stream-reader": streamReader,
}

// Main is the floor process, if this process was started as one, and then never
// returns; else it returns at once.
func Main() {
	s := os.Getenv(envTask)
	if s == "" {
		return
	}
	var t task
	err := json.Unmarshal([]byte(s), &t)
	if err == nil {
		err = t.run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "floor process %s: %v\n", t.Role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run does the task and writes its samples, 4 bytes each, to stdout.
func (t *task) run() error {
	role := roles[t.Role]
	if role == nil {
		return fmt.Errorf("there is no such role")
	}
	if err := unix.SetNonblock(3, false); err != nil {
		return err
	}
	runtime.LockOSThread()
	samples, err := role(t)
	if err != nil {
		return err
	}
	return binary.Write(os.Stdout, binary.LittleEndian, samples)
}

// child is a floor process at work.
type child struct {
	role string
	cmd  *exec.Cmd
	out  io.ReadCloser
}

// start starts a floor process with file as its descriptor 3, which it closes
// here. The process ends with ctx.
func start(ctx context.Context, t task, file *os.File) (*child, error) {
	defer file.Close()
	b, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(childEnv(), envTask+"="+string(b))
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{file}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start floor process %s: %w", t.Role, err)
	}
	return &child{role: t.Role, cmd: cmd, out: out}, nil
}

func childEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if name != "GOMAXPROCS" && name != "GODEBUG" && name != "GOGC" && name != "GOCOVERDIR" {
			env = append(env, kv)
		}
	}
	return append(env, "GOMAXPROCS=4", "GODEBUG=asyncpreemptoff=1", "GOGC=off")
}

// wait returns the samples of the process, as durations of its unit.
func (c *child) wait(unit time.Duration) ([]time.Duration, error) {
	b, err := io.ReadAll(c.out)
	if werr := c.cmd.Wait(); werr != nil {
		return nil, fmt.Errorf("floor process %s: %w (is floor.Main called first in main or TestMain?)", c.role, werr)
	}
	if err != nil {
		return nil, fmt.Errorf("samples of floor process %s: %w", c.role, err)
	}
	ds := make([]time.Duration, len(b)/4)
	for i := range ds {
		ds[i] = time.Duration(binary.LittleEndian.Uint32(b[4*i:])) * unit
	}
	return ds, nil
}

// stop ends a process that is not waited for otherwise.
func (c *child) stop() {
	// Both fail only if the process has ended, which is what is wanted.
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}
