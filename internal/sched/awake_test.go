package sched

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestAwake: the device is told the latency, in µs, as four bytes, and is open until the end.
func TestAwake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "latency")
	if _, err := awake(path, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a device: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := awake(path, 7*time.Microsecond)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, binary.NativeEndian.AppendUint32(nil, 7)) {
		t.Errorf("the device was told % x: %v", b, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
