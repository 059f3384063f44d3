package relocate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"golang.org/x/sys/unix"
)

// open opens a machine's memory for reading.
func (m memoryRecord) open() (*os.File, error) {
	if m.Object == "" {
		return os.Open(m.Path)
	}
	c, err := kmod.Open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	fd, err := c.OpenMemory(m.Object)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), m.Path), nil
}

// fileRecord tells a file from another of its name; zero: not known.
type fileRecord struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

func fileOf(f *os.File) (fileRecord, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fileRecord{}, fmt.Errorf("RAM file %s: %w", f.Name(), err)
	}
	return fileRecord{st.Dev, st.Ino}, nil
}

// note writes down which file it is.
func (m *memoryRecord) note() error {
	if m.Object != "" {
		return nil // objects are named for good
	}
	f, err := m.open()
	if err != nil {
		return fmt.Errorf("RAM file: %w", err)
	}
	defer f.Close()
	m.File, err = fileOf(f)
	return err
}

// frozen opens the memory of a machine that has left, or is about to: the very file.
func (m memoryRecord) frozen() (*os.File, error) {
	f, err := m.open()
	if err != nil || m.File == (fileRecord{}) {
		return f, err
	}
	is, err := fileOf(f)
	if err == nil && is != m.File {
		err = fmt.Errorf("%s is another file than the machine's memory was in (inode %d, not %d); put that one back, if it is anywhere", m.Path, is.Ino, m.File.Ino)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// allocated is what the memory really takes, holes left out, in bytes.
func (m memoryRecord) allocated() (int64, error) {
	f, err := m.open()
	if err != nil {
		return 0, fmt.Errorf("RAM file: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("RAM file %s: %w", m.Path, err)
	}
	return st.Blocks * 512, nil // stat(2): st_blocks counts 512-byte units
}

// describe names a machine's memory for the operator.
func describe(memory []memoryRecord) string {
	var out []string
	for _, m := range memory {
		text := m.Path
		if m.Object != "" {
			text += " (frozen; `pagewarp device thaw` and `destroy`)"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// freeMemory removes RAM files and objects. QEMU leaves the files of its file
// backends in place, and on tmpfs they are memory.
func freeMemory(memory []memoryRecord) error {
	var errs []error
	for _, m := range memory {
		if m.Object != "" {
			continue
		}
		if m.File != (fileRecord{}) && exists(m.Path) {
			f, err := m.frozen()
			if err != nil {
				errs = append(errs, fmt.Errorf("RAM file not removed: %w", err))
				continue
			}
			f.Close() // only looked at
		}
		if err := os.Remove(m.Path); err != nil && !os.IsNotExist(err) {
			errs = append(errs, fmt.Errorf("remove RAM file: %w", err))
		}
	}
	return errors.Join(append(errs, freeObjects(memory))...)
}

// freeObjects destroys the objects of the character device among a machine's
// memory. What is gone already, and a module that is, are no errors.
func freeObjects(memory []memoryRecord) error {
	return eachObject(memory, func(c *kmod.Control, m memoryRecord) error {
		if err := c.Destroy(m.Object); !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	})
}

// thaw lets the VMM write again to memory that was frozen.
func thaw(memory []memoryRecord) error {
	return eachObject(memory, func(c *kmod.Control, m memoryRecord) error {
		st, err := c.Stat(m.Object)
		if err != nil || st.State != kmod.Frozen {
			return err
		}
		return c.Thaw(m.Object)
	})
}

// freezeObjects makes sure of what the state machine says: the source's VMM never
// writes to this memory again. It comes after GO, since it takes the longer the
// larger the memory is, and the guest would stand still meanwhile.
func (o *outgoing) freezeObjects() {
	err := eachObject(o.rec.Memory, func(c *kmod.Control, m memoryRecord) error {
		fd, err := c.Freeze(m.Object)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	if err != nil {
		o.warn("the memory was not frozen; it is served all the same", "err", err)
	}
}

func eachObject(memory []memoryRecord, f func(*kmod.Control, memoryRecord) error) error {
	var (
		c    *kmod.Control
		errs []error
	)
	for _, m := range memory {
		if m.Object == "" {
			continue
		}
		if c == nil {
			var err error
			if c, err = kmod.Open(); errors.Is(err, kmod.ErrNoDevice) {
				return nil // an object holds the module: there is none
			} else if err != nil {
				return err
			}
			defer c.Close()
		}
		errs = append(errs, f(c, m))
	}
	return errors.Join(errs...)
}

// reapWait is how long a VMM whose monitor has closed may take to be gone.
const reapWait = 10 * time.Second

// reap frees the objects of a machine that has ended. They stay, and that is said,
// where a process still maps them.
func (h *Host) reap(vm string, objects []string) {
	for _, name := range objects {
		text := "its memory, object " + name + " of the device, was freed"
		if pid := h.awaitUnmapped(name); pid != 0 {
			text = fmt.Sprintf("its memory stays: process %d maps object %s of the device; `pagewarp device destroy %s` frees it later", pid, name, name)
		} else if err := freeObjects([]memoryRecord{{Object: name}}); err != nil {
			text = "its memory was not freed: " + err.Error()
		}
		h.log.Info(text, "vm", vm)
		h.events.add(Event{VM: vm, Kind: "machine", Text: text})
	}
}

// awaitUnmapped waits until no process maps an object's memory; 0, or one that does.
func (h *Host) awaitUnmapped(object string) int {
	deadline, cancel := context.WithTimeout(h.ctx, reapWait)
	defer cancel()
	for {
		pid, err := ObjectMapper(object)
		if err == nil && pid == 0 || deadline.Err() != nil {
			return pid
		}
		sleep(deadline, 50*time.Millisecond)
	}
}

// ObjectMapper finds a process that maps the memory of an object of the character
// device; 0 is none.
func ObjectMapper(object string) (int, error) {
	pids, err := processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if qemu.MapsObject(pid, object, 1) == nil {
			return pid, nil
		}
	}
	return 0, nil
}
