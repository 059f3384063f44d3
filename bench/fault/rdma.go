package fault

import (
	"net/netip"

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

// overRDMA puts RDMA on channels, if it was asked for.
func (t *task) overRDMA() (func(*tcp.Conn, *tcp.Fetcher, []transport.Region) (transport.Fetcher, error), error) {
	if t.RDMA == "" {
		return func(_ *tcp.Conn, f *tcp.Fetcher, _ []transport.Region) (transport.Fetcher, error) { return f, nil }, nil
	}
	dev, err := t.device()
	if err != nil {
		return nil, err
	}
	return func(conn *tcp.Conn, f *tcp.Fetcher, regions []transport.Region) (transport.Fetcher, error) {
		return rdma.NewFetcher(dev, f, conn, regions, rdma.FetchOptions{Spin: rdma.DefaultSpin, MaxCount: conn.MaxCount(), Stats: &reads})
	}, nil
}
