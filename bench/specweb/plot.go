package specweb

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/pagewarp/pagewarp/bench/report"
)

// Colours of Okabe and Ito, "Color Universal Design" (2008): distinguishable
// with every common form of colour blindness, and in grey.
var (
	goodColour      = color.RGBA{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff}
	tolerableColour = color.RGBA{R: 0xf0, G: 0xe4, B: 0x42, A: 0xff}
	failedColour    = color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff}
	inkColour       = color.RGBA{R: 0x33, G: 0x33, B: 0x33, A: 0xff}
	paleColour      = color.RGBA{R: 0xd9, G: 0xd9, B: 0xd9, A: 0xff}
	markColour      = color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff}
)

const (
	plotWidth  = 9 * vg.Inch
	plotHeight = 6 * vg.Inch
	// maxColumns is how many columns of bins can be told apart.
	maxColumns = 150
)

// column is some neighbouring bins.
type column struct {
	from, to                float64 // s
	good, tolerable, failed float64 // pages/s
	longest                 float64 // ms
}

// columns joins bins until there are few enough to be told apart.
func (r Result) columns() (cs []column, width float64) {
	join := (len(r.Bins) + maxColumns - 1) / maxColumns
	for i := 0; i < len(r.Bins); i += join {
		bins := r.Bins[i:min(i+join, len(r.Bins))]
		c := column{from: bins[0].StartMS / 1e3}
		// The last bin may be cut short: its rate is of what there is of it.
		c.to = min((bins[len(bins)-1].StartMS+r.BinMS)/1e3, r.Seconds)
		seconds := max(c.to-c.from, 1e-3)
		for _, b := range bins {
			c.good += float64(b.Good) / seconds
			c.tolerable += float64(b.Tolerable) / seconds
			c.failed += float64(b.Failed) / seconds
			c.longest = math.Max(c.longest, b.MaxMS)
		}
		cs = append(cs, c)
	}
	return cs, float64(join) * r.BinMS / 1e3
}

// WritePlot draws the run as an SVG and a PNG file: the pages per second, by
// what they were to their visitors, and the longest time of a page.
func (r Result) WritePlot(svgPath, pngPath string) error {
	return report.WriteFigure(plotWidth, plotHeight, r.draw, svgPath, pngPath)
}

func (r Result) draw(c draw.Canvas) error {
	if len(r.Bins) == 0 {
		return errors.New("there is not one bin to draw")
	}
	c.SetColor(color.White)
	c.Fill(c.Rectangle.Path())
	cs, width := r.columns()
	rate, err := r.ratePanel(cs, width)
	if err != nil {
		return err
	}
	longest, err := r.longestPanel(cs, width)
	if err != nil {
		return err
	}
	rows := [][]*plot.Plot{{rate}, {longest}}
	pad := vg.Points(10)
	tiles := draw.Tiles{Rows: 2, Cols: 1, PadTop: pad, PadBottom: pad, PadLeft: pad, PadRight: 2 * pad, PadY: vg.Points(14)}
	for i, row := range plot.Align(rows, tiles, c) {
		rows[i][0].Draw(row[0])
	}
	return nil
}

// ratePanel stacks good, tolerable and failed pages.
func (r Result) ratePanel(cs []column, width float64) (*plot.Plot, error) {
	p := newPanel(fmt.Sprintf("Pages per second\n(columns of %g s)", width), r.Seconds)
	p.Title.Text = r.title()
	p.Title.TextStyle.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Weight: 2, Size: 12}
	p.Title.TextStyle.Color = inkColour
	p.Title.Padding = vg.Points(8)
	top := 0.0
	for _, c := range cs {
		top = math.Max(top, c.good+c.tolerable+c.failed)
	}
	layers := []struct {
		name   string
		colour color.Color
		upTo   func(column) float64
	}{
		// From the highest sum to the lowest: each covers what is not its own.
		{fmt.Sprintf("failed (%d)", r.Failed), failedColour, func(c column) float64 { return c.good + c.tolerable + c.failed }},
		{fmt.Sprintf("tolerable (%d)", r.Tolerable), tolerableColour, func(c column) float64 { return c.good + c.tolerable }},
		{fmt.Sprintf("good (%d)", r.Good), goodColour, func(c column) float64 { return c.good }},
	}
	for _, l := range layers {
		area := plotter.XYs{{X: cs[0].from, Y: 0}}
		for _, c := range cs {
			area = append(area, plotter.XY{X: c.from, Y: l.upTo(c)}, plotter.XY{X: c.to, Y: l.upTo(c)})
		}
		area = append(area, plotter.XY{X: cs[len(cs)-1].to, Y: 0})
		polygon, err := plotter.NewPolygon(area)
		if err != nil {
			return nil, err
		}
		polygon.Color, polygon.LineStyle.Width = l.colour, 0
		p.Add(polygon)
		p.Legend.Add(l.name, polygon)
	}
	p.Legend.Top, p.Legend.Left = true, false
	p.Legend.ThumbnailWidth = vg.Points(12)
	p.Legend.Padding = vg.Points(2)
	styleText(&p.Legend.TextStyle, 9)
	// Room above the data for the legend.
	p.Y.Min, p.Y.Max = 0, math.Max(top, 1)*1.45
	return p, nil
}

// longestPanel draws the longest time of a page, on a logarithmic axis: from a
// millisecond to a stall of seconds.
func (r Result) longestPanel(cs []column, width float64) (*plot.Plot, error) {
	p := newPanel(fmt.Sprintf("Longest page time\n(ms, of %g s)", width), r.Seconds)
	p.X.Label.Text = "Seconds"
	styleText(&p.X.Label.TextStyle, 10)
	low, high := 1.0, 2.5*1e3*r.TolerableSec // room for the label above the line
	var line plotter.XYs
	flush := func() error {
		if len(line) == 0 {
			return nil
		}
		l, err := plotter.NewLine(line)
		if err != nil {
			return err
		}
		l.Color, l.Width = inkColour, vg.Points(1.2)
		p.Add(l)
		line = nil
		return nil
	}
	for _, c := range cs {
		if c.longest == 0 { // nothing ended: a gap in the line
			if err := flush(); err != nil {
				return nil, err
			}
			continue
		}
		y := math.Max(c.longest, low)
		high = math.Max(high, 1.5*y)
		line = append(line, plotter.XY{X: c.from, Y: y}, plotter.XY{X: c.to, Y: y})
	}
	if err := flush(); err != nil {
		return nil, err
	}
	for _, limit := range []struct {
		seconds float64
		name    string
		off     vg.Length // of the label: the two lines are close to each other
	}{{r.GoodSec, "good", -6}, {r.TolerableSec, "tolerable", 6}} {
		y := limit.seconds * 1e3
		l, err := plotter.NewLine(plotter.XYs{{X: 0, Y: y}, {X: r.Seconds, Y: y}})
		if err != nil {
			return nil, err
		}
		l.Color, l.Width, l.Dashes = markColour, vg.Points(0.8), []vg.Length{vg.Points(2), vg.Points(3)}
		label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: 0, Y: y}}, Labels: []string{fmt.Sprintf("%s up to %g s", limit.name, limit.seconds)}})
		if err != nil {
			return nil, err
		}
		styleText(&label.TextStyle[0], 8)
		label.TextStyle[0].YAlign = draw.YCenter
		label.Offset = vg.Point{X: vg.Points(4), Y: limit.off}
		p.Add(l, label)
	}
	p.Y.Scale = plot.LogScale{}
	p.Y.Tick.Marker = decades{}
	p.Y.Min, p.Y.Max = low, high
	return p, nil
}

// decades labels a logarithmic axis at the powers of ten.
type decades struct{}

func (decades) Ticks(from, to float64) []plot.Tick {
	var ts []plot.Tick
	for v := 1.0; v <= to; v *= 10 {
		if v >= from {
			ts = append(ts, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'f', -1, 64)})
		}
	}
	return ts
}

func newPanel(label string, seconds float64) *plot.Plot {
	p := plot.New()
	p.Y.Label.Text = label
	styleText(&p.Y.Label.TextStyle, 10)
	p.Y.Label.Padding = vg.Points(6)
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		styleText(&a.Tick.Label, 9)
		a.LineStyle.Color, a.Tick.LineStyle.Color = markColour, markColour
	}
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = paleColour, paleColour
	p.Add(grid)
	p.X.Min, p.X.Max = 0, seconds
	return p
}

func styleText(s *text.Style, size vg.Length) {
	s.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
	s.Color = inkColour
}
