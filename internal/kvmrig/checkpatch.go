package kvmrig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// sourcePackage is the package that has the kernel's sources, of the test guest's series.
const sourcePackage = "linux-source-6.1"

// Checkpatch returns the path of the kernel's checkpatch.pl, from Debian's package of
// its sources, which is downloaded below dir unless it was.
func Checkpatch(ctx context.Context, dir string) (string, error) {
	to := filepath.Join(dir, "checkpatch")
	script := filepath.Join(to, "checkpatch.pl")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(script); err == nil {
		return script, nil
	}
	tmp, err := os.MkdirTemp(dir, "source-*.tmp")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	tarball, err := kernelSources(ctx, tmp)
	if err != nil {
		return "", fmt.Errorf("for checkpatch: %w", err)
	}
	scripts := filepath.Join(tmp, "scripts")
	if err := os.Mkdir(scripts, 0o755); err != nil {
		return "", err
	}
	// --occurrence ends the reading with the last of the files.
	args := []string{"-xJf", tarball, "-C", scripts, "--strip-components=2", "--occurrence"}
	for _, name := range []string{"checkpatch.pl", "const_structs.checkpatch", "spelling.txt"} {
		args = append(args, sourcePackage+"/scripts/"+name)
	}
	if _, err := output(exec.CommandContext(ctx, "tar", args...)); err != nil {
		return "", err
	}
	return script, os.Rename(scripts, to)
}

// kernelSources downloads Debian's package of the kernel's sources into the folder tmp
// and returns the path of the archive in it.
func kernelSources(ctx context.Context, tmp string) (string, error) {
	download := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", sourcePackage)
	download.Dir = tmp
	if _, err := output(download); err != nil {
		return "", fmt.Errorf("download the kernel's sources: %w", err)
	}
	root := filepath.Join(tmp, "root")
	if err := unpack(ctx, tmp, root); err != nil {
		return "", err
	}
	return filepath.Join(root, "usr", "src", sourcePackage+".tar.xz"), nil
}
