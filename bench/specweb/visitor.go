package specweb

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/pagewarp/pagewarp/bench/specweb/model"
	"github.com/pagewarp/pagewarp/bench/specweb/server"
)

// visitor is one of the simultaneous sessions: one visitor after the other, of
// whom each has one session.
type visitor struct {
	load *Run
	rand *rand.Rand
	user uint64 // the number of this visitor among all
}

func newVisitor(r *Run, number uint64) *visitor {
	return &visitor{load: r, rand: rand.New(rand.NewPCG(r.cfg.Seed, number)), user: number}
}

func (v *visitor) run(ctx context.Context) {
	// Visitors would else set out in step; the first thinks before it comes.
	wait := v.load.work.Think(v.rand, v.load.cfg.Scale)
	if v.load.cfg.Rate == 0 && v.load.cfg.Ramp == 0 && !pause(ctx, wait) {
		return
	}
	for ctx.Err() == nil {
		if err := v.session(ctx); err != nil && !pause(ctx, Backoff) {
			return
		}
		v.user += uint64(v.load.cfg.Sessions)
	}
}

// session is one way along the chain. An error ends it, as the visitor would
// give up.
func (v *visitor) session(ctx context.Context) error {
	b := newBrowser(v.load)
	defer b.close()
	w := v.load.work
	for page, count := 0, uint64(1); page != model.End; page, count = w.Next(page, v.rand), count+1 {
		begin := time.Now()
		switch {
		case v.load.cfg.Rate > 0:
			begin = v.load.due()
			if !pause(ctx, time.Until(begin)) {
				return nil
			}
		case count > 1 && !w.Pages[page].NoThink:
			if !pause(ctx, w.Think(v.rand, v.load.cfg.Scale)) {
				return nil
			}
			begin = time.Now()
		}
		seen, err := b.visit(ctx, page, v.path(page, count), fmt.Sprintf("%s %d %d", w.Pages[page].Name, v.user, count))
		if ctx.Err() != nil {
			v.load.brokenOff(begin, page)
			return nil
		}
		v.load.note(begin, page, seen, err)
		if err != nil {
			return err
		}
	}
	return nil
}

// path returns the page's path with its parameters.
func (v *visitor) path(page int, count uint64) string {
	p := &v.load.work.Pages[page]
	path := server.PagePath + p.Name + "?n=" + strconv.FormatUint(v.rand.Uint64()>>1, 10)
	if count == 1 {
		path += "&user=" + strconv.FormatUint(v.user, 10)
	}
	if p.Download {
		dir, file := v.load.files.Draw(v.rand)
		path += fmt.Sprintf("&dir=%d&file=%d", dir, file)
	}
	return path
}
