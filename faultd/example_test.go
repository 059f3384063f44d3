package faultd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"reflect"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/pageserver"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// The memory of a process comes after it: pages that it touches are fetched at once, the
// others by and by. Source and destination are one program here, over TCP with mutual TLS;
// the process that stands for a VMM is another one, as it always is. It sends its
// userfaultfd over a unix socket and knows nothing else of pagewarp.
//
// A migrator brings what is left out here: when the source has stopped and its memory is
// frozen, the state of devices, and when the source may let go, which is once Wait has
// returned at the destination.
func Example() {
	const pages, size = 2048, 2048 * 4096
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // every wait is bounded
	defer cancel()
	regions := []transport.Region{{ID: 0, Name: "ram", Pages: pages, PageSize: 4096}}
	token := transport.NewToken() // names the session; whoever has it can fetch
	sourceTLS, destinationTLS := exampleTLS()

	// The source has the memory in a file that can be mapped: a memfd, or one on tmpfs or
	// hugetlbfs. Nobody writes to it any more.
	frozen := exampleMemfd(size)
	defer unix.Close(frozen)
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i>>12) ^ byte(i)
	}
	if _, err := unix.Pwrite(frozen, content, 0); err != nil {
		log.Fatal(err)
	}
	image, err := pageserver.Open([]pageserver.Source{{Region: regions[0], FD: frozen}})
	if err != nil {
		log.Fatal(err)
	}
	defer image.Release()
	listener, err := tcp.Listen("127.0.0.1:0", tcp.ListenOptions{TLS: sourceTLS,
		Admit: func(h transport.Hello, peer string) (transport.Offer, *transport.RemoteError) {
			if h.Token != token || peer != "destination" { // peer: the subject of its certificate
				return transport.Offer{}, &transport.RemoteError{Code: transport.CodeToken, Text: "no such session"}
			}
			return transport.Offer{Role: transport.Source, Features: sessionFeatures}, nil
		}})
	if err != nil {
		log.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer listener.Close()
	serving.Go(func() {
		for {
			conn, err := listener.Accept(ctx)
			if err != nil {
				return
			}
			answers, err := conn.Responder()
			if err != nil { // a control channel, which nobody serves here
				conn.Close()
				continue
			}
			serving.Go(func() { pageserver.Serve(ctx, answers, image, pageserver.Options{Repeats: true}) })
		}
	})

	// The destination has a process with empty memory, which is a file as well, and its
	// userfaultfd.
	memory := exampleMemfd(size)
	defer unix.Close(memory)
	vmm := startMachine(memory, size)
	defer vmm.end()
	fd, err := faultd.AdoptUserfaultfd(vmm.userfaultfd)
	if err != nil {
		log.Fatal(err)
	}
	shared, err := faultd.NewShared(faultd.UFFDConfig{FD: fd,
		Areas: []faultd.Area{{Region: regions[0], Addr: vmm.address, FD: memory}}})
	if err != nil {
		log.Fatal(err)
	}
	defer shared.Close()
	residency, err := pagecache.New(pages) // in a file, by pagecache.Create, it outlives us
	if err != nil {
		log.Fatal(err)
	}
	defer residency.Close()
	engine, err := faultd.New(faultd.Config{
		Regions: []faultd.Region{{Region: regions[0], Residency: residency}},
		Memory:  shared.Memory(),
		Log:     slog.New(slog.DiscardHandler),
		// Called for each channel, and again whenever one has failed: it waits until there
		// is one. Its error would end the session.
		Open: func(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
			for {
				conn, err := tcp.Dial(ctx, listener.Addr().String(), tcp.Options{TLS: destinationTLS, Hello: transport.Hello{
					Kind: kind, Index: uint16(index), Role: transport.Destination, Token: token, Features: sessionFeatures}})
				if err == nil {
					conn.SetRegions(regions)
					return conn.Fetcher()
				}
				select {
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				case <-time.After(100 * time.Millisecond):
				}
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close() // before the memory and the residency, which it uses
	if err := engine.Start(); err != nil {
		log.Fatal(err)
	}

	// Every touch is caught by now, so the machine may run.
	sum := vmm.run()
	if err := engine.Wait(ctx); err != nil {
		log.Fatal(err)
	}
	stats := engine.Stats()
	fmt.Println("the machine reads what the source had:", sum == sha256.Sum256(content))
	fmt.Println("pages left:", stats.PagesLeft, "drained:", stats.Drained)
	fmt.Println("faults were served:", stats.Faults > 0)

	// Output:
	// the machine reads what the source had: true
	// pages left: 0 drained: true
	// faults were served: true
}

// sessionFeatures need no more than the connection. With transport.FeatureWarm the pages
// that the destination has already would not travel; that takes candidates, see
// Engine.SetWarm, and a control channel.
const sessionFeatures = transport.FeatureFill | transport.FeatureAhead | transport.FeatureRepeat | transport.FeatureS2 | transport.FeatureZstd

func exampleMemfd(size int64) int {
	fd, err := unix.MemfdCreate("ram", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(fd, size)
	}
	if err != nil {
		log.Fatal(err)
	}
	return fd
}

// vmProcess is one that stands for a VMM.
type vmProcess struct {
	cmd         *exec.Cmd
	conn        *net.UnixConn
	userfaultfd int
	address     uint64 // of its memory, in the process
}

func startMachine(memory, size int) *vmProcess {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		log.Fatal(err)
	}
	theirs := os.NewFile(uintptr(ends[1]), "socket")
	copied, err := unix.Dup(memory)
	if err != nil {
		log.Fatal(err)
	}
	file := os.NewFile(uintptr(copied), "ram")
	m := &vmProcess{cmd: exec.Command("/proc/self/exe")}
	m.cmd.Env = append(os.Environ(), machineEnv+"="+fmt.Sprint(size))
	m.cmd.ExtraFiles, m.cmd.Stderr = []*os.File{file, theirs}, os.Stderr
	if err := m.cmd.Start(); err != nil {
		log.Fatal(err)
	}
	file.Close()
	theirs.Close()
	ours := os.NewFile(uintptr(ends[0]), "socket")
	conn, err := net.FileConn(ours)
	if err != nil {
		log.Fatal(err)
	}
	ours.Close()
	m.conn = conn.(*net.UnixConn)
	m.conn.SetDeadline(time.Now().Add(time.Minute))

	var address [8]byte
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := m.conn.ReadMsgUnix(address[:], rights)
	if err != nil {
		log.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		log.Fatal("no userfaultfd came: ", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		log.Fatal(err)
	}
	m.userfaultfd, m.address = fds[0], binary.LittleEndian.Uint64(address[:])
	return m
}

// run has the machine read its memory, and returns the hash of what it has read.
func (m *vmProcess) run() (sum [sha256.Size]byte) {
	if _, err := m.conn.Write([]byte("run")); err != nil {
		log.Fatal(err)
	}
	if n, err := m.conn.Read(sum[:]); err != nil || n != len(sum) {
		log.Fatal("the machine has ended: ", err)
	}
	return sum
}

func (m *vmProcess) end() {
	m.conn.Close()
	m.cmd.Process.Kill()
	m.cmd.Wait()
}

const machineEnv = "PAGEWARP_EXAMPLE_MACHINE"

// init is the machine's main, in its process.
func init() {
	var size int
	if n, err := fmt.Sscan(os.Getenv(machineEnv), &size); n != 1 || err != nil {
		return
	}
	memory, err := unix.Mmap(3, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		log.Fatal(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		log.Fatal("userfaultfd: ", errno, "; it needs CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1")
	}
	file := os.NewFile(4, "socket")
	conn, err := net.FileConn(file)
	if err != nil {
		log.Fatal(err)
	}
	address := binary.LittleEndian.AppendUint64(nil, uint64(reflect.ValueOf(memory).Pointer()))
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix(address, unix.UnixRights(int(fd)), nil); err != nil {
		log.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 8)); n == 0 || err != nil {
		os.Exit(0)
	}
	seen := bytes.Clone(memory) // each page of it is a fault, unless it came before
	sum := sha256.Sum256(seen)
	conn.Write(sum[:])
	conn.Read(make([]byte, 8)) // until it is ended
	os.Exit(0)
}
