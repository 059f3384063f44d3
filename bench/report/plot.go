package report

import (
	"fmt"
	"image/color"
	"math"

	"github.com/dustin/go-humanize"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Colours of Okabe and Ito, "Color Universal Design" (2008): distinguishable
// with every common form of colour blindness, and in grey.
var (
	blue      = color.RGBA{R: 0x00, G: 0x72, B: 0xb2, A: 0xff}
	vermilion = color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff}
	green     = color.RGBA{R: 0x00, G: 0x9e, B: 0x73, A: 0xff}
	ink       = color.RGBA{R: 0x33, G: 0x33, B: 0x33, A: 0xff}
	pale      = color.RGBA{R: 0xd9, G: 0xd9, B: 0xd9, A: 0xff}
	mark      = color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff}
)

// titleFont is that of all titles.
var titleFont = font.Font{Typeface: "Liberation", Variant: "Sans", Weight: 2, Size: 12}

const (
	plotWidth  = 9 * vg.Inch
	plotHeight = 7 * vg.Inch
	plotDPI    = 120
)

// WriteTimeline draws t as an SVG and a PNG file. Three panels share the time
// axis: the client's requests, the demand faults, and the share of memory that
// has arrived; a vertical line marks the switch-over.
func WriteTimeline(t *Timeline, svgPath, pngPath string) error {
	return WriteFigure(plotWidth, plotHeight, t.draw, svgPath, pngPath)
}

func (t *Timeline) draw(c draw.Canvas) error {
	if len(t.Requests) == 0 {
		return fmt.Errorf("there is not one request bin to draw")
	}
	c.SetColor(color.White)
	c.Fill(c.Rectangle.Path())
	from, to := t.span()

	requests, err := panel("Requests answered\nper second", steps(t.Requests, t.BinMS/1e3), blue, from, to)
	if err != nil {
		return err
	}
	styleTitle(requests, t.Title)
	faults, err := panel("Demand faults\nper second", t.demandRate(), vermilion, from, to)
	if err != nil {
		return err
	}
	share, err := panel("Memory resident\n(%)", t.residentShare(), green, from, to)
	if err != nil {
		return err
	}
	share.Y.Max = 105
	share.X.Label.Text = "Seconds from the switch-over"
	styleText(&share.X.Label.TextStyle, 10)

	// Room above the data for the line's label, so that nothing overlaps.
	requests.Y.Max *= 1.18
	label := "switch-over"
	if t.DowntimeMS > 0 {
		label = fmt.Sprintf("switch-over, guest down %.1f ms", t.DowntimeMS)
	}
	if err := note(requests, 0, label); err != nil {
		return err
	}
	if t.BeforePerSec > 0 {
		dash, err := plotter.NewLine(plotter.XYs{{X: from, Y: 0.9 * t.BeforePerSec}, {X: to, Y: 0.9 * t.BeforePerSec}})
		if err != nil {
			return err
		}
		dash.Color, dash.Width, dash.Dashes = mark, vg.Points(0.8), []vg.Length{vg.Points(2), vg.Points(3)}
		requests.Add(dash)
		if err := noteEnd(requests, "dashed: 90 % of before"); err != nil {
			return err
		}
	}
	if t.DrainedS > 0 {
		if err := vertical(share, t.DrainedS, []vg.Length{vg.Points(1), vg.Points(3)}); err != nil {
			return err
		}
		if err := noteAt(share, t.DrainedS, 50, fmt.Sprintf("drained after %.2f s", t.DrainedS)); err != nil {
			return err
		}
	}
	rows := [][]*plot.Plot{{requests}, {faults}, {share}}
	for _, row := range rows {
		if err := vertical(row[0], 0, nil); err != nil {
			return err
		}
	}
	pad := vg.Points(10)
	tiles := draw.Tiles{Rows: 3, Cols: 1, PadTop: pad, PadBottom: pad, PadLeft: pad, PadRight: 2 * pad, PadY: vg.Points(12)}
	for i, row := range plot.Align(rows, tiles, c) {
		rows[i][0].Draw(row[0])
	}
	return nil
}

func (t *Timeline) span() (from, to float64) {
	from, to = t.Requests[0].T, t.Requests[len(t.Requests)-1].T+t.BinMS/1e3
	if n := len(t.Samples); n > 0 {
		to = math.Max(to, t.Samples[n-1].T)
	}
	return from, to
}

func styleText(s *text.Style, size vg.Length) {
	s.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
	s.Color = ink
}

// steps draws each bin flat from its start to its end, so that the
// switch-over's bin does not reach back before the switch.
func steps(bins []Point, width float64) []Point {
	ps := make([]Point, 0, 2*len(bins))
	for _, b := range bins {
		ps = append(ps, b, Point{T: b.T + width, V: b.V})
	}
	return ps
}

// seconds labels the time axis at whole seconds, as many as fit.
type seconds struct{}

func (seconds) Ticks(from, to float64) []plot.Tick {
	step := 1.0
	for _, s := range []float64{1, 2, 5, 10, 20, 60, 120, 300, 600} {
		if step = s; (to-from)/s <= 16 {
			break
		}
	}
	var ts []plot.Tick
	for x := math.Ceil(from/step) * step; x <= to; x += step {
		ts = append(ts, plot.Tick{Value: x, Label: fmt.Sprintf("%.0f", x+0)})
	}
	return ts
}

// numbers labels a value axis at a few round numbers.
type numbers struct{}

func (numbers) Ticks(from, to float64) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10(to-from)))
	for _, f := range []float64{0.1, 0.2, 0.25, 0.5, 1, 2, 5} {
		if (to-from)/(step*f) <= 5 {
			step *= f
			break
		}
	}
	var ts []plot.Tick
	for v := math.Ceil(from/step) * step; v <= to; v += step {
		// Adding 0 makes a negative zero positive.
		ts = append(ts, plot.Tick{Value: v, Label: humanize.Commaf(math.Round(v*100)/100 + 0)})
	}
	return ts
}

// panel is one plot: a step line of pts in colour c over a pale grid.
func panel(label string, pts []Point, c color.Color, from, to float64) (*plot.Plot, error) {
	p := plot.New()
	p.Y.Label.Text = label
	styleText(&p.Y.Label.TextStyle, 10)
	p.Y.Label.Padding = vg.Points(6)
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		styleText(&a.Tick.Label, 9)
		a.LineStyle.Color, a.Tick.LineStyle.Color = mark, mark
	}
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = pale, pale
	p.Add(grid)

	xys := make(plotter.XYs, 0, len(pts))
	top := 0.0
	for _, pt := range pts {
		xys = append(xys, plotter.XY{X: pt.T, Y: pt.V})
		top = math.Max(top, pt.V)
	}
	if len(xys) > 0 {
		line, err := plotter.NewLine(xys)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = c, vg.Points(1.4)
		p.Add(line)
	}
	if top == 0 {
		top = 1
	}
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = from, to, 0, top*1.05
	p.X.Tick.Marker, p.Y.Tick.Marker = seconds{}, numbers{}
	return p, nil
}

func vertical(p *plot.Plot, x float64, dashes []vg.Length) error {
	line, err := plotter.NewLine(plotter.XYs{{X: x, Y: p.Y.Min}, {X: x, Y: p.Y.Max}})
	if err != nil {
		return err
	}
	line.Color, line.Width, line.Dashes = ink, vg.Points(1), dashes
	p.Add(line)
	return nil
}

// note writes beside a vertical line at x, at the top of the panel.
func note(p *plot.Plot, x float64, s string) error {
	return noteAt(p, x, p.Y.Min+0.94*(p.Y.Max-p.Y.Min), s)
}

// noteEnd writes at the right end of the panel's top.
func noteEnd(p *plot.Plot, s string) error {
	return noteAt(p, p.X.Max, p.Y.Min+0.94*(p.Y.Max-p.Y.Min), s)
}

// noteAt writes s at height y on the side of x where there is more room.
func noteAt(p *plot.Plot, x, y float64, s string) error {
	l, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: x, Y: y}}, Labels: []string{s}})
	if err != nil {
		return err
	}
	styleText(&l.TextStyle[0], 9)
	l.TextStyle[0].YAlign = draw.YCenter
	l.Offset.X = vg.Points(5)
	if x-p.X.Min > p.X.Max-x {
		l.TextStyle[0].XAlign = draw.XRight
		l.Offset.X = -l.Offset.X
	}
	p.Add(l)
	return nil
}
