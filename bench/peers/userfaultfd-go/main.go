// Command userfaultfd-go is a peer of pagewarp's comparisons: the memory of a
// process, served page by page over TCP by the handler of
// github.com/loopholelabs/userfaultfd-go. It is a module of its own, so that
// pagewarp does not depend on that library.
//
//	userfaultfd-go serve ADDR FILE
//	userfaultfd-go handle SOCKET ADDR PAGES
//
// serve is the source: it answers requests for pages from FILE, mapped. handle is
// the destination: it takes a userfaultfd that is registered already from SOCKET,
// in the library's own format, and has the library's handler serve its faults;
// the handler reads from an io.ReaderAt, which here asks the source. A request is
// the page's number in 8 bytes, little-endian, the answer its bytes. The library
// serves one fault after the other, so that one connection, without delay, is
// what it can use.
//
// Both say "ready" once they are; handle says "pages N" every so many pages, and
// "done" when it has served PAGES. A second fault of a page, which only a
// process of several threads raises, is counted twice.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/loopholelabs/userfaultfd-go/pkg/mapper"
	"github.com/loopholelabs/userfaultfd-go/pkg/transfer"
)

const (
	pageBytes = 4096
	// tellEvery is so many pages that telling costs nothing beside them.
	tellEvery = 1024
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "userfaultfd-go:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "serve":
		return serve(args[1], args[2])
	case len(args) == 4 && args[0] == "handle":
		pages, err := strconv.ParseUint(args[3], 10, 40)
		if err != nil || pages == 0 {
			return fmt.Errorf("%q is not a number of pages", args[3])
		}
		return handle(args[1], args[2], pages)
	}
	return errors.New("usage: userfaultfd-go serve ADDR FILE | handle SOCKET ADDR PAGES")
}

// serve answers one connection until it ends.
func serve(addr, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	memory, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", path, err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("ready")
	c, err := l.Accept() // Go sets TCP_NODELAY
	if err != nil {
		return err
	}
	defer c.Close()
	pages := uint64(len(memory) / pageBytes)
	var request [8]byte
	for {
		if _, err := io.ReadFull(c, request[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		n := binary.LittleEndian.Uint64(request[:])
		if n >= pages {
			return fmt.Errorf("page %d of %d was asked for", n, pages)
		}
		if _, err := c.Write(memory[n*pageBytes:][:pageBytes]); err != nil {
			return err
		}
	}
}

// remote is the source's memory, as the library reads it: whole pages.
type remote struct {
	conn          net.Conn
	served, pages uint64
}

func (r *remote) ReadAt(p []byte, off int64) (int, error) {
	// The library asks for a page at the very address of the fault.
	var request [8]byte
	binary.LittleEndian.PutUint64(request[:], uint64(off)/pageBytes)
	if _, err := r.conn.Write(request[:]); err != nil {
		return 0, err
	}
	n, err := io.ReadFull(r.conn, p)
	r.served++
	switch {
	case err != nil:
	case r.served == r.pages:
		// Before the last page is there, by some µs.
		fmt.Println("done")
	case r.served%tellEvery == 0:
		fmt.Println("pages", r.served)
	}
	return n, err
}

// handle serves the faults of one process.
func handle(socket, addr string, pages uint64) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Println("ready")
	c, err := l.AcceptUnix()
	if err != nil {
		return err
	}
	defer c.Close()
	u, start, err := transfer.ReceiveUFFD(c)
	if err != nil {
		return fmt.Errorf("receive the userfaultfd: %w", err)
	}
	if _, err := c.Write([]byte{0}); err != nil { // it is here
		return err
	}
	source := &remote{conn: conn, pages: pages}
	for {
		// The handler returns on a signal, and Go's scheduler sends some: nothing
		// has been read then, and it can go on.
		if err := mapper.Handle(u, start, source); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
