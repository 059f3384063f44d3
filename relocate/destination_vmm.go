package relocate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"golang.org/x/sys/unix"
)

// memoryMargin is what must stay free beside the guest's memory, in bytes: the
// VMM's own needs and the engine's tables.
const memoryMargin = 256 << 20

// Bounds of an offer: no machine has larger pages, or more memory.
const (
	maxPageSize    = 1 << 30
	maxRegionBytes = 1 << 46
)

// vmmName is what a program that a peer may have started here is called.
var vmmName = regexp.MustCompile(`^(qemu-system-[a-z0-9_]+|qemu-kvm)$`)

// accept checks an offer against what this host can do, before anything is made.
func (in *incoming) accept(o *offer) error {
	if !validName.MatchString(o.VM) {
		return fmt.Errorf("machine name %q in the offer: %s", o.VM, nameRule)
	}
	nameErr := in.host.takeOffer(in, o)
	in.log = in.host.log.With("vm", o.VM, "session", sessionName(in.rec.Token), "role", string(RoleDestination))
	in.update(func(s *Status) { s.VM, s.Options = o.VM, o.Options })
	if nameErr != nil {
		return nameErr
	}
	backends := o.Description.Backends
	if len(o.Regions) == 0 || len(o.Regions) != len(backends) {
		return fmt.Errorf("the offer has %d regions for %d memory backends", len(o.Regions), len(backends))
	}
	var total int64
	for i, r := range o.Regions {
		// Bounded first, so that no product wraps.
		if r.ID != uint32(i) || r.Pages == 0 || r.PageSize < 4096 || r.PageSize > maxPageSize || r.PageSize&(r.PageSize-1) != 0 ||
			r.Pages > maxRegionBytes/uint64(r.PageSize) || int64(r.Pages)*int64(r.PageSize) != backends[i].Size {
			return fmt.Errorf("region %d of the offer (%d pages of %d bytes) does not fit backend %s of %d bytes", i, r.Pages, r.PageSize, backends[i].ID, backends[i].Size)
		}
		if total += backends[i].Size; total > maxRegionBytes {
			return fmt.Errorf("the offer has more than %d TiB of memory", int64(maxRegionBytes)>>40)
		}
	}
	// A file system's own blocks may be counted with a file's.
	if o.Allocated < 0 || o.Allocated > 2*total {
		return fmt.Errorf("the offer says that an image of %d bytes takes %d bytes", total, o.Allocated)
	}
	free, err := in.freeMemoryFor(o.Allocated)
	if err != nil {
		return err
	}
	if o.Allocated > free-memoryMargin {
		return fmt.Errorf("out of memory for the guest: its image takes %d MiB, this host has %d MiB available and keeps %d MiB; free some or choose another host", o.Allocated>>20, free>>20, memoryMargin>>20)
	}
	return nil
}

// freeMemoryFor returns the memory that is available to a machine of so many
// bytes. What is cached of others gives way, and at last what is of itself.
func (in *incoming) freeMemoryFor(bytes int64) (int64, error) {
	free, err := sysmem.Available()
	if err != nil || bytes <= free-memoryMargin {
		return free, err
	}
	in.cacheGivesWay(bytes + memoryMargin - free)
	return sysmem.Available()
}

func (in *incoming) cacheGivesWay(bytes int64) {
	gone, err := in.host.cache.giveWay(bytes, in.rec.VM)
	for _, name := range gone {
		in.note("warm", "the cached memory of "+name+" gave way to the machine")
	}
	if err != nil {
		in.warn("the cache did not give way", "err", err)
	}
}

// takeOffer enters in's name and regions, which others look at, and makes sure that
// no other machine of that name lives or arrives here.
func (h *Host) takeOffer(in *incoming, o *offer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	in.rec.VM, in.rec.Options, in.rec.Regions = o.VM, o.Options, o.Regions
	if h.outgoing[in.rec.Token] != nil {
		return fmt.Errorf("the destination is the host where %s runs already; name another one", in.rec.VM)
	}
	if m := h.machines[in.rec.VM]; m != nil {
		return fmt.Errorf("this host has a machine called %s already (QMP %s); `pagewarp vm rm %s` there forgets it", in.rec.VM, m.qmp, in.rec.VM)
	}
	for _, other := range h.incoming {
		if other != in && other.rec.VM == in.rec.VM {
			return fmt.Errorf("a machine called %s is arriving here already", in.rec.VM)
		}
	}
	return nil
}

// startVMM starts the source's QEMU here, incoming and paused.
func (in *incoming) startVMM(ctx context.Context, o *offer) error {
	t := in.host.cfg.Template(o.VM)
	if t.Binary == "" && !vmmName.MatchString(filepath.Base(o.Description.Binary)) {
		return fmt.Errorf("the source's VMM is %s: this host starts only qemu-system-*; set `binary` in the template of %s to allow another", o.Description.Binary, o.VM)
	}
	dir := in.host.cfg.StateDir
	base := filepath.Join(dir, "vm-"+sessionName(in.rec.Token))
	in.rec.QMP = base + ".qmp"
	log := base + ".log"
	if err := in.chooseSource(o, &t); err != nil {
		return err
	}
	argv, err := qemu.DestinationArgv(o.Description, t, in.rec.QMP)
	if err != nil {
		return err
	}
	workDir := qemu.RewritePath(t.Rewrite, o.Description.Dir)
	if !exists(workDir) {
		workDir = dir
	}
	in.rec.Log = log
	in.rec.Cleanup = []string{log}
	for _, path := range qemu.ServerSockets(argv) {
		if !filepath.IsAbs(path) {
			path = filepath.Join(workDir, path)
		}
		// One at which nobody listens is what a QEMU that was killed has left; the new one
		// replaces it.
		if st, err := os.Lstat(path); err == nil && (st.Mode().Type() != os.ModeSocket || answers(path)) {
			return fmt.Errorf("socket %s of the command line is there already: another machine's? remove it, or map the path elsewhere with a `rewrite` in the template", path)
		}
		in.rec.Cleanup = append(in.rec.Cleanup, path)
	}
	if err := in.host.programs.Check(ctx, argv[0], o.Description); err != nil {
		return err
	}
	// Written before the VMM starts: should this daemon be killed between
	// here and the next record, its successor finds the files, at least.
	if err := in.enter(PhasePreparing, "starting "+argv[0]); err != nil {
		return err
	}
	if err := in.createObjects(); err != nil {
		return err
	}
	vm, proc, err := qemu.Spawn(ctx, qemu.SpawnConfig{Argv: argv, Dir: workDir, Env: t.Env, LogPath: log, QMPPath: in.rec.QMP})
	if err != nil {
		if ferr := freeMemory(in.rec.Memory); ferr != nil {
			in.warn("memory was not freed", "err", ferr)
		}
		return err
	}
	in.vm, in.proc = vm, proc
	in.rec.PID, in.rec.StartTime = proc.PID, proc.Start
	return in.host.journal.write(in.rec)
}

// clearMemory makes sure that the RAM file of the new machine is its own: a file
// that a process maps, or that is no memory of the machine, is refused, a stale one is
// removed.
func (in *incoming) clearMemory(path string, size, allocated int64) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return in.checkRoom(filepath.Dir(path), allocated)
	}
	if err != nil {
		return fmt.Errorf("RAM file %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("RAM file %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil // a device brings its own memory
	}
	id, err := sysmem.IDOf(fd)
	if err != nil {
		return fmt.Errorf("RAM file %s: %w", path, err)
	}
	pid, err := mapper(id)
	if err != nil {
		return err
	}
	if pid != 0 {
		return fmt.Errorf("RAM file %s is in use by process %d here; end it, or map the path elsewhere with a `rewrite` in the template", path, pid)
	}
	if st.Size != size {
		// The path is the source's choice. What has another size is no memory of this
		// machine, and may be anything.
		return fmt.Errorf("%s exists here with %d bytes, and the machine's RAM file has %d: it is something else; move it away, or map the path elsewhere with a `rewrite` in the template", path, st.Size, size)
	}
	in.warn("removing a stale RAM file that no process maps: " + path)
	// An earlier relocation that is being rolled back may have removed it meanwhile.
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove stale RAM file %s: %w", path, err)
	}
	return in.checkRoom(filepath.Dir(path), allocated)
}

// checkRoom compares the file system under dir with what the image takes, and refuses one
// whose files userfaultfd does not know.
func (in *incoming) checkRoom(dir string, allocated int64) error {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if room := int64(st.Bavail) * st.Bsize; err == nil && st.Blocks > 0 && room < allocated {
		in.cacheGivesWay(allocated - room) // it may lie on the same file system
		err = unix.Statfs(dir, &st)
	}
	if err != nil {
		return fmt.Errorf("directory of the RAM file, %s: %w; create it, or map the path with a `rewrite` in the template", dir, err)
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.HUGETLBFS_MAGIC {
		return fmt.Errorf("directory of the RAM file, %s: it is neither on tmpfs nor on hugetlbfs, and userfaultfd knows no other; map the path to one, such as /dev/shm, with a `rewrite` in the template", dir)
	}
	if room := int64(st.Bavail) * st.Bsize; st.Blocks > 0 && room < allocated {
		return fmt.Errorf("out of memory for the guest: %s has room for %d MiB, its image takes %d MiB; remount it larger (mount -o remount,size=…) or free some", dir, room>>20, allocated>>20)
	}
	return nil
}

// mapper finds a process that maps the file; 0 is none.
func mapper(id sysmem.FileID) (int, error) {
	pids, err := processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		maps, err := sysmem.FileMappings(pid, id)
		if err == nil && len(maps) > 0 {
			return pid, nil
		} // a process that ended meanwhile maps nothing
	}
	return 0, nil
}
