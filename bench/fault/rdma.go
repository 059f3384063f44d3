package fault

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/rdma"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// reads counts the daemon's READs.
var reads rdma.Stats

func (t *task) device() (*rdma.Device, error) {
	port, gid, err := rdma.Choose(t.RDMA, netip.Addr{})
	if err != nil {
		return nil, err
	}
	return rdma.Open(port, gid)
}

// export makes the image, descriptor 3, ready for READs; nil without RDMA.
func (t *task) export() (*rdma.Export, error) {
	if t.RDMA == "" {
		return nil, nil
	}
	dev, err := t.device()
	if err != nil {
		return nil, err
	}
	return rdma.NewExport(dev, []rdma.Source{{Region: t.region(), Path: "/proc/self/fd/3"}}, rdma.ExportOptions{Pin: rdma.PinAll})
}

// landing is how the daemon's pages come.
type landing struct {
	*task
	dev   *rdma.Device  // nil: by TCP
	place *rdma.Landing // nil: by staging buffers
}

// reserve allocates the memory, if that was asked for, and has it ready for READs.
func (t *task) reserve(e *faultd.Engine) (*landing, error) {
	l := &landing{task: t}
	var err error
	if t.RDMA != "" {
		if l.dev, err = t.device(); err != nil {
			return nil, err
		}
	}
	if !t.Reserve && t.Land == "" {
		return l, nil
	}
	if _, err := e.Reserve(transport.Range{Region: t.region().ID, Count: uint32(t.Pages)}); err != nil {
		return nil, err
	}
	if t.Land == "" {
		return l, nil
	}
	var to []rdma.Stretch
	e.EachReserved(func(r transport.Range, mem []byte) { to = append(to, rdma.Stretch{Range: r, Memory: mem}) })
	if l.place, err = rdma.NewLanding(l.dev, to, rdma.LandingOptions{}); err != nil {
		return nil, err
	}
	select {
	case <-l.place.Done():
	case <-time.After(10 * time.Second):
	}
	if n := l.place.Registered(); n < uint64(len(to[0].Memory)) {
		return nil, fmt.Errorf("%d bytes are registered after 10 s, of %d", n, len(to[0].Memory))
	}
	return l, nil
}

// overRDMA puts RDMA on a channel, if it was asked for.
func (l *landing) overRDMA(conn *tcp.Conn, f *tcp.Fetcher, regions []transport.Region) (transport.Fetcher, error) {
	if l.dev == nil {
		return f, nil
	}
	o := rdma.FetchOptions{Spin: rdma.DefaultSpin, MaxCount: conn.MaxCount(), Stats: &reads, LentBytes: l.LentBytes}
	if conn.Kind() == transport.Demand || l.Land == "all" {
		o.Landing = l.place
	}
	return rdma.NewFetcher(l.dev, f, conn, regions, o)
}
