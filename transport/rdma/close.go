package rdma

import (
	"github.com/pagewarp/pagewarp/internal/sysmem"
)

// Close implements [transport.Fetcher]. When it returns, nothing is read into
// this side's memory any more.
func (f *Fetcher) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	f.ring()
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

// releaseAll frees what the device and the system gave. pollMu is held, or nobody else
// has the Fetcher.
func (f *Fetcher) releaseAll() {
	if f.stop != nil {
		f.stop()
	}
	f.takeDown()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stageMR != nil {
		f.stageMR.close()
		f.stageMR = nil
	}
	sysmem.Unmap(f.stage)
	f.stage = nil
	f.shut()
	f.dev.drop()
}
