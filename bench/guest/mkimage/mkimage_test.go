package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
)

const modulesDep = `kernel/net/core/failover.ko:
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/net/virtio-net.ko.xz: kernel/drivers/net/net_failover.ko kernel/drivers/virtio/virtio_ring.ko kernel/net/core/failover.ko
`

func TestLoadOrder(t *testing.T) {
	order, err := loadOrder(modulesDep, []string{"virtio_net", "failover"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range order {
		names = append(names, moduleName(p))
	}
	want := []string{"failover", "net_failover", "virtio", "virtio_ring", "virtio_net"}
	if !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
	if _, err := loadOrder(modulesDep, []string{"virtio_blk"}); err == nil || !strings.Contains(err.Error(), "virtio_blk") {
		t.Errorf("a missing module gave the error %v", err)
	}
}

func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	init, modules, out := filepath.Join(dir, "init"), filepath.Join(dir, "modules"), filepath.Join(dir, "out.gz")
	if err := errors.Join(
		os.WriteFile(init, []byte("#!/bin/true\n"), 0o755),
		os.Mkdir(modules, 0o755),
		os.WriteFile(filepath.Join(modules, "list"), []byte("a.ko\n"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	if err := writeInitramfs(out, init, modules); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	packed, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	r := cpio.NewReader(z)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "init" && h.Mode.Perm() != 0o755 {
			t.Errorf("init has mode %o", h.Mode)
		}
		got[h.Name] = string(content)
	}
	if got["init"] != "#!/bin/true\n" || got["lib/modules/list"] != "a.ko\n" || len(got) != 7 {
		t.Errorf("archive holds %q", got)
	}

	before, _ := os.Stat(out)
	if err := writeInitramfs(out, init, modules); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(out); !os.SameFile(before, after) {
		t.Error("an archive that was up to date was written again")
	}
	if err := os.WriteFile(init, []byte("new\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeInitramfs(out, init, modules); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(out); os.SameFile(before, after) {
		t.Error("a changed init did not change the archive")
	}
}
