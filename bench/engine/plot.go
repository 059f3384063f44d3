package engine

import (
	"cmp"
	"errors"
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

	"github.com/pagewarp/pagewarp/bench/report"
)

// Colours of Okabe and Ito, "Color Universal Design" (2008): distinguishable
// with every common form of colour blindness. Engines beyond them are dashed.
var colours = []color.Color{
	color.RGBA{R: 0x00, G: 0x72, B: 0xb2, A: 0xff}, // blue
	color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff}, // vermilion
	color.RGBA{R: 0x00, G: 0x9e, B: 0x73, A: 0xff}, // green
	color.RGBA{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff}, // purple
	color.RGBA{R: 0xe6, G: 0x9f, B: 0x00, A: 0xff}, // orange
	color.RGBA{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff}, // sky
}

var (
	ink  = color.RGBA{R: 0x33, G: 0x33, B: 0x33, A: 0xff}
	pale = color.RGBA{R: 0xd9, G: 0xd9, B: 0xd9, A: 0xff}
	mark = color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff}
)

const (
	plotWidth  = 10 * vg.Inch
	plotHeight = 5.6 * vg.Inch
	// maxSteps is how many values of a line can be told apart.
	maxSteps = 300
)

// WritePlot draws the throughput over time of each engine's typical run, on one
// axis, as an SVG and a PNG file. A dot marks each switch-over.
func (r *Result) WritePlot(svgPath, pngPath string) error {
	return report.WriteFigure(plotWidth, plotHeight, r.draw, svgPath, pngPath)
}

func (r *Result) draw(c draw.Canvas) error {
	c.SetColor(color.White)
	c.Fill(c.Rectangle.Path())
	p := plot.New()
	subject := cmp.Or(r.Subject, "guest")
	p.Title.Text = fmt.Sprintf("%s, %s of %s, moved at 0", r.LoadText, subject, humanize.IBytes(r.RAMBytes))
	p.Title.TextStyle.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Weight: 2, Size: 12}
	p.Title.TextStyle.Color = ink
	p.Title.Padding = vg.Points(8)
	p.X.Label.Text, p.Y.Label.Text = "Seconds from the command", "Throughput of the "+subject+"\n("+r.Unit+" per second)"
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		styleText(&a.Tick.Label, 9)
		styleText(&a.Label.TextStyle, 10)
		a.LineStyle.Color, a.Tick.LineStyle.Color = mark, mark
	}
	p.Y.Label.Padding = vg.Points(6)
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = pale, pale
	p.Add(grid)
	lines, err := r.addLines(p)
	if err != nil {
		return err
	}
	if lines == 0 {
		return errors.New("no engine has told one bin of throughput")
	}
	p.Legend.Top, p.Legend.XOffs = true, -vg.Points(6)
	p.Legend.ThumbnailWidth = vg.Points(18)
	p.Legend.Padding = vg.Points(2)
	styleText(&p.Legend.TextStyle, 9)
	// Room above the data for the legend.
	p.Y.Min, p.Y.Max = 0, p.Y.Max*(1.08+0.065*float64(lines))
	p.X.Tick.Marker, p.Y.Tick.Marker = ticks{16}, ticks{6}
	pad := vg.Points(12)
	p.Draw(draw.Crop(c, pad, -pad, pad, -pad))
	return nil
}

// ticks labels an axis at round numbers, at most this many.
type ticks struct{ most float64 }

func (t ticks) Ticks(from, to float64) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10((to-from)/t.most)))
	for _, f := range []float64{1, 2, 5, 10} {
		if (to-from)/(step*f) <= t.most {
			step *= f
			break
		}
	}
	var ts []plot.Tick
	for i := math.Ceil(from / step); i*step <= to; i++ {
		// Adding 0 makes a negative zero positive.
		ts = append(ts, plot.Tick{Value: i * step, Label: humanize.Commaf(math.Round(i*step*1000)/1000 + 0)})
	}
	return ts
}

// addLines adds a line for each engine, and returns their number.
func (r *Result) addLines(p *plot.Plot) (lines int, err error) {
	longest := 0.0
	for _, s := range r.Engines {
		if row := r.Typical(s.Engine); row != nil && len(row.Series) > 0 {
			longest = max(longest, row.Series[len(row.Series)-1].T)
		}
	}
	// A bin of the guest can be narrower than others: wider columns are as wide
	// for all.
	width := max(1, math.Ceil((longest+seriesBefore.Seconds())/0.1/maxSteps)) * 0.1
	for _, s := range r.Engines {
		row := r.Typical(s.Engine)
		if row == nil || len(row.Series) == 0 {
			continue
		}
		var xys plotter.XYs
		for _, c := range Columns(row.Series, width) {
			xys = append(xys, plotter.XY{X: c.T, Y: c.V}, plotter.XY{X: c.T + width, Y: c.V})
		}
		line, err := plotter.NewLine(xys)
		if err != nil {
			return 0, err
		}
		line.Color, line.Width = colours[lines%len(colours)], vg.Points(1.4)
		if lines >= len(colours) {
			line.Dashes = []vg.Length{vg.Points(4), vg.Points(2)}
		}
		p.Add(line)
		label := fmt.Sprintf("%s: down %s ms, complete after %s s", s.Engine, report.Number(row.DowntimeMS), report.Number(row.TotalMS/1e3))
		if row.TotalMS == 0 {
			label = fmt.Sprintf("%s: down %s ms, not complete", s.Engine, report.Number(row.DowntimeMS))
		}
		if row.Error != "" {
			label = s.Engine + ": failed"
		} else {
			dot, err := plotter.NewScatter(plotter.XYs{{X: row.StoppedMS / 1e3, Y: 0}})
			if err != nil {
				return 0, err
			}
			dot.GlyphStyle = draw.GlyphStyle{Color: line.Color, Radius: vg.Points(4), Shape: draw.CircleGlyph{}}
			p.Add(dot)
		}
		p.Legend.Add(label, line)
		lines++
	}
	return lines, nil
}

// Columns averages a series over columns of a width in seconds, by the time that
// each value held: until the next one's.
func Columns(series []report.Point, width float64) []report.Point {
	if len(series) == 0 {
		return nil
	}
	start := math.Floor(series[0].T/width) * width
	last := series[len(series)-1].T
	sum := make([]float64, int((last-start)/width)+1)
	held := make([]float64, len(sum))
	for i, p := range series {
		end := p.T + width // of the last value
		if i+1 < len(series) {
			end = series[i+1].T
		}
		for at := p.T; at < end; {
			c := int((at - start) / width)
			if c >= len(sum) {
				break
			}
			next := start + float64(c+1)*width
			if next <= at { // a rounding error at the edge
				next = at + width
			}
			next = min(next, end)
			sum[c] += p.V * (next - at)
			held[c] += next - at
			at = next
		}
	}
	var cs []report.Point
	for i := range sum {
		if held[i] > 0 {
			cs = append(cs, report.Point{T: start + float64(i)*width, V: sum[i] / held[i]})
		}
	}
	return cs
}

func styleText(s *text.Style, size vg.Length) {
	s.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
	s.Color = ink
}
