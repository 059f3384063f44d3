package kvmrig

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// writeImage writes the initramfs: vminit as /init, the modules, the programs
// and the plan.
func writeImage(ctx context.Context, dir, path string, modules []string, programs []Program, files []File) error {
	init := filepath.Join(dir, "init")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init,
		"github.com/pagewarp/pagewarp/internal/kvmrig/vminit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if _, err := output(build); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	// Not compressed: under an emulator a kernel takes seconds to unpack it.
	a := &archive{w: cpio.NewWriter(buf)}
	for _, d := range []string{"dev", "proc", "sys", "tmp", "run", "lib", "bin"} {
		a.addDir(d)
	}
	a.addFile("init", init, 0o755)
	var plan Plan
	for _, m := range modules {
		to := "lib/" + filepath.Base(m)
		a.addFile(to, m, 0o644)
		plan.Modules = append(plan.Modules, "/"+to)
	}
	for _, p := range programs {
		to := "bin/" + p.Name
		a.addFile(to, p.Path, 0o755)
		p.Path = "/" + to
		plan.Programs = append(plan.Programs, p)
	}
	for _, f := range files {
		to := strings.TrimPrefix(f.Path, "/")
		a.addDir(filepath.Dir(to))
		a.addFile(to, f.From, 0o755)
	}
	text, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	a.add("plan.json", cpio.TypeReg|0o644, text)
	if a.err != nil {
		return a.err
	}
	if err := a.w.Close(); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// archive adds files to a newc archive until the first error; see the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
type archive struct {
	w     *cpio.Writer
	inode int64
	dirs  map[string]bool
	err   error
}

func (a *archive) add(name string, mode cpio.FileMode, content []byte) {
	if a.err != nil {
		return
	}
	a.inode++
	a.err = a.w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(content)), Links: 1, Inode: a.inode})
	if a.err == nil {
		_, a.err = a.w.Write(content)
	}
}

// addDir adds a directory and those above it, once.
func (a *archive) addDir(name string) {
	if name == "." || a.dirs[name] {
		return
	}
	a.addDir(filepath.Dir(name))
	if a.dirs == nil {
		a.dirs = make(map[string]bool)
	}
	a.dirs[name] = true
	a.add(name, cpio.TypeDir|0o755, nil)
}

func (a *archive) addFile(name, from string, mode cpio.FileMode) {
	f, err := os.Open(from)
	if err != nil {
		if a.err == nil {
			a.err = err
		}
		return
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.add(name, cpio.TypeReg|mode, content)
}
