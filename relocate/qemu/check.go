package qemu

import (
	"errors"
	"slices"
	"strings"
)

// neededCapabilities are those of the source; QEMU has them all from 4.0 on.
var neededCapabilities = []string{"x-ignore-shared", "pause-before-switchover", "events"}

// CheckRelocatable says whether the machine can be relocated as it is: nil, or
// every failed precondition, joined, each a sentinel of this package with its
// remedy. It looks at the description only, so either host can ask.
func CheckRelocatable(d Description) error {
	var errs []error
	fail := func(sentinel error, format string, args ...any) {
		errs = append(errs, detailed(sentinel, format, args...))
	}
	if d.Version.Before(Version{Major: 4}) {
		fail(ErrTooOld, "this is %s, x-ignore-shared came with 4.0: restart the machine under a newer QEMU", d.Version)
	} else {
		for _, c := range neededCapabilities {
			if !slices.Contains(d.Capabilities, c) {
				fail(ErrCapability, "QEMU %s of %s has no %s: use an unmodified QEMU from 4.0 on", d.Version, d.Binary, c)
			}
		}
	}
	switch d.Migration.Status {
	case "", "none", "completed", "failed", "cancelled":
	default:
		fail(ErrMigrating, "its state is %q: let it finish, or end it with the QMP command migrate_cancel", d.Migration.Status)
	}
	for _, reason := range d.Migration.Blocked {
		fail(ErrMigrationBlocked, "QEMU says: %s", reason)
	}
	switch d.Status {
	case "running", "paused", "prelaunch", "postmigrate", "suspended":
	default:
		fail(ErrRunState, "its run state is %q: only a running or paused machine can be relocated", d.Status)
	}
	checkMemory(d, fail)
	checkDevices(d, fail)
	return errors.Join(errs...)
}

const backendRemedy = "start the machine with -object memory-backend-file,id=mem,size=SIZE,mem-path=FILE,share=on and -machine …,memory-backend=mem"

func checkMemory(d Description, fail func(error, string, ...any)) {
	var backed int64
	usable := ""
	for _, b := range d.Backends {
		if !b.Used && b.Type == "memory-backend-file" && b.Share {
			usable = b.ID
		}
	}
	for _, b := range d.Backends {
		if !b.Used {
			continue
		}
		backed += b.Size
		switch {
		case b.Type == "memory-backend-memfd":
			fail(ErrMemfd, "backend %q: from QEMU 8.1 on, x-ignore-shared leaves out only memory in a named file, so a memfd would work here and fail after an upgrade; %s", b.ID, backendRemedy)
		case b.Type != "memory-backend-file" && usable != "":
			fail(ErrRAMNotBacked, "backend %q exists, and the machine uses %q (%s) instead; add memory-backend=%s to -machine", usable, b.ID, b.Type, usable)
		case b.Type != "memory-backend-file":
			fail(ErrNoSharedFile, "backend %q is a %s; %s", b.ID, b.Type, backendRemedy)
		case !b.Share:
			fail(ErrNoSharedFile, "backend %q (%s) has share=off, so the file does not hold what the guest writes; add share=on to it", b.ID, b.Path)
		case b.FileProblem != "":
			fail(ErrRAMFileLost, "backend %q, %s: %s; restart the machine with mem-path naming a file, and leave that file alone", b.ID, b.Path, b.FileProblem)
		}
	}
	switch {
	case backed >= d.RAMBytes && backed > 0:
	case backed == 0 && usable != "":
		fail(ErrRAMNotBacked, "backend %q exists, and the machine does not use it; add memory-backend=%s to -machine", usable, usable)
	case backed == 0:
		fail(ErrNoSharedFile, "there is no memory backend; %s", backendRemedy)
	default:
		fail(ErrRAMNotBacked, "%d of %d bytes of RAM are in memory backends; %s", backed, d.RAMBytes, backendRemedy)
	}
}

// checkDevices refuses what reads or writes guest memory behind the kernel's
// fault handling, or in a process that is not relocated.
func checkDevices(d Description, fail func(error, string, ...any)) {
	for _, dev := range d.Devices {
		switch {
		case strings.HasPrefix(dev.Type, "vfio-"):
			fail(ErrDevice, "%q (%s) is a passed-through device, which pins all guest memory; unplug it first (device_del), the guest then needs another way to what it gave", dev.ID, dev.Type)
		case strings.HasPrefix(dev.Type, "vhost-user-"):
			fail(ErrDevice, "%q (%s) is served by another process, which maps guest memory itself; unplug it, or use QEMU's own virtio device", dev.ID, dev.Type)
		case strings.HasPrefix(dev.Type, "vhost-vdpa-"), strings.HasPrefix(dev.Type, "ivshmem-"):
			fail(ErrDevice, "%q (%s) shares guest memory outside QEMU; unplug it first", dev.ID, dev.Type)
		}
	}
	args, err := ParseArgv(d.Argv)
	if err != nil {
		fail(ErrArgv, "%w", err)
		return
	}
	for _, a := range args.Args {
		temporary := a.Name == "snapshot"
		if o, err := a.options(); err == nil && a.Name == "drive" {
			v, _ := o.Get("snapshot")
			temporary = v == "on"
		}
		if temporary {
			fail(ErrDevice, "with -snapshot (or snapshot=on) what the guest wrote to disk is in an unnamed file of this host; write it back (HMP commit all) and restart the machine without it")
		}
		if a.Name != "netdev" && a.Name != "nic" && a.Name != "net" {
			continue
		}
		o, err := a.options()
		if err != nil {
			continue
		}
		switch kind := o.Kind("type"); kind {
		case "vhost-user", "vhost-vdpa":
			id, _ := o.Get("id")
			fail(ErrDevice, "network backend %q is %s, which maps guest memory outside QEMU; use a tap device", id, kind)
		}
	}
}

// Notes says what will differ at the destination though the machine is relocatable.
func Notes(d Description) []string {
	var notes []string
	for _, b := range d.Backends {
		if b.Used && b.Prealloc {
			notes = append(notes, "backend "+b.ID+" has prealloc=on; the destination drops it, since its memory must arrive by faults")
		}
	}
	if args, err := ParseArgv(d.Argv); err == nil {
		for _, a := range args.Args {
			if o, err := a.options(); a.Name == "overcommit" && err == nil {
				if v, _ := o.Get("mem-lock"); v == "on" {
					notes = append(notes, "-overcommit mem-lock=on is dropped at the destination: locking would fill memory before it has arrived")
				}
			}
		}
	}
	return notes
}
