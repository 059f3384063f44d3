package rig

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// switchName is the namespace of the bridge that joins the hosts.
const switchName = "switch"

// maxHosts keeps the hosts' addresses clear of those of the VMs.
const maxHosts = 99

var hostPattern = regexp.MustCompile(`^[a-z][a-z0-9]{0,9}$`)

// Rig is a set of hosts joined by a switch. Its methods may be called
// concurrently.
type Rig struct {
	// Ident is part of the names of everything that the rig makes.
	Ident string

	hosts map[string]*Host // immutable after New

	mu     sync.Mutex
	pids   map[int]tracked // guarded by mu
	closed bool            // guarded by mu
	vms    sync.WaitGroup  // goroutines that reap VMs
}

type tracked struct {
	start uint64 // as in startTime
	what  string
}

// New builds a rig with the named hosts (lower-case letters and digits, at most
// ten), by default "a", "b" and "client". It first removes what dead rigs have
// left behind. The caller closes it.
func New(hosts ...string) (_ *Rig, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("make network namespaces: this needs root (or CAP_SYS_ADMIN and CAP_NET_ADMIN); run it under sudo")
	}
	if len(hosts) == 0 {
		hosts = []string{"a", "b", "client"}
	}
	if len(hosts) > maxHosts {
		return nil, fmt.Errorf("make a rig of %d hosts: at most %d have an address", len(hosts), maxHosts)
	}
	if _, err := CleanupStale(); err != nil {
		return nil, fmt.Errorf("clean up after an earlier run: %w", err)
	}
	ident, err := newIdent()
	if err != nil {
		return nil, err
	}
	r := &Rig{Ident: ident, hosts: map[string]*Host{}, pids: map[int]tracked{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := r.makeSwitch(); err != nil {
		return nil, fmt.Errorf("make the switch of rig %s: %w", ident, err)
	}
	for i, name := range hosts {
		if !hostPattern.MatchString(name) || name == switchName || r.hosts[name] != nil {
			return nil, fmt.Errorf("make host %q: want a new name of lower-case letters and digits, at most ten", name)
		}
		h := &Host{
			Name: name, NS: ident + "-" + name, Addr: netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)}),
			Dir: filepath.Join(shmDir, ident, name), rig: r, switchPort: "p-" + name,
		}
		r.hosts[name] = h
		if err := h.make(); err != nil {
			return nil, fmt.Errorf("make host %s: %w", name, err)
		}
	}
	return r, nil
}

// Host returns the named host; asking for one that New did not make panics.
func (r *Rig) Host(name string) *Host {
	h, ok := r.hosts[name]
	if !ok {
		panic(fmt.Sprintf("rig: no host %q", name))
	}
	return h
}

// Track notes a process that Close must end though the rig did not start it,
// such as the QEMU that a daemon started. Processes inside the namespaces of
// the rig need not be noted: Close finds them. The process must be running.
func (r *Rig) Track(pid int, what string) error {
	start, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("track process %d (%s): %w", pid, what, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pids[pid] = tracked{start, what}
	return nil
}

// ErrLeftBehind: not all that a rig has made could be removed; the rest of the
// message names it, and it has to be removed by hand.
var ErrLeftBehind = errors.New("not all could be removed")

// Close ends all processes of the rig and removes its namespaces and folders. Its
// error is an ErrLeftBehind. A second call does nothing.
func (r *Rig) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	pids := r.pids
	r.pids = nil
	r.mu.Unlock()

	var errs []error
	for pid, t := range pids {
		if start, err := startTime(pid); err != nil || start != t.start {
			continue // ended; the number may be another's by now
		}
		if err := kill(pid); err != nil {
			errs = append(errs, fmt.Errorf("end %s: %w", t.what, err))
		}
	}
	errs = append(errs, sweep(r.Ident))
	errs = append(errs, r.awaitReaped(killLimit))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", ErrLeftBehind, err)
	}
	return nil
}

// awaitReaped waits until the ended VMs are reaped, which is at once unless one of
// them could not be ended.
func (r *Rig) awaitReaped(limit time.Duration) error {
	reaped := make(chan struct{})
	go func() {
		r.vms.Wait()
		close(reaped)
	}()
	select {
	case <-reaped:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("a VM of rig %s still runs %v after it was killed", r.Ident, limit)
	}
}

func (r *Rig) makeSwitch() error {
	h := &Host{Name: switchName, NS: r.Ident + "-" + switchName}
	if err := h.makeNamespace(); err != nil {
		return err
	}
	return h.withNetlink(func(nl *netlink.Handle) error {
		_, err := addBridge(nl)
		return err
	})
}

// switchNS opens the namespace of the switch.
func (r *Rig) switchNS() (netns.NsHandle, error) {
	return netns.GetFromName(r.Ident + "-" + switchName)
}
