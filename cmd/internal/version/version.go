// Package version says which build this is, from what the Go linker recorded.
package version

import (
	"runtime"
	"runtime/debug"
	"sync"
)

// Release may be set by the linker:
//
//	go build -ldflags "-X github.com/pagewarp/pagewarp/cmd/internal/version.Release=v1.0.0"
var Release = ""

// Info describes a build.
type Info struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Dirty   bool   `json:"dirty,omitempty"`
	Built   string `json:"built,omitempty"` // commit time, RFC 3339
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// Get returns the build's description.
var Get = sync.OnceValue(func() Info {
	i := Info{Version: Release, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if b, ok := debug.ReadBuildInfo(); ok {
		if i.Version == "" {
			i.Version = b.Main.Version
		}
		for _, s := range b.Settings {
			switch s.Key {
			case "vcs.revision":
				i.Commit = s.Value
			case "vcs.modified":
				i.Dirty = s.Value == "true"
			case "vcs.time":
				i.Built = s.Value
			}
		}
	}
	if i.Version == "" || i.Version == "(devel)" {
		i.Version = "devel"
	}
	return i
})

// String is one line for people.
func (i Info) String() string {
	s := i.Version
	if i.Commit != "" {
		s += " (" + i.Commit[:min(12, len(i.Commit))]
		if i.Dirty {
			s += ", modified"
		}
		s += ")"
	}
	return s + " " + i.Go + " " + i.OS + "/" + i.Arch
}
