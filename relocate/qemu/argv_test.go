package qemu

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func FuzzOptions(f *testing.F) {
	for _, s := range []string{
		"", ",", ",,", ",,,", "a", "a=b", "=", "=,", "tap,id=n0,ifname=a,,b", "a,,b=c", "x,flag,y=1,,",
		"unix:/run/a,,b.sock,server=on,wait=off", `{"qom-type":"memory-backend-file","size":68719476736,"share":true}`,
		`{"a":["/x",{"b":null}]}`, "{", "a=b=c,d",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseOptions(s)
		if err != nil {
			if !strings.HasPrefix(s, "{") || !errors.Is(err, ErrArgv) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		out := o.String()
		if !strings.HasPrefix(s, "{") && out != s {
			t.Fatalf("%q came back as %q", s, out)
		}
		again, err := ParseOptions(out)
		if err != nil || again.String() != out {
			t.Fatalf("%q became %q, then %q, %v", s, out, again.String(), err)
		}
		o.Set("path", "a,b=,,c")
		if o.json != nil {
			return
		}
		if again, err = ParseOptions(o.String()); err != nil {
			t.Fatal(err)
		}
		if v, ok := again.Get("path"); !ok || v != "a,b=,,c" {
			t.Fatalf("%q: path is %q after Set", s, v)
		}
	})
}

func FuzzArgv(f *testing.F) {
	f.Add("qemu\x00-S\x00-m\x002G\x00disk.img\x00--daemonize\x00-append\x00-x=y")
	f.Add("qemu\x00-")
	f.Fuzz(func(t *testing.T, s string) {
		words := strings.Split(s, "\x00")
		p, err := ParseArgv(words)
		if err != nil {
			if !errors.Is(err, ErrArgv) {
				t.Fatal(err)
			}
			return
		}
		if got := p.Words(); !slices.Equal(got, words) {
			t.Fatalf("%q came back as %q", words, got)
		}
	})
}

func TestOptions(t *testing.T) {
	o, err := ParseOptions("socket,id=c0,path=/a,,b,server,id=c1")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"id": "c1", "path": "/a,b", "server": "on"} {
		if got, _ := o.Get(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if k := o.Kind("backend"); k != "socket" {
		t.Errorf("kind is %q", k)
	}
	if _, ok := o.Get("socket"); ok {
		t.Error("the first word is taken for a flag")
	}
	o.Delete("server")
	o.Set("id", "x")
	if got := o.String(); got != "socket,path=/a,,b,id=x" {
		t.Errorf("edited to %q", got)
	}
}

func TestDestinationArgv(t *testing.T) {
	ownQMP := []string{"-chardev", "socket,id=pagewarp-qmp,path=/run/d.qmp,server=on,wait=off",
		"-mon", "chardev=pagewarp-qmp,id=pagewarp-mon,mode=control", "-S", "-incoming", "defer"}
	pc := []string{"-machine", "pc-i440fx-7.2"}
	ab := Template{Rewrite: []Rewrite{{"/a", "/b"}, {"/a/deep", "/c"}}}
	for _, c := range []struct {
		name string
		src  string
		t    Template
		want string
	}{
		{"alias pinned", "-machine pc,memory-backend=mem -m 64M", Template{}, "-machine pc-i440fx-7.2,memory-backend=mem -m 64M"},
		{"type= pinned", "-M type=pc,accel=tcg", Template{}, "-M accel=tcg,type=pc-i440fx-7.2"},
		{"already pinned", "-M pc-i440fx-7.2,usb=off", Template{}, "-M pc-i440fx-7.2,usb=off"},
		{"machine of two parts", "-machine memory-backend=mem -machine pc", Template{}, "-machine memory-backend=mem -machine pc-i440fx-7.2"},
		{"incoming, stopped, daemon", "-S -incoming tcp:0:4444 -daemonize -pidfile /a/pid " + strings.Join(pc, " "), ab, "-pidfile /b/pid " + strings.Join(pc, " ")},
		{"own monitor replaced", strings.Join(append(slices.Clone(pc), ownQMP[:4]...), " "), Template{}, strings.Join(pc, " ")},
		{"prealloc", "-mem-prealloc -object memory-backend-file,id=mem,prealloc=on,prealloc-threads=4,share=on -M pc-i440fx-7.2", Template{},
			"-object memory-backend-file,id=mem,share=on -M pc-i440fx-7.2"},
		{"prealloc in JSON", `-object {"id":"mem","prealloc":true,"qom-type":"memory-backend-file","size":68719476736} -M pc-i440fx-7.2`, Template{},
			`-object {"id":"mem","qom-type":"memory-backend-file","size":68719476736} -M pc-i440fx-7.2`},
		{"locked memory", "-overcommit mem-lock=on -M pc-i440fx-7.2", Template{}, "-M pc-i440fx-7.2"},
		{"locked memory beside", "-overcommit mem-lock=on,cpu-pm=on -M pc-i440fx-7.2", Template{}, "-overcommit cpu-pm=on -M pc-i440fx-7.2"},
		{"paths", "-qmp unix:/a/q,server=on -serial file:/a/log -drive file=/a/deep/d,,1,format=raw -kernel /a/vmlinuz /a/disk -pidfile /ab -M pc-i440fx-7.2", ab,
			"-qmp unix:/b/q,server=on -serial file:/b/log -drive file=/c/d,,1,format=raw -kernel /b/vmlinuz /b/disk -pidfile /ab -M pc-i440fx-7.2"},
		{"not paths", "-append root=/a -name /a -fw_cfg name=opt/x,string=/a -smbios type=11,value=/a -M pc-i440fx-7.2", ab,
			"-append root=/a -name /a -fw_cfg name=opt/x,string=/a -smbios type=11,value=/a -M pc-i440fx-7.2"},
		{"paths in JSON", `-blockdev {"driver":"raw","file":{"driver":"file","filename":"/a/x"},"node-name":"/a"} -M pc-i440fx-7.2`, ab,
			`-blockdev {"driver":"raw","file":{"driver":"file","filename":"/b/x"},"node-name":"/a"} -M pc-i440fx-7.2`},
		{"set", "-cpu max -netdev tap,id=n0,fd=7 -netdev tap,id=n1,ifname=x -M pc-i440fx-7.2",
			Template{Set: map[string]string{"cpu": "host", "netdev.n0": "tap,id=n0,ifname=t0", "netdev.n1.ifname": "t1", "msg": "timestamp=on"}},
			"-cpu host -netdev tap,id=n0,ifname=t0 -netdev tap,id=n1,ifname=t1 -M pc-i440fx-7.2 -msg timestamp=on"},
		{"remove", "-vnc :1 -device usb-tablet,id=u0 -device rtl8139,id=e0 -M pc-i440fx-7.2",
			Template{RemoveArgs: []string{"-vnc", "device.u0", "spice"}}, "-device rtl8139,id=e0 -M pc-i440fx-7.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Description{Binary: "/usr/bin/qemu", Argv: append([]string{"qemu"}, strings.Fields(c.src)...), Machine: "pc-i440fx-7.2"}
			got, err := DestinationArgv(d, c.t, "/run/d.qmp")
			if err != nil {
				t.Fatal(err)
			}
			want := append([]string{"/usr/bin/qemu"}, strings.Fields(c.want)...)
			if want = append(want, ownQMP...); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
	d := Description{Binary: "/usr/bin/qemu", Argv: []string{"qemu"}, Machine: "microvm"}
	got, err := DestinationArgv(d, Template{Binary: "/opt/qemu", AddArgs: []string{"-d", "guest_errors"}}, "/r,1")
	if err != nil || got[0] != "/opt/qemu" || !slices.Contains(got, "microvm") || got[len(got)-1] != "guest_errors" ||
		!slices.Contains(got, "socket,id=pagewarp-qmp,path=/r,,1,server=on,wait=off") {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDestinationArgvRefuses(t *testing.T) {
	for _, c := range []struct {
		src   string
		t     Template
		want  error
		words string
	}{
		{"-netdev tap,id=n0,fd=7", Template{}, ErrInheritedFD, `set "netdev.n0" to "tap,id=n0,ifname=`},
		{"-netdev tap,id=n0,fds=7:8,vhost=on", Template{}, ErrInheritedFD, "fds=7:8"},
		{`-netdev {"type":"tap","fds":"23","id":"hostnet0"}`, Template{}, ErrInheritedFD, "hostnet0"},
		{"-chardev socket,id=c0,fd=5,server=on", Template{}, ErrInheritedFD, "chardev.c0"},
		{"-add-fd fd=3,set=2", Template{}, ErrInheritedFD, "add-fd"},
		{"-drive file=/dev/fdset/2,if=virtio", Template{}, ErrInheritedFD, "/dev/fdset/2"},
		{"-netdev stream,id=n0,addr.type=fd,addr.str=5", Template{}, ErrInheritedFD, "netdev.n0"},
		{"-device", Template{}, ErrArgv, "lacks its argument"},
		{"-object {x", Template{}, ErrArgv, "JSON"},
		{"-m 1", Template{Set: map[string]string{"netdev.n9": "user"}}, ErrTemplate, "netdev.n9"},
		{"-device a -device b", Template{Set: map[string]string{"device": "c"}}, ErrTemplate, "several"},
	} {
		d := Description{Binary: "/q", Argv: append([]string{"qemu"}, strings.Fields(c.src)...), Machine: "pc"}
		_, err := DestinationArgv(d, c.t, "/q")
		if c.want != nil {
			wantError(t, err, c.want, c.words)
		}
	}
}

// good is a description without a fault.
func good() Description {
	return Description{
		Version: Version{7, 2, 22, ""}, Argv: []string{"qemu"}, Status: "running", RAMBytes: 64 << 20,
		Capabilities: slices.Clone(neededCapabilities),
		Backends:     []Backend{{ID: "mem", Type: "memory-backend-file", Path: "/m", Size: 64 << 20, Share: true, Used: true}},
	}
}

func TestCheckRelocatable(t *testing.T) {
	if err := CheckRelocatable(good()); err != nil {
		t.Fatalf("a good machine: %v", err)
	}
	numa := good()
	numa.Backends = append(numa.Backends, numa.Backends[0])
	numa.RAMBytes *= 2
	if err := CheckRelocatable(numa); err != nil {
		t.Fatalf("two nodes: %v", err)
	}
	for _, c := range []struct {
		name  string
		spoil func(*Description)
		want  error
		words string
	}{
		{"old", func(d *Description) { d.Version = Version{3, 1, 0, ""} }, ErrTooOld, "4.0"},
		{"capability", func(d *Description) { d.Capabilities = []string{"events"} }, ErrCapability, "x-ignore-shared"},
		{"migrating", func(d *Description) { d.Migration.Status = "active" }, ErrMigrating, "migrate_cancel"},
		{"blocked", func(d *Description) { d.Migration.Blocked = []string{"9p in use"} }, ErrMigrationBlocked, "9p in use"},
		{"run state", func(d *Description) { d.Status = "inmigrate" }, ErrRunState, "inmigrate"},
		{"no backend", func(d *Description) { d.Backends = nil }, ErrNoSharedFile, "memory-backend-file,id=mem"},
		{"ram backend", func(d *Description) { d.Backends[0].Type = "memory-backend-ram" }, ErrNoSharedFile, "memory-backend-ram"},
		{"memfd", func(d *Description) { d.Backends[0].Type = "memory-backend-memfd" }, ErrMemfd, "8.1"},
		{"private", func(d *Description) { d.Backends[0].Share = false }, ErrNoSharedFile, "share=on"},
		{"unused", func(d *Description) { d.Backends[0].Used = false }, ErrRAMNotBacked, "memory-backend=mem"},
		{"partly", func(d *Description) { d.RAMBytes *= 2 }, ErrRAMNotBacked, "67108864 of 134217728"},
		{"deleted", func(d *Description) { d.Backends[0].FileProblem = "gone" }, ErrRAMFileLost, "/m"},
		{"vfio", func(d *Description) { d.Devices = []Device{{"gpu", "vfio-pci"}} }, ErrDevice, "gpu"},
		{"vhost-user", func(d *Description) { d.Devices = []Device{{"fs", "vhost-user-fs-pci"}} }, ErrDevice, "vhost-user-fs"},
		{"vhost-user net", func(d *Description) { d.Argv = []string{"q", "-netdev", "vhost-user,id=n,chardev=c"} }, ErrDevice, "vhost-user"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := good()
			c.spoil(&d)
			wantError(t, CheckRelocatable(d), c.want, c.words)
		})
	}
	d := good()
	d.Backends, d.Migration.Status = nil, "active"
	err := CheckRelocatable(d)
	wantError(t, err, ErrNoSharedFile)
	wantError(t, err, ErrMigrating)
}

func TestCheckDestination(t *testing.T) {
	d := Description{Version: Version{7, 2, 22, ""}, Machine: "pc-i440fx-7.2"}
	have := Program{Path: "/q", Version: Version{7, 2, 1, ""}, Machines: []string{"pc", "pc-i440fx-7.2"}}
	if err := CheckDestination(d, have); err != nil {
		t.Error(err)
	}
	old := have
	old.Version = Version{7, 1, 99, ""}
	wantError(t, CheckDestination(d, old), ErrTooOld, "at least 7.2")
	d.Machine = "virt-7.2"
	wantError(t, CheckDestination(d, have), ErrMachineType, "virt-7.2")
	for _, s := range []string{"", "qemu 7", "QEMU emulator version x"} {
		if v, err := parseVersion(s); err == nil {
			t.Errorf("%q parsed as %v", s, v)
		}
	}
}
