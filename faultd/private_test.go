package faultd_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/transport"
)

// Ordinary memory that is described in pages of 2 MiB would be copied in part: the kernel
// stops at the first of its own pages that is there, and the rest of 2 MiB counted as there,
// too.
func TestPrivatePagesAreThoseOfTheKernel(t *testing.T) {
	const huge = 2 << 20
	for name, registered := range map[string]bool{"registered here": false, "registered by the process": true} {
		t.Run(name, func(t *testing.T) {
			proc, err := touch.Start(withDeadline(t, 20*time.Second))
			must(t, err)
			defer proc.Kill()
			fd, err := proc.Userfaultfd()
			must(t, err)
			u, err := faultd.AdoptUserfaultfd(fd)
			must(t, err)
			defer u.Close()
			reg, err := proc.MapPrivate(3 * huge)
			must(t, err)
			addr := (reg.Addr + huge - 1) / huge * huge
			if registered {
				_, err = u.API(0)
				must(t, err)
				_, err = u.Register(addr, 2*huge, uffd.ModeMissing)
				must(t, err)
			}
			p, err := faultd.NewPrivate(faultd.UFFDConfig{FD: u, Registered: registered,
				Areas: []faultd.Area{{Region: transport.Region{ID: 7, Pages: 2, PageSize: huge}, Addr: addr}}})
			if err == nil {
				mem, err := sysmem.MapAnonymous(huge)
				must(t, err)
				for i := range mem {
					mem[i] = 1
				}
				_, err = u.Copy(addr+8*pageSize, uint64(addressOfTest(mem)), pageSize, 0)
				must(t, err)
				must(t, p.Install(transport.Range{Region: 7, Count: 1}, [][]byte{mem}))
				n, cerr := u.Copy(addr+9*pageSize, uint64(addressOfTest(mem)), pageSize, 0)
				t.Fatalf("taken; page 9 of 512 was installed: %v", n == 0 && cerr == uffd.ErrExists)
			}
			if !strings.Contains(err.Error(), "4096") {
				t.Errorf("%v does not say what the pages are", err)
			}
		})
	}
}

func addressOfTest(b []byte) uintptr { return reflect.ValueOf(b).Pointer() }
