package relocate

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"golang.org/x/sys/unix"
)

// ringEntries is the size of an object's fault ring: more than a machine has
// threads that fault, so that it is never full.
const ringEntries = 1024

// deviceHugePage is what an object's page can have beside 4 KiB, in bytes, where the
// kernel can: docs/UAPI.md.
const deviceHugePage = 2 << 20

// attachWait is how long a daemon that died may take to be gone from an object.
const attachWait = 5 * time.Second

// memorySource catches the faults of a VMM: *faultd.Shared by userfaultfd,
// *faultd.Device by the character device.
type memorySource interface {
	Memory() faultd.Memory
	// Release leaves the memory as it is to the VMM: nobody waits any more.
	Release() error
	// Close lets go of it; who waits for a page waits on.
	Close() error
}

// deviceInfo says what the character device is; the error is why it cannot be used here.
func deviceInfo() (kmod.Info, error) {
	c, err := kmod.Open()
	if err != nil {
		return kmod.Info{}, err
	}
	defer c.Close()
	return c.Info()
}

// FaultSource says how faults of a machine that arrived now would be caught, and
// why not by the device if it could have been. The error says that they could not.
func (h *Host) FaultSource() (source, reason string, err error) {
	if h.cfg.FaultSource == FaultUserfaultfd {
		return FaultUserfaultfd, "as configured", nil
	}
	switch _, err := deviceInfo(); {
	case err == nil:
		return FaultDevice, "", nil
	case h.cfg.FaultSource == FaultDevice:
		return "", "", fmt.Errorf("the configured fault source is the device: %w", err)
	default:
		return FaultUserfaultfd, err.Error(), nil
	}
}

// mayTrace reports whether this process may take a userfaultfd out of any QEMU.
func mayTrace() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_PTRACE) != 0
}

// sayFaultSource tells once, at the start, what was found.
func (h *Host) sayFaultSource() {
	if source, _, _ := h.FaultSource(); source == FaultUserfaultfd && !mayTrace() {
		h.log.Warn("without CAP_SYS_PTRACE machines can arrive only if their QEMU is this user's and vm.unprivileged_userfaultfd is 1; run the daemon as root (`pagewarp doctor` checks a host)")
	}
	switch source, reason, err := h.FaultSource(); {
	case err != nil:
		h.log.Error("no machine can arrive here", "err", err)
		h.events.add(Event{Kind: "warning", Text: "no machine can arrive here: " + err.Error()})
	case reason != "":
		h.log.Info("faults of machines that arrive are caught by "+source, "reason", reason)
	default:
		h.log.Info("faults of machines that arrive are caught by the character device")
	}
}

// chooseSource decides whether the machine's memory is on the character device,
// and fills in where it is; the template gets what the decision changes.
func (in *incoming) chooseSource(o *offer, t *qemu.Template) error {
	want := cmp.Or(o.Options.FaultSource, in.host.cfg.FaultSource)
	if !slices.Contains(FaultSources, want) {
		return fmt.Errorf("fault source %q in the offer: this host knows %q", want, FaultSources)
	}
	reason := errNotAsked
	if want != FaultUserfaultfd {
		var with qemu.Template
		with, reason = in.onDevice(o, *t, want == FaultDevice)
		switch {
		case reason == nil:
			*t = with
			return nil
		case want == FaultDevice:
			return fmt.Errorf("catch faults by the character device: %w", reason)
		case !errors.Is(reason, kmod.ErrNoDevice): // that was said at the start
			in.note("machine", "faults are caught by userfaultfd, the device cannot be used: "+reason.Error())
		}
	}
	return in.inFiles(o, t, reason)
}

// errNotAsked is why a machine is not on the device that was not to be.
var errNotAsked = errors.New("the fault source is userfaultfd; relocate with --fault-source device")

// inFiles plans the machine's memory as files, for userfaultfd; reason is why it is not
// on the device.
func (in *incoming) inFiles(o *offer, t *qemu.Template, reason error) error {
	for i, b := range o.Description.Backends {
		size := int64(o.Regions[i].PageSize)
		path := qemu.RewritePath(t.Rewrite, b.Path)
		if b.Object != "" && path == b.Path {
			// It was on the source's device, and no rewrite says where else.
			if int(size) != sysmem.PageSize {
				return fmt.Errorf("backend %s is on the source's device in pages of %d bytes, which no file on /dev/shm has, and cannot be on the device here: %w; or map %s to hugetlbfs here with a `rewrite` in the template",
					b.ID, size, reason, b.Path)
			}
			path = "/dev/shm/" + b.Object
			*t = t.WithMemory(b.ID, path)
		}
		if err := checkPages(b.ID, path, size, reason); err != nil {
			return err
		}
		if err := in.clearMemory(path, b.Size, o.Allocated); err != nil {
			return err
		}
		in.rec.Memory = append(in.rec.Memory, memoryRecord{ID: o.Regions[i].Name, Path: path, Size: b.Size})
	}
	return nil
}

// checkPages makes sure that the file of a backend will have pages of as many bytes as
// at the source: a fault is of one page, here as there. Whether there is a folder for
// it, and room, is not asked here.
func checkPages(id, path string, size int64, reason error) error {
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil // a device brings its own memory
	}
	dir := filepath.Dir(path)
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return nil
	}
	here := int64(sysmem.PageSize)
	if fs.Type == unix.HUGETLBFS_MAGIC {
		here = fs.Bsize
	}
	switch {
	case here == size:
		return nil
	case int(size) == sysmem.PageSize:
		return fmt.Errorf("backend %s has pages of %d bytes at the source, but %s is on hugetlbfs here, with pages of %d: map the path to tmpfs (/dev/shm) with a `rewrite` in the template", id, size, dir, here)
	}
	return fmt.Errorf("backend %s has pages of %d bytes at the source, but files in %s have pages of %d here: mount hugetlbfs there (pagesize=%d) and reserve huge pages, or map the path to one with a `rewrite` in the template; it is not on the device since %w",
		id, size, dir, here, size, reason)
}

// faultSource is what catches the faults.
func (in *incoming) faultSource() string {
	if in.rec.onDevice() {
		return FaultDevice
	}
	return FaultUserfaultfd
}

// onDevice plans the machine's memory as objects, and returns the template for it. What
// is on hugetlbfs stays there unless the device is asked for: there its huge pages are
// reserved, here they are had if there are some.
func (in *incoming) onDevice(o *offer, t qemu.Template, asked bool) (qemu.Template, error) {
	info, err := deviceInfo()
	if err != nil {
		return t, err
	}
	return in.planObjects(o, t, info, asked)
}

// planObjects is onDevice on a device of that kind.
func (in *incoming) planObjects(o *offer, t qemu.Template, info kmod.Info, asked bool) (qemu.Template, error) {
	var memory []memoryRecord
	for i, b := range o.Description.Backends {
		size := int(o.Regions[i].PageSize)
		switch {
		case size == info.PageSize:
		case size == deviceHugePage && info.HugePageSize == 0:
			return t, fmt.Errorf("backend %s has pages of %d bytes, the device on this kernel has them of %d only: boot one with transparent huge pages (CONFIG_TRANSPARENT_HUGEPAGE) on a processor that has them, and a module that knows them", b.ID, size, info.PageSize)
		case size != info.HugePageSize:
			return t, fmt.Errorf("backend %s has pages of %d bytes, the device's have %d or %d: have it on hugetlbfs here, with --fault-source userfaultfd", b.ID, size, info.PageSize, info.HugePageSize)
		case b.Object == "" && !asked:
			return t, fmt.Errorf("backend %s is on hugetlbfs, where it stays unless the device is asked for (--fault-source device)", b.ID)
		}
		// Its own name: the source's object may be in the same kernel.
		name := fmt.Sprintf("%.40s-%s", o.VM, in.session)
		if i > 0 {
			name += fmt.Sprintf("-%d", i)
		}
		m := memoryRecord{ID: o.Regions[i].Name, Path: kmod.NodeDir + name, Size: b.Size, Object: name, PageSize: size}
		memory, t = append(memory, m), t.WithMemory(b.ID, m.Path)
	}
	// A backend that is not on the command line (-readconfig) cannot be moved.
	if _, err := qemu.DestinationArgv(o.Description, t, "x"); err != nil {
		return t, err
	}
	in.rec.Memory = memory
	return t, nil
}

// createObjects makes the objects of a machine about to be started. They are plain
// memory until it waits for its state, since QEMU writes into it as it starts.
func (in *incoming) createObjects() error {
	return eachObject(in.rec.Memory, func(c *kmod.Control, m memoryRecord) error {
		_, err := c.Create(kmod.Config{Name: m.Object, Bytes: uint64(m.Size), PageSize: m.PageSize, Mode: 0o600, Plain: true})
		return err
	})
}

// catchByDevice attaches to the objects of a VMM, and empties them first if it was
// just started: what it has written there is thrown away.
func (g *guestMemory) catchByDevice(fresh bool) (memorySource, error) {
	var ends []faultd.DeviceRegion
	fail := func(err error) (memorySource, error) {
		for _, e := range ends {
			err = errors.Join(err, e.Daemon.Close())
		}
		return nil, err
	}
	c, err := kmod.Open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for i, m := range g.in.rec.Memory {
		if fresh {
			if err := qemu.MapsObject(g.in.rec.PID, m.Object, m.Size); err != nil {
				return fail(err)
			}
			if err := c.Reset(m.Object); err != nil {
				return fail(err)
			}
		}
		end, err := attach(c, m.Object)
		if err != nil {
			return fail(err)
		}
		ends = append(ends, faultd.DeviceRegion{Region: g.in.rec.Regions[i], Daemon: end})
		if err := g.claim(i, fresh); err != nil {
			return fail(err)
		}
	}
	d, err := faultd.NewDevice(faultd.DeviceConfig{Regions: ends, Spin: g.in.host.cfg.Spin})
	if err != nil {
		return fail(err)
	}
	return d, nil
}

// attach waits, for a while, for the daemon before us to be gone.
func attach(c *kmod.Control, object string) (*kmod.Daemon, error) {
	pause := time.Millisecond
	for end := time.Now().Add(attachWait); ; time.Sleep(pause) {
		d, err := c.Attach(object, ringEntries)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return d, err
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}
