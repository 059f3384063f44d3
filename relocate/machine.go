package relocate

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// machine is an adopted virtual machine.
type machine struct {
	name string
	qmp  string
	vm   *qemu.VM
	last Machine   // guarded by Host.mu; as it was seen last
	busy *outgoing // guarded by Host.mu
	made made      // guarded by Host.mu
	ram  []string  // its RAM files, by their paths; immutable
}

// made is what was made at this host for a machine that arrived, and goes with it.
type made struct {
	// Objects of the character device.
	Objects []string `json:"objects,omitempty"`
	// Files: its log, and the sockets of its command line.
	Files []string `json:"files,omitempty"`
}

// nameRule is what validName says.
const nameRule = "use up to 64 letters, digits, dots, dashes and underscores, a letter or a digit first"

// statusGone is the status of a machine whose VMM has ended.
const statusGone = "gone"

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Adopt takes a running VMM into the host's set, by its QMP socket. The host
// holds the monitor from then on, so the socket must be its own.
func (h *Host) Adopt(ctx context.Context, name, qmpPath string) (Machine, error) {
	return h.adopt(ctx, savedMachine{Name: name, QMP: qmpPath})
}

func (h *Host) adopt(ctx context.Context, saved savedMachine) (Machine, error) {
	name, qmpPath := saved.Name, saved.QMP
	if !validName.MatchString(name) {
		return Machine{}, fmt.Errorf("machine name %q: %s", name, nameRule)
	}
	abs, err := filepath.Abs(qmpPath)
	if err != nil {
		return Machine{}, fmt.Errorf("QMP socket %s: %w", qmpPath, err)
	}
	h.mu.Lock()
	_, taken := h.machines[name]
	hangs := h.hangsLocked(name, abs)
	h.mu.Unlock()
	switch {
	case taken:
		return Machine{}, fmt.Errorf("adopt %s: %w", name, ErrExists)
	case hangs:
		return Machine{}, fmt.Errorf("adopt %s: %w: it is taken up when its QEMU answers again", name, ErrBusy)
	}
	vm, err := qemu.Connect(ctx, abs)
	if err != nil {
		return Machine{}, fmt.Errorf("adopt %s: %w", name, err)
	}
	desc, err := vm.Inspect(ctx)
	if err != nil {
		vm.Close()
		return Machine{}, fmt.Errorf("adopt %s: %w", name, err)
	}
	m := &machine{name: name, qmp: abs, vm: vm, last: machineOf(name, abs, desc), made: saved.made, ram: ramFiles(desc)}
	if err := h.register(m); err != nil {
		vm.Close()
		return Machine{}, fmt.Errorf("adopt %s: %w", name, err)
	}
	h.events.add(Event{VM: name, Kind: "machine", Text: fmt.Sprintf("adopted %s (pid %d)", abs, m.last.PID)})
	h.log.Info("machine adopted", "vm", name, "qmp", abs, "pid", m.last.PID)
	if m.last.Problem != "" {
		h.log.Warn("the machine cannot be relocated as it is", "vm", name, "problem", m.last.Problem)
	}
	return m.last, nil
}

func machineOf(name, qmp string, d qemu.Description) Machine {
	m := Machine{
		Name: name, QMP: qmp, PID: d.PID, Status: d.Status, RAMBytes: d.RAMBytes, VCPUs: d.VCPUs,
		Version: d.Version.String(), Machine: d.Machine,
	}
	if err := qemu.CheckRelocatable(d); err != nil {
		m.Problem = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return m
}

// register adds m and writes the set down.
func (h *Host) register(m *machine) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil {
		return errShutdown
	}
	if _, taken := h.machines[m.name]; taken {
		return ErrExists
	}
	h.machines[m.name] = m
	if err := h.saveMachinesLocked(); err != nil {
		delete(h.machines, m.name)
		return err
	}
	h.wg.Go(func() { h.watch(m) })
	return nil
}

// watch waits for the VMM's end.
func (h *Host) watch(m *machine) {
	select {
	case <-m.vm.Done():
	case <-h.ctx.Done():
		return
	}
	h.mu.Lock()
	if h.machines[m.name] != m {
		h.mu.Unlock()
		return
	}
	m.last.Status = statusGone
	h.mu.Unlock()
	h.log.Warn("the VMM has ended or closed its monitor", "vm", m.name, "pid", m.last.PID)
	h.events.add(Event{VM: m.name, Kind: "machine",
		Text: fmt.Sprintf("QEMU (pid %d) has ended or closed its monitor; `pagewarp vm rm %s` forgets it", m.last.PID, m.name)})
	h.sayMemory(m.name, m.ram)
	h.reap(m.name, m.made.Objects)
}

// gone makes sense of an error of a VMM that has died.
func (m *machine) gone(err error) error {
	t := time.NewTimer(100 * time.Millisecond) // the monitor's end is seen a moment after the process's
	defer t.Stop()
	select {
	case <-m.vm.Done():
		return fmt.Errorf("QEMU (pid %d, QMP socket %s) has ended or closed its monitor; `pagewarp vm rm %s` forgets it: %w", m.vm.PID, m.qmp, m.name, err)
	case <-t.C:
		return err
	}
}

// Forget takes a machine out of the set; the machine itself is left alone.
func (h *Host) Forget(name string) error {
	h.mu.Lock()
	m := h.machines[name]
	if m == nil {
		h.mu.Unlock()
		return fmt.Errorf("forget %s: %w", name, h.unknown(name))
	}
	if m.busy != nil {
		h.mu.Unlock()
		return fmt.Errorf("forget %s: %w; cancel it first", name, ErrBusy)
	}
	delete(h.machines, name)
	err := h.saveMachinesLocked()
	text := "forgotten"
	if len(m.made.Objects) > 0 {
		text += fmt.Sprintf("; its memory on the device, %s, is to be freed by `pagewarp device destroy` when it has ended", strings.Join(m.made.Objects, " "))
	}
	ended := m.last.Status == statusGone
	h.mu.Unlock()
	m.vm.Close()
	if ended {
		removeDead(m.qmp, m.made.Files)
	}
	h.log.Info(text, "vm", name)
	h.events.add(Event{VM: name, Kind: "machine", Text: text})
	return err
}

// unknown is why a name is none of a machine's here: there is none, or it is on its way.
func (h *Host) unknown(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, in := range h.incoming {
		if in.rec.VM == name {
			return fmt.Errorf("%w: it arrives here from %s, and is one of this host's machines when its memory is whole; `pagewarp status %s` shows how far it is", ErrBusy, in.rec.Peer, name)
		}
	}
	return ErrUnknownMachine
}

// Machines returns the adopted machines by name, with their current run state: the last
// one known of those whose VMM does not answer within a second.
func (h *Host) Machines(ctx context.Context) []Machine {
	h.mu.Lock()
	ms := make([]*machine, 0, len(h.machines))
	for _, m := range h.machines {
		ms = append(ms, m)
	}
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	out := make([]Machine, len(ms))
	var wg sync.WaitGroup
	for i, m := range ms {
		wg.Go(func() { out[i] = h.look(ctx, m) })
	}
	wg.Wait()
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// look asks for a machine's run state.
func (h *Host) look(ctx context.Context, m *machine) Machine {
	state, err := m.vm.RunState(ctx)
	h.mu.Lock()
	if err == nil {
		m.last.Status = state.Status
	}
	cur, busy := m.last, m.busy
	h.mu.Unlock()
	if busy != nil {
		cur.Phase = busy.Status().Phase
	}
	return cur
}

// savedMachine is a machine as machines.json has it.
type savedMachine struct {
	Name string `json:"name"`
	QMP  string `json:"qmp"`
	made
	// RAM files; for what is said when it is not there any more.
	RAM []string `json:"ram,omitempty"`
}

// madeHere is what was made for a machine in a list.
func madeHere(list []savedMachine, name string) made {
	for _, m := range list {
		if m.Name == name {
			return m.made
		}
	}
	return made{}
}

func (h *Host) machinesFile() string { return filepath.Join(h.cfg.StateDir, "machines.json") }

func (h *Host) saveMachinesLocked() error {
	saved := make([]savedMachine, 0, len(h.machines))
	for _, m := range h.machines {
		saved = append(saved, savedMachine{m.name, m.qmp, m.made, m.ram})
	}
	for _, s := range h.restoring {
		if h.machines[s.Name] == nil {
			saved = append(saved, s)
		}
	}
	sort.Slice(saved, func(i, j int) bool { return saved[i].Name < saved[j].Name })
	if err := writeFileAtomic(h.machinesFile(), saved); err != nil {
		return fmt.Errorf("write %s: %w", h.machinesFile(), err)
	}
	return nil
}

// restoreAtOnce is how many machines are adopted again at a time: those that hang cost the
// patience for one of them, and the daemon is not ready before that.
const restoreAtOnce = 32

// restoreMachines adopts again what an earlier daemon had adopted.
func (h *Host) restoreMachines(ctx context.Context, saved []savedMachine) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, restoreAtOnce)
	for _, s := range saved {
		h.mu.Lock()
		_, known := h.machines[s.Name]
		known = known || h.hangsLocked(s.Name, s.QMP)
		h.mu.Unlock()
		if known {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			h.restore(ctx, s)
		})
	}
	wg.Wait()
	h.mu.Lock()
	h.restoring = slices.DeleteFunc(h.restoring, func(s savedMachine) bool { return !h.hangsLocked(s.Name, s.QMP) })
	err := h.saveMachinesLocked()
	h.mu.Unlock()
	if err != nil {
		h.log.Error("the list of machines was not written", "err", err)
	}
}

func (h *Host) restore(ctx context.Context, s savedMachine) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := h.adopt(ctx, s)
	if err == nil {
		return
	}
	h.log.Warn("a machine of the last run was not adopted again; if it runs, use `pagewarp vm add`", "vm", s.Name, "qmp", s.QMP, "err", err)
	h.events.add(Event{VM: s.Name, Kind: "machine", Text: fmt.Sprintf("not adopted again: %v", err)})
	h.wg.Go(func() {
		removeDead(s.QMP, s.Files)
		h.sayMemory(s.Name, s.RAM)
		h.reap(s.Name, s.Objects)
	})
}
