package qemu

import "strings"

// ServerSockets lists the paths of the unix sockets that a QEMU of this command
// line creates. QEMU removes them when it ends by itself, not when it is killed.
func ServerSockets(argv []string) []string {
	p, err := ParseArgv(argv)
	for err != nil && len(argv) > 1 {
		// A template may have added a flag at the end that only its QEMU knows.
		argv = argv[:len(argv)-1]
		p, err = ParseArgv(argv)
	}
	if err != nil {
		return nil
	}
	var paths []string
	for _, a := range p.Args {
		o, err := a.options()
		if err != nil || !a.HasValue {
			continue
		}
		server, has := o.Get("server")
		if !has || server == "off" {
			continue
		}
		if path, ok := o.Get("path"); ok {
			paths = append(paths, path)
			continue
		}
		// The short form, "unix:PATH,server=on".
		if first, _, _ := strings.Cut(a.Value, ","); strings.HasPrefix(first, "unix:") {
			paths = append(paths, strings.TrimPrefix(first, "unix:"))
		}
	}
	return paths
}
