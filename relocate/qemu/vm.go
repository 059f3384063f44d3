package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Version is QEMU's version.
type Version struct {
	Major   int    `json:"major"`
	Minor   int    `json:"minor"`
	Micro   int    `json:"micro"`
	Package string `json:"package,omitempty"` // the distribution's, may be empty
}

// String is "7.2.22".
func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
}

// Before reports whether v is an older release than w; micro versions do not
// change what can be migrated.
func (v Version) Before(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// VM is one QEMU process behind its monitor. Its methods may be called from
// several goroutines. The zero value is of no use; see Connect and Spawn.
type VM struct {
	// PID and UID are QEMU's, immutable. The pid is that of the process whose
	// threads run the vCPUs, whoever opened the socket.
	PID int
	UID int
	// Version is immutable.
	Version Version
	// QMPPath is the monitor socket, immutable.
	QMPPath string

	mon *monitor
	log logFile  // immutable: set if we started it
	own *Process // immutable: set if we started or adopted it
}

// Connect opens the monitor at a unix socket's path. Beside the context's end the
// errors are ErrMonitorMissing, ErrMonitorDead, ErrMonitorBusy, ErrDisconnected
// and ErrTimeout. The caller closes the VM, which leaves QEMU as it is.
func Connect(ctx context.Context, path string) (*VM, error) {
	g, greeting, cred, err := dialGate(ctx, path)
	if err != nil {
		return nil, err
	}
	m, err := newMonitor(ctx, g, greeting)
	if err != nil {
		return nil, fmt.Errorf("QMP socket %s: %w", path, err)
	}
	v := &VM{
		PID: int(cred.Pid), UID: int(cred.Uid), QMPPath: path, mon: m,
		Version: Version{
			Major:   m.version.QEMU.Major,
			Minor:   m.version.QEMU.Minor,
			Micro:   m.version.QEMU.Micro,
			Package: m.version.Package,
		},
	}
	if err := v.findProcess(ctx); err != nil {
		v.Close()
		return nil, fmt.Errorf("QMP socket %s: %w", path, err)
	}
	return v, nil
}

// findProcess corrects PID and UID: the peer's credentials are those of whoever
// called listen(2), which need not be QEMU (libvirt hands sockets over). A vCPU's
// thread tells, unless QEMU counts threads in a pid namespace of its own.
func (v *VM) findProcess(ctx context.Context) error {
	cpus, err := v.cpus(ctx)
	if err != nil {
		return err
	}
	own, err1 := os.Readlink("/proc/self/ns/pid")
	its, err2 := os.Readlink(procPath(v.PID, "ns/pid"))
	if err1 == nil && err2 == nil && own != its {
		return nil // in a container, whose threads have other numbers here
	}
	if len(cpus) > 0 {
		if pid, uid, err := threadGroup(cpus[0].Thread); err == nil {
			v.PID, v.UID = pid, uid
			return nil
		}
	}
	if v.PID == 0 {
		return errors.New("QEMU is in a pid namespace that cannot be seen from here: run the daemon in the host's")
	}
	return nil
}

type cpuInfo struct {
	Thread int    `json:"thread-id"`
	Path   string `json:"qom-path"`
}

func (v *VM) cpus(ctx context.Context) ([]cpuInfo, error) {
	var cpus []cpuInfo
	err := v.Execute(ctx, "query-cpus-fast", nil, &cpus)
	return cpus, err
}

// Close ends the connection and every subscription. It is idempotent.
func (v *VM) Close() error {
	v.mon.close()
	return nil
}

// Done is closed when the connection has ended, by Close or by QEMU's end.
func (v *VM) Done() <-chan struct{} { return v.mon.done }

// Execute runs one QMP command. args is encoded as its arguments unless nil, and
// its return value decoded into out unless nil. A refusal by QEMU is a
// *CommandError; otherwise see ErrTimeout and ErrDisconnected.
func (v *VM) Execute(ctx context.Context, command string, args, out any) error {
	return v.mon.execute(ctx, command, args, out)
}

// Subscribe returns the events from now on, of these names or all. The caller
// closes the subscription.
func (v *VM) Subscribe(names ...string) *Subscription {
	return v.mon.subscribe(names...)
}

// RunState is QEMU's run state.
type RunState struct {
	Status  string `json:"status"` // such as "running", "paused", "inmigrate", "postmigrate"
	Running bool   `json:"running"`
}

// RunState asks for the run state.
func (v *VM) RunState(ctx context.Context) (RunState, error) {
	var s RunState
	err := v.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// Migration is what QEMU says of its current or last migration.
type Migration struct {
	// Status is "" when there has been none, else QEMU's, such as "active".
	Status    string   `json:"status,omitempty"`
	ErrorDesc string   `json:"error-desc,omitempty"`
	Blocked   []string `json:"blocked-reasons,omitempty"`
}

// Migration asks for the state of the migration.
func (v *VM) Migration(ctx context.Context) (Migration, error) {
	var m Migration
	err := v.Execute(ctx, "query-migrate", nil, &m)
	return m, err
}

// Pause stops the guest and waits until it has stopped.
func (v *VM) Pause(ctx context.Context) error {
	return v.Execute(ctx, "stop", nil, nil)
}

// Announce is the schedule of AnnounceSelf, in milliseconds.
type Announce struct {
	Initial int `json:"initial"`
	Max     int `json:"max"`
	Rounds  int `json:"rounds"`
	Step    int `json:"step"`
}

// DefaultAnnounce is QEMU's own schedule after a migration.
var DefaultAnnounce = Announce{Initial: 50, Max: 550, Rounds: 5, Step: 100}

// AnnounceSelf makes QEMU send gratuitous packets from every network card, so
// that switches learn where the guest is now. It returns at the first round.
func (v *VM) AnnounceSelf(ctx context.Context, a Announce) error {
	return v.Execute(ctx, "announce-self", a, nil)
}

// Quit asks QEMU to end, and returns when the connection has ended. The guest is
// not told: it is for a guest that runs elsewhere, or never ran.
func (v *VM) Quit(ctx context.Context) error {
	err := v.Execute(ctx, "quit", nil, nil)
	if err != nil && !errors.Is(err, ErrDisconnected) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, CommandTimeout)
	defer cancel()
	select {
	case <-v.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("QMP quit: QEMU pid %d still runs: %w", v.PID, contextError(ctx))
	}
}

// capabilities lists the migration capabilities and which are on.
func (v *VM) capabilities(ctx context.Context) (map[string]bool, error) {
	var list []struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	if err := v.Execute(ctx, "query-migrate-capabilities", nil, &list); err != nil {
		return nil, err
	}
	caps := make(map[string]bool, len(list))
	for _, c := range list {
		caps[c.Name] = c.State
	}
	return caps, nil
}

func (v *VM) setCapabilities(ctx context.Context, caps map[string]bool) error {
	type capability struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	list := make([]capability, 0, len(caps))
	for name, on := range caps {
		list = append(list, capability{name, on})
	}
	if len(list) == 0 {
		return nil
	}
	return v.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": list}, nil)
}

// qomGet reads one property of QEMU's object tree; false if it does not exist.
func (v *VM) qomGet(ctx context.Context, path, property string, out any) (bool, error) {
	err := v.Execute(ctx, "qom-get", map[string]string{"path": path, "property": property}, out)
	if refused := (*CommandError)(nil); errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, err
}

// died improves an error of a lost connection with what the process left behind.
func (v *VM) died(err error) error {
	if !errors.Is(err, ErrDisconnected) {
		return err
	}
	if v.own != nil {
		if exit := v.own.exitSoon(); exit != nil {
			return fmt.Errorf("%w: %w%s", err, exit, v.log.suffix())
		}
	} else if unix.Kill(v.PID, 0) == unix.ESRCH {
		return fmt.Errorf("%w: QEMU pid %d has ended", err, v.PID)
	}
	return fmt.Errorf("%w: QEMU pid %d%s", err, v.PID, v.log.suffix())
}
