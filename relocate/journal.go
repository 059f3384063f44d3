package relocate

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport"
)

// tombstoneAge is how long the journal of an ended relocation stays, so that a
// peer that returns late learns how it ended.
const tombstoneAge = 24 * time.Hour

// record is one relocation as it stands in the state directory. It is written
// before the step that it announces.
type record struct {
	Version int     `json:"version"` // 1
	Token   string  `json:"token"`   // 64 hex digits; the file has mode 0600
	VM      string  `json:"vm"`
	Role    Role    `json:"role"`
	Phase   Phase   `json:"phase"`
	Peer    string  `json:"peer"`               // source: the address to dial
	Ident   string  `json:"identity,omitempty"` // of the peer's certificate
	Options Options `json:"options"`
	Error   string  `json:"error,omitempty"`

	QMP       string             `json:"qmp"`
	PID       int                `json:"pid"`
	StartTime uint64             `json:"start_time"` // of PID, in clock ticks since boot
	WasRun    bool               `json:"was_running"`
	Saved     qemu.Saved         `json:"saved"` // source: QEMU's settings to put back
	Memory    []memoryRecord     `json:"memory"`
	Regions   []transport.Region `json:"regions"`
	Log       string             `json:"log,omitempty"`     // of the VMM that was started here
	Cleanup   []string           `json:"cleanup,omitempty"` // files to remove with the relocation
	RemoteFD  int                `json:"remote_fd,omitempty"`
	Resumed   bool               `json:"resumed,omitempty"` // destination: `cont` was answered
	Whole     bool               `json:"whole,omitempty"`   // destination: every page is there, the claims may be gone
	Started   time.Time          `json:"started"`
	Stopped   time.Time          `json:"stopped,omitzero"`
	ResumedAt time.Time          `json:"resumed_at,omitzero"`
	Ended     time.Time          `json:"ended,omitzero"`
}

// memoryRecord is one RAM file of the machine on this host.
type memoryRecord struct {
	ID   string `json:"id"` // of the memory backend
	Path string `json:"path"`
	Size int64  `json:"size"` // bytes
	// Object is the object of the character device whose node Path is, if it is one.
	Object string `json:"object,omitempty"`
	// File is which file it was that the machine's source froze.
	File fileRecord `json:"file,omitzero"`
	// PageSize is that of an object to be made; 0 is the device's own.
	PageSize int `json:"page_size,omitempty"` // bytes
}

// onDevice tells whether the machine's memory is on the character device.
func (r *record) onDevice() bool { return len(r.Memory) > 0 && r.Memory[0].Object != "" }

// objects are those of the character device that hold the machine's memory.
func (r *record) objects() []string {
	var out []string
	for _, m := range r.Memory {
		if m.Object != "" {
			out = append(out, m.Object)
		}
	}
	return out
}

// sessionName is the printable name of a token: it identifies the session in
// logs and files without giving the capability away.
func sessionName(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:4])
}

// journal keeps the records of one host.
type journal struct{ dir string }

func openJournal(dir string) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory %s: %w", dir, err)
	}
	return &journal{dir: dir}, nil
}

func (j *journal) path(r *record) string {
	return j.named(r.Role, sessionName(r.Token))
}

func (j *journal) named(role Role, session string) string {
	return filepath.Join(j.dir, string(role)+"-"+session+".json")
}

// forget deletes the record of an ended relocation.
func (j *journal) forget(role Role, session string) { os.Remove(j.named(role, session)) }

// residency is the file that holds the claims of a region, beside the record.
func (j *journal) residency(r *record, region uint32) string {
	return filepath.Join(j.dir, fmt.Sprintf("%s-%s.%d.residency", r.Role, sessionName(r.Token), region))
}

// write replaces the record's file atomically.
func (j *journal) write(r *record) error {
	r.Version = 1
	if err := writeFileAtomic(j.path(r), r); err != nil {
		return fmt.Errorf("write journal of %s: %w (is %s full or read-only?)", r.VM, err, j.dir)
	}
	return nil
}

// remove deletes the record and its residency files.
func (j *journal) remove(r *record) {
	os.Remove(j.path(r))
	j.removeResidency(r)
}

func (j *journal) removeResidency(r *record) {
	for _, reg := range r.Regions {
		os.Remove(j.residency(r, reg.ID))
	}
}

// load reads every record and drops the ended ones past tombstoneAge. A file
// that cannot be read is reported and left in place: it may be the only trace
// of a machine.
func (j *journal) load(now time.Time) ([]*record, error) {
	names, err := filepath.Glob(filepath.Join(j.dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", j.dir, err)
	}
	var (
		out  []*record
		errs []error
	)
	for _, name := range names {
		base := filepath.Base(name)
		if !strings.HasPrefix(base, string(RoleSource)+"-") && !strings.HasPrefix(base, string(RoleDestination)+"-") {
			continue
		}
		r, err := readRecord(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if r.Phase.Final() && now.Sub(r.Ended) > tombstoneAge {
			j.remove(r)
			continue
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

func readRecord(name string) (*record, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("journal %s is damaged: %w; look whether its machine still runs before you remove it", name, err)
	}
	if r.Version != 1 {
		return nil, fmt.Errorf("journal %s has version %d, this daemon reads 1; finish it with the daemon that wrote it", name, r.Version)
	}
	if len(r.Token) != 64 || (r.Role != RoleSource && r.Role != RoleDestination) {
		return nil, fmt.Errorf("journal %s is damaged: token or role is missing", name)
	}
	return r, nil
}

// writeFileAtomic writes v as JSON beside path and renames it into place.
func writeFileAtomic(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}

// readJSON reads path into v; a missing file leaves v as it is.
func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	return nil
}
