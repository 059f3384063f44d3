package rdma

import (
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"golang.org/x/sys/unix"
)

// Close implements [transport.Fetcher]. When it returns, nothing is read into
// this side's memory any more.
func (f *Fetcher) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	unix.Write(f.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	f.sink.bind(nil)
	err := f.base.Close()
	f.recvMu.Lock()
	defer f.recvMu.Unlock()
	f.pump.Wait()
	f.pollMu.Lock()
	defer f.pollMu.Unlock()
	f.releaseAll()
	return err
}

// releaseAll frees what the device and the system gave.
func (f *Fetcher) releaseAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stop != nil {
		f.stop()
	}
	if f.q != nil {
		f.stats.Up.Add(-1)
		for i := range f.ops {
			if f.ops[i].busy {
				f.stats.Retried.Add(1) // the engine fetches it by another channel
			}
		}
	}
	for _, q := range []*queue{f.q, f.pending} {
		if q != nil {
			q.close()
		}
	}
	f.q, f.pending = nil, nil
	if f.stageMR != nil {
		f.stageMR.close()
		f.stageMR = nil
	}
	sysmem.Unmap(f.stage)
	f.stage = nil
	if f.wakeFD >= 0 {
		unix.Close(f.wakeFD)
		f.wakeFD = -1
	}
	f.dev.drop()
}
