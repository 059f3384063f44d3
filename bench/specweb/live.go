package specweb

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Live writes a line a second about the load to w until ctx ends; on a terminal
// each takes the place of the last.
func (r *Run) Live(ctx context.Context, w io.Writer, terminal bool) {
	const every = time.Second
	tick := time.NewTicker(every)
	defer tick.Stop()
	before, _ := r.Progress()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			if terminal {
				fmt.Fprintln(w)
			}
			return
		case now := <-tick.C:
			counts, active := r.Progress()
			seconds := now.Sub(last).Seconds()
			line := fmt.Sprintf("%6.0f s  %4d sessions  %7.1f pages/s   good %d  tolerable %d  failed %d   in all %d / %d / %d",
				now.Sub(r.log.Start).Seconds(), active, float64(counts.Pages()-before.Pages())/seconds,
				counts.Good-before.Good, counts.Tolerable-before.Tolerable, counts.Failed-before.Failed,
				counts.Good, counts.Tolerable, counts.Failed)
			if terminal {
				fmt.Fprintf(w, "\r\x1b[K%s", line) // \x1b[K clears the rest of the line
			} else {
				fmt.Fprintln(w, line)
			}
			before, last = counts, now
		}
	}
}
