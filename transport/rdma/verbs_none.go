//go:build !cgo || !rdma

package rdma

import "time"

// Built says whether this program can do RDMA.
const Built = false

type (
	device struct{}
	region struct{ lkey, rkey uint32 }
	queue  struct {
		qpn uint32
		fd  int
	}
)

func openVerbs(string, int, int) (*device, error) { return nil, ErrNotBuilt }

// No device can be opened, so none of the following is ever called.

func (*device) close()                                   {}
func (*device) caps() (caps, error)                      { return caps{}, ErrNotBuilt }
func (*device) asyncFD() int                             { return -1 }
func (*device) event() (string, int, bool)               { return "", 0, false }
func (*device) register([]byte, access) (*region, error) { return nil, ErrNotBuilt }
func (*device) queue(int) (*queue, error)                { return nil, ErrNotBuilt }
func (*device) messages(int, int) (*queue, error)        { return nil, ErrNotBuilt }
func (*region) close() error                             { return nil }

func (*queue) connect(*endpoint, uint32, bool) error   { return ErrNotBuilt }
func (*queue) close()                                  {}
func (*queue) receive([]slot) error                    { return ErrNotBuilt }
func (*queue) send(*slot) error                        { return ErrNotBuilt }
func (*queue) post([]read) (int, error)                { return 0, ErrNotBuilt }
func (*queue) poll([]done, time.Duration) (int, error) { return 0, ErrNotBuilt }
func (*queue) arm() error                              { return ErrNotBuilt }
func (*queue) disarm()                                 {}

func addressOf([]byte) uint64  { return 0 }
func statusText(uint32) string { return "" }
