package fault

import (
	"context"
	"fmt"
	"os"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/pageserver"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// serve is the page server's process: its descriptor 3 is the image.
func (t *task) serve() error {
	faultd.Tune(t.Demand + t.Precache) // as pagewarpd does, for both roles
	image, err := pageserver.Open([]pageserver.Source{{Region: t.region(), FD: 3}})
	if err != nil {
		return err
	}
	export, err := t.export()
	if err != nil {
		return err
	}
	var stats pageserver.Stats
	ctx := context.Background() // until the process is ended
	dial := func(kind transport.Kind, index int) error {
		conn, err := t.dial(ctx, kind, index)
		if err != nil {
			return err
		}
		responder, err := conn.Responder()
		if err != nil {
			return err
		}
		if export != nil {
			export.Attach(conn) // until the process is ended
		}
		go func() {
			// With the priorities of pagewarpd.
			o := pageserver.Options{Stats: &stats, Demand: kind == transport.Demand, Refused: func(err error) {
				fmt.Fprintln(os.Stderr, "bench: the tail will be longer than pagewarpd's:", err)
			}}
			if !o.Demand {
				o.Nice = faultd.BulkNice
				o.Repeats = conn.Features()&transport.FeatureRepeat != 0
			}
			if err := pageserver.Serve(ctx, responder, image, o); err != nil {
				// The daemon of the benchmark was ended: nothing to serve any more.
				return
			}
		}()
		return nil
	}
	for i := range t.Demand {
		if err := dial(transport.Demand, i); err != nil {
			return err
		}
	}
	for i := range t.Precache {
		if err := dial(transport.Precache, i); err != nil {
			return err
		}
	}
	if err := say(reply{}); err != nil {
		return err
	}
	return listen(func(op string) (reply, error) {
		if op != "stats" {
			return reply{}, fmt.Errorf("request %q is unknown", op)
		}
		memory, err := usage()
		return reply{Stats: Stats{Stages: map[string]summary{"serve": summary(stats.Service.Snapshot().Summary())}, Memory: memory}}, err
	})
}

func (t *task) dial(ctx context.Context, kind transport.Kind, index int) (*tcp.Conn, error) {
	cfg, err := t.tls()
	if err != nil {
		return nil, err
	}
	o := tcp.Options{TLS: cfg, Tuning: t.tuning(), Hello: transport.Hello{
		Features: transport.AllFeatures, Kind: kind, Role: transport.Source, Index: uint16(index), Token: transport.Token{1}, Epoch: 1,
	}}
	if t.RDMA != "" {
		o.Hello.Features |= transport.FeatureRDMA
	}
	if kind == transport.Precache {
		if o.Codec, err = transport.ParseCodecMode(t.Codec); err != nil {
			return nil, err
		}
	}
	return tcp.Dial(ctx, t.Addr, o)
}
