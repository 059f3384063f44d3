package qemu

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

// Description is a running machine as its source sees it: enough to judge
// whether it can be relocated and to start its counterpart elsewhere.
type Description struct {
	Name    string   `json:"name,omitempty"` // of -name, may be empty
	QMP     string   `json:"qmp"`
	PID     int      `json:"pid"`
	UID     int      `json:"uid"`
	Start   uint64   `json:"start"`  // clock ticks since boot; names the process together with PID
	Binary  string   `json:"binary"` // path of the QEMU program
	Dir     string   `json:"dir"`    // its working directory
	Argv    []string `json:"argv"`
	Version Version  `json:"version"`
	Machine string   `json:"machine"` // versioned machine type, such as "pc-i440fx-7.2"
	Accel   string   `json:"accel"`   // "kvm" or "tcg"
	VCPUs   int      `json:"vcpus"`
	Status  string   `json:"status"` // run state
	Running bool     `json:"running"`

	RAMBytes     int64     `json:"ram_bytes"` // base and plugged
	Backends     []Backend `json:"backends"`
	Devices      []Device  `json:"devices,omitempty"`
	Capabilities []string  `json:"capabilities"` // migration capabilities it knows
	Migration    Migration `json:"migration"`
}

// Backend is one memory backend.
type Backend struct {
	ID       string `json:"id"`
	Type     string `json:"type"` // QOM type, such as "memory-backend-file"
	Path     string `json:"path,omitempty"`
	Size     int64  `json:"size"` // bytes
	Share    bool   `json:"share"`
	Prealloc bool   `json:"prealloc,omitempty"`
	PageSize int64  `json:"page_size,omitempty"` // bytes, of the file's file system or the object
	Used     bool   `json:"used"`                // holds RAM of the machine
	// Object is the object of pagewarp's character device that Path leads to, if it does.
	Object string `json:"object,omitempty"`
	// FileProblem is empty when the file at Path is the one that QEMU maps.
	FileProblem string `json:"file_problem,omitempty"`
}

// Device is one device of the operator's.
type Device struct {
	ID   string `json:"id"`
	Type string `json:"type"`
}

// Inspect asks QEMU and the kernel what this machine is. It changes nothing.
func (v *VM) Inspect(ctx context.Context) (Description, error) {
	d := Description{QMP: v.QMPPath, PID: v.PID, UID: v.UID, Version: v.Version}
	fail := func(err error) (Description, error) {
		return Description{}, fmt.Errorf("inspect QEMU pid %d: %w", v.PID, v.died(err))
	}
	p, err := readProc(v.PID)
	if err != nil {
		return fail(err)
	}
	d.Argv, d.Dir, d.Binary, d.Start = p.argv, p.cwd, p.exe, p.start

	var name struct {
		Name string `json:"name"`
	}
	var kvm struct {
		Enabled bool `json:"enabled"`
	}
	var size struct {
		Base    int64 `json:"base-memory"`
		Plugged int64 `json:"plugged-memory"`
	}
	for _, q := range []struct {
		command string
		out     any
	}{{"query-name", &name}, {"query-kvm", &kvm}, {"query-memory-size-summary", &size}} {
		if err := v.Execute(ctx, q.command, nil, q.out); err != nil {
			return fail(err)
		}
	}
	d.Name, d.RAMBytes = name.Name, size.Base+size.Plugged
	d.Accel = "tcg"
	if kvm.Enabled {
		d.Accel = "kvm"
	}
	cpus, err := v.cpus(ctx)
	if err != nil {
		return fail(err)
	}
	d.VCPUs = len(cpus)
	st, err := v.RunState(ctx)
	if err != nil {
		return fail(err)
	}
	d.Status, d.Running = st.Status, st.Running
	if d.Migration, err = v.Migration(ctx); err != nil {
		return fail(err)
	}
	caps, err := v.capabilities(ctx)
	if err != nil {
		return fail(err)
	}
	d.Capabilities = slices.Sorted(maps.Keys(caps))
	var machine string
	if _, err := v.qomGet(ctx, "/machine", "type", &machine); err != nil {
		return fail(err)
	}
	d.Machine = strings.TrimSuffix(machine, "-machine")
	if d.Devices, err = v.devices(ctx); err != nil {
		return fail(err)
	}
	if d.Backends, err = v.backends(ctx, &d); err != nil {
		return fail(err)
	}
	return d, nil
}

// devices lists what was added by -device and the like.
func (v *VM) devices(ctx context.Context) ([]Device, error) {
	var devices []Device
	for _, dir := range []string{"/machine/peripheral", "/machine/peripheral-anon"} {
		var list []struct {
			Name string `json:"name"`
			Type string `json:"type"`
		}
		if err := v.Execute(ctx, "qom-list", map[string]string{"path": dir}, &list); err != nil {
			return nil, err
		}
		for _, e := range list {
			if t, ok := strings.CutPrefix(e.Type, "child<"); ok {
				devices = append(devices, Device{ID: e.Name, Type: strings.TrimSuffix(t, ">")})
			}
		}
	}
	return devices, nil
}

func (v *VM) backends(ctx context.Context, d *Description) ([]Backend, error) {
	var list []struct {
		ID       string `json:"id"`
		Size     int64  `json:"size"`
		Share    bool   `json:"share"`
		Prealloc bool   `json:"prealloc"`
	}
	if err := v.Execute(ctx, "query-memdev", nil, &list); err != nil {
		return nil, err
	}
	used, err := v.usedBackends(ctx, d.Argv)
	if err != nil {
		return nil, err
	}
	var out []Backend
	for _, e := range list {
		b := Backend{ID: e.ID, Size: e.Size, Share: e.Share, Prealloc: e.Prealloc, Used: used[e.ID]}
		obj := "/objects/" + e.ID
		if ok, err := v.qomGet(ctx, obj, "type", &b.Type); err != nil {
			return nil, err
		} else if !ok { // the default RAM of a machine without -object
			obj = "/machine/" + e.ID
			if _, err := v.qomGet(ctx, obj, "type", &b.Type); err != nil {
				return nil, err
			}
		}
		if b.Type == "memory-backend-file" {
			if _, err := v.qomGet(ctx, obj, "mem-path", &b.Path); err != nil {
				return nil, err
			}
			if !filepath.IsAbs(b.Path) {
				b.Path = filepath.Join(d.Dir, b.Path)
			}
			b.inspectFile(v.PID)
		}
		out = append(out, b)
	}
	return out, nil
}

// usedBackends names the backends that hold RAM: the machine's own, those of NUMA
// nodes, and those of plugged memory devices.
func (v *VM) usedBackends(ctx context.Context, argv []string) (map[string]bool, error) {
	used := make(map[string]bool)
	var link string
	if _, err := v.qomGet(ctx, "/machine", "memory-backend", &link); err != nil {
		return nil, err
	}
	if link != "" {
		used[path.Base(link)] = true
	}
	var devices []struct {
		Data struct {
			Memdev string `json:"memdev"`
		} `json:"data"`
	}
	if err := v.Execute(ctx, "query-memory-devices", nil, &devices); err != nil {
		return nil, err
	}
	for _, e := range devices {
		used[path.Base(e.Data.Memdev)] = true
	}
	args, err := ParseArgv(argv)
	if err != nil {
		return nil, err
	}
	for _, a := range args.Args {
		if a.Name != "numa" {
			continue
		}
		if o, err := a.options(); err == nil {
			if id, ok := o.Get("memdev"); ok {
				used[id] = true
			}
		}
	}
	return used, nil
}

// inspectFile sets PageSize and FileProblem.
func (b *Backend) inspectFile(pid int) {
	file := inRootOf(pid, b.Path)
	st, err := os.Stat(file)
	switch {
	case err != nil:
		b.FileProblem = err.Error()
		return
	case st.IsDir():
		b.FileProblem = "is a directory: QEMU keeps guest memory in an unnamed file there"
		return
	}
	if b.PageSize, err = filePageSize(file); err != nil {
		b.FileProblem = err.Error()
		return
	}
	if st.Mode()&os.ModeDevice != 0 {
		b.inspectDevice(pid, file)
	} else if b.Share {
		if _, err := MemoryMapping(pid, b.Path); err != nil {
			b.FileProblem = err.Error()
		}
	}
}

// inspectDevice sets Object, or says why the device is of no use.
func (b *Backend) inspectDevice(pid int, node string) {
	object, err := kmod.ObjectOf(node)
	switch {
	case err != nil:
		b.FileProblem = err.Error()
	case object == "":
		b.FileProblem = "is a device that is not pagewarp's, whose memory cannot be read from outside QEMU"
	default:
		b.Object = object
		if b.PageSize, err = objectPageSize(object); err != nil {
			b.FileProblem = err.Error()
		} else if err := MapsObject(pid, object, b.Size); err != nil {
			b.FileProblem = err.Error()
		}
	}
}

// objectPageSize is the size of an object's pages, in bytes.
func objectPageSize(object string) (int64, error) {
	c, err := kmod.Open()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	st, err := c.Stat(object)
	return int64(cmp.Or(st.PageSize, os.Getpagesize())), err
}

// MapsObject returns nil if the process maps the first size bytes of an object of
// the character device, shared.
func MapsObject(pid int, object string, size int64) error {
	maps, err := sysmem.Maps(pid)
	if err != nil {
		return err
	}
	var at uint64
	for _, m := range maps {
		// Its file has no name in any directory, so the kernel calls it deleted.
		if strings.TrimSuffix(m.Path, " (deleted)") != kmod.MapsName(object) {
			continue
		}
		if !m.Shared() {
			return detailed(ErrNoSharedFile, "pid %d maps object %s privately at %#x: set share=on on its memory backend", pid, object, m.Start)
		}
		if m.Offset == at {
			at += m.Len()
		}
	}
	if at < uint64(size) {
		return detailed(ErrRAMFileLost, "pid %d maps %#x of %#x bytes of object %s of the pagewarp device", pid, at, size, object)
	}
	return nil
}

// filePageSize is the huge page size on hugetlbfs, else the system's.
func filePageSize(file string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(file, &fs); err != nil {
		return 0, fmt.Errorf("file system of %s: %w", file, err)
	}
	if fs.Type == unix.HUGETLBFS_MAGIC {
		return fs.Bsize, nil
	}
	return int64(os.Getpagesize()), nil
}
