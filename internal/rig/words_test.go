package rig

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLastWords(t *testing.T) {
	dir := t.TempDir()
	vm := &VM{ConsolePath: filepath.Join(dir, "console"), LogPath: filepath.Join(dir, "log")}
	if guest, qemu := vm.LastWords(); guest != "" || qemu != "" {
		t.Errorf("of nothing: %q, %q", guest, qemu)
	}
	for path, text := range map[string]string{vm.ConsolePath: "[ 1.0] up\r\n[ 2.0] on\xff\r\n\r\n", vm.LogPath: "a\nlast"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if guest, qemu := vm.LastWords(); guest != "[ 2.0] on?" || qemu != "last" {
		t.Errorf("%q, %q", guest, qemu)
	}
	if err := os.WriteFile(vm.ConsolePath, []byte("[ 1.0] up\n[ 3.0] Oops: 0000 [#1]\n[ 3.1] Kernel panic - x\n[ 3.2] end\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if guest, _ := vm.LastWords(); guest != "[ 3.0] Oops: 0000 [#1]" {
		t.Errorf("of a kernel in trouble: %q", guest)
	}
}
