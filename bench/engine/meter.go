package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/internal/sysmem"
)

const (
	meterEvery = 100 * time.Millisecond
	// uplink and tap are the interfaces of a rig's host.
	uplink, tap = "up0", "tap0"
	// vcpuThread begins the name of QEMU's threads that run the guest, when it
	// was started with debugThreads.
	vcpuThread = "CPU "
	daemonName = "pagewarpd"
)

// debugThreads makes QEMU name its threads.
var debugThreads = []string{"-name", "debug-threads=on"}

// Cost is what a relocation took of one side, from the command until it was
// complete.
type Cost struct {
	// CPUSeconds is the time of all of the side's processes without their
	// vCPUs, GuestSeconds that of the vCPUs.
	CPUSeconds   float64 `json:"cpu_s"`
	GuestSeconds float64 `json:"guest_cpu_s"`
	// PeakBytes is the most memory seen: the anonymous memory of the side's
	// processes and the files of the host's tmpfs, the guest's own included.
	PeakBytes uint64 `json:"peak_bytes"`
	// SentBytes went from this host to the other; what the guest sent and
	// received is not in it. Counted in front of segmentation offload, so the
	// headers of each packet on a real wire are not in it either.
	SentBytes uint64 `json:"sent_bytes"`
}

// seenProcess is what was last seen of a process.
type seenProcess struct {
	total, guest         uint64 // ticks
	firstTotal, firstGst uint64 // when the meter was started
}

// sideMeter measures one host.
type sideMeter struct {
	host      *rig.Host
	withOurs  bool // count the daemon
	inode     uint64
	processes map[string]*seenProcess // by pid and start time
	peak      uint64
	sent      uint64
}

// meter measures both hosts until stop.
type meter struct {
	sides [2]*sideMeter
	end   chan struct{}
	wg    sync.WaitGroup
	err   error // of the sampling goroutine; valid after wg
}

// startMeter notes the present state of the hosts as the zero point.
func startMeter(withOurs bool, hosts [2]*rig.Host) (*meter, error) {
	m := &meter{end: make(chan struct{})}
	for i, h := range hosts {
		s := &sideMeter{host: h, withOurs: withOurs, processes: map[string]*seenProcess{}}
		m.sides[i] = s
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join("/run/netns", h.NS), &st); err != nil {
			return nil, fmt.Errorf("measure host %s: %w", h.Name, err)
		}
		s.inode = st.Ino
		sent, err := s.counter()
		if err != nil {
			return nil, err
		}
		s.sent = sent
	}
	if err := m.sample(true); err != nil {
		return nil, err
	}
	m.wg.Go(func() {
		tick := time.NewTicker(meterEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				m.err = errors.Join(m.err, m.sample(false))
			case <-m.end:
				return
			}
		}
	})
	return m, nil
}

// stop ends the measurement and returns the costs of the hosts.
func (m *meter) stop() (costs [2]Cost, err error) {
	close(m.end)
	m.wg.Wait()
	err = errors.Join(m.err, m.sample(false))
	for i, s := range m.sides {
		sent, cerr := s.counter()
		err = errors.Join(err, cerr)
		costs[i] = Cost{PeakBytes: s.peak, SentBytes: sent - min(s.sent, sent)}
		for _, p := range s.processes {
			guest := p.guest - p.firstGst
			costs[i].GuestSeconds += float64(guest) / ticksPerSecond
			costs[i].CPUSeconds += float64(p.total-p.firstTotal-min(guest, p.total-p.firstTotal)) / ticksPerSecond
		}
	}
	return costs, err
}

// account ends the measurement of m, nil if it was never begun, and adds what
// went wrong with it to the move's own error.
func (m *meter) account(started, moved error) (costs [2]Cost, err error) {
	if m != nil {
		var stopped error
		costs, stopped = m.stop()
		started = errors.Join(started, stopped)
	}
	if started != nil {
		moved = errors.Join(moved, fmt.Errorf("measure the hosts: %w", started))
	}
	return costs, moved
}

// ticksPerSecond of /proc/PID/stat: USER_HZ, which is 100 on every
// architecture that Go runs on.
const ticksPerSecond = 100

func (m *meter) sample(first bool) error {
	pids, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	memory := [2]uint64{}
	for _, e := range pids {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		var st unix.Stat_t
		dir := filepath.Join("/proc", e.Name())
		if unix.Stat(dir+"/ns/net", &st) != nil {
			continue // gone
		}
		for i, s := range m.sides {
			if st.Ino == s.inode {
				memory[i] += s.see(dir, e.Name(), first)
			}
		}
	}
	for i, s := range m.sides {
		s.peak = max(s.peak, memory[i]+filesIn(s.host.Dir))
	}
	return nil
}

// see notes the CPU time of a process and returns its anonymous memory; one
// that has just ended has none.
func (s *sideMeter) see(dir, pid string, first bool) uint64 {
	name, total, start, err := readStat(filepath.Join(dir, "stat"))
	if err != nil || name == daemonName && !s.withOurs {
		return 0
	}
	key := pid + "/" + start
	p := s.processes[key]
	if p == nil {
		p = &seenProcess{}
		s.processes[key] = p
	}
	p.total = max(p.total, total)
	p.guest = max(p.guest, guestTicks(dir))
	if first {
		p.firstTotal, p.firstGst = p.total, p.guest
	}
	return anonymous(dir)
}

// guestTicks is the time of a QEMU's vCPU threads.
func guestTicks(dir string) (ticks uint64) {
	tasks, err := os.ReadDir(filepath.Join(dir, "task"))
	if err != nil {
		return 0
	}
	for _, t := range tasks {
		if name, n, _, err := readStat(filepath.Join(dir, "task", t.Name(), "stat")); err == nil && strings.HasPrefix(name, vcpuThread) {
			ticks += n
		}
	}
	return ticks
}

// readStat returns the name, the CPU time in ticks and the start time of a
// process or thread: fields 2, 14 + 15 and 22 of proc_pid_stat(5).
func readStat(path string) (name string, ticks uint64, start string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", 0, "", err
	}
	return parseStat(string(b))
}

func parseStat(stat string) (name string, ticks uint64, start string, err error) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", 0, "", fmt.Errorf("a stat file without a name: %.60q", stat)
	}
	f := strings.Fields(stat[end+1:]) // from field 3 on
	if len(f) < 20 {
		return "", 0, "", fmt.Errorf("a stat file of %d fields: %.60q", len(f)+2, stat)
	}
	user, err1 := strconv.ParseUint(f[11], 10, 64)
	system, err2 := strconv.ParseUint(f[12], 10, 64)
	return stat[open+1 : end], user + system, f[19], errors.Join(err1, err2)
}

// anonymous is what the process below a folder of /proc has for itself; one that
// has ended has nothing.
func anonymous(dir string) uint64 {
	pid, err := strconv.Atoi(filepath.Base(dir))
	if err != nil {
		return 0
	}
	u, err := sysmem.UsageOf(pid)
	if err != nil {
		return 0
	}
	return u.Anonymous
}

// filesIn is what the files below dir take, in bytes; holes take nothing.
func filesIn(dir string) (n uint64) {
	// A file that vanishes meanwhile takes nothing.
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && d.Type().IsRegular() && unix.Lstat(path, &st) == nil {
			n += uint64(st.Blocks) * 512
		}
		return nil
	})
	return n
}

// counter is how much the host itself has sent: its uplink's, without what came
// from its guest.
func (s *sideMeter) counter() (uint64, error) {
	ns, err := netns.GetFromName(s.host.NS)
	if err != nil {
		return 0, fmt.Errorf("open network namespace %s: %w", s.host.NS, err)
	}
	defer ns.Close()
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, fmt.Errorf("netlink into %s: %w", s.host.NS, err)
	}
	defer nl.Close()
	stats := func(name string) (*netlink.LinkStatistics, error) {
		l, err := nl.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("counters of %s on host %s: %w", name, s.host.Name, err)
		}
		return l.Attrs().Statistics, nil
	}
	up, err := stats(uplink)
	if err != nil {
		return 0, err
	}
	guest, err := stats(tap)
	if errors.As(err, new(netlink.LinkNotFoundError)) { // a host of a process
		return up.TxBytes, nil
	}
	if err != nil {
		return 0, err
	}
	return up.TxBytes - min(guest.RxBytes, up.TxBytes), nil
}
