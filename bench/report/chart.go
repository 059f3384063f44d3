package report

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// chartColours are those of Okabe and Ito; lines beyond them are dashed.
var chartColours = []color.Color{
	blue, vermilion, green,
	color.RGBA{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff}, // purple
	color.RGBA{R: 0xe6, G: 0x9f, B: 0x00, A: 0xff}, // orange
	color.RGBA{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff}, // sky
}

const (
	chartWidth  = 9 * vg.Inch
	panelHeight = 3 * vg.Inch
)

// Line is one line of a panel.
type Line struct {
	Name   string // in the legend; empty for none
	Points []Point
	// Steps holds each value until the next point; Dots marks the points.
	Steps, Dots bool
	// Ranges, if given, are one for each point, drawn as a whisker.
	Ranges []Spread
}

// Panel is one plot of a chart.
type Panel struct {
	Y     string // what is drawn, with its unit
	Lines []Line
	// Top is the end of the axis; 0 takes it from the lines.
	Top float64
	// LogX and LogY make an axis logarithmic, for positive values only.
	LogX, LogY bool
	// TicksX are where the X axis is labelled; by default the chart chooses.
	TicksX []float64
	// Marks are vertical lines with a text.
	Marks []Mark
}

// Mark is a vertical line.
type Mark struct {
	X    float64
	Text string
}

// Chart is panels one above the other with a common X axis.
type Chart struct {
	Title  string
	X      string // what the X axis is, with its unit
	Panels []Panel
}

// WriteChart draws c as an SVG and a PNG file.
func WriteChart(c *Chart, svgPath, pngPath string) error {
	height := panelHeight*vg.Length(len(c.Panels)) + vg.Inch/2
	return WriteFigure(chartWidth, height, c.draw, svgPath, pngPath)
}

// WriteFigure draws a figure of a size into an SVG and a PNG file.
func WriteFigure(width, height vg.Length, paint func(draw.Canvas) error, svgPath, pngPath string) error {
	svg := vgsvg.New(width, height)
	img := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(plotDPI), vgimg.UseBackgroundColor(color.White))
	if err := errors.Join(paint(draw.New(svg)), paint(draw.New(img))); err != nil {
		return fmt.Errorf("draw %s: %w", pngPath, err)
	}
	var b bytes.Buffer
	if _, err := svg.WriteTo(&b); err != nil {
		return fmt.Errorf("encode %s: %w", svgPath, err)
	}
	if err := WriteFile(svgPath, b.Bytes()); err != nil {
		return err
	}
	b.Reset()
	if _, err := (vgimg.PngCanvas{Canvas: img}).WriteTo(&b); err != nil {
		return fmt.Errorf("encode %s: %w", pngPath, err)
	}
	return WriteFile(pngPath, b.Bytes())
}

func (c *Chart) draw(dc draw.Canvas) error {
	if len(c.Panels) == 0 {
		return errors.New("a chart without panels")
	}
	dc.SetColor(color.White)
	dc.Fill(dc.Rectangle.Path())
	from, to := math.Inf(1), math.Inf(-1)
	for _, p := range c.Panels {
		for _, l := range p.Lines {
			for _, pt := range l.Points {
				from, to = min(from, pt.T), max(to, pt.T)
			}
		}
	}
	if !(from < to) {
		return errors.New("there is nothing to draw: fewer than two points")
	}
	rows := make([][]*plot.Plot, len(c.Panels))
	for i, p := range c.Panels {
		pl, err := p.plot(from, to)
		if err != nil {
			return err
		}
		rows[i] = []*plot.Plot{pl}
	}
	styleTitle(rows[0][0], c.Title)
	last := rows[len(rows)-1][0]
	last.X.Label.Text = c.X
	styleText(&last.X.Label.TextStyle, 10)
	pad := vg.Points(10)
	tiles := draw.Tiles{Rows: len(rows), Cols: 1, PadTop: pad, PadBottom: pad, PadLeft: pad, PadRight: 2 * pad, PadY: vg.Points(12)}
	for i, row := range plot.Align(rows, tiles, dc) {
		rows[i][0].Draw(row[0])
	}
	return nil
}

func (p *Panel) plot(from, to float64) (*plot.Plot, error) {
	pl, err := panel(p.Y, nil, ink, from, to)
	if err != nil {
		return nil, err
	}
	top, low, named := 0.0, math.Inf(1), 0
	for i, l := range p.Lines {
		if len(l.Points) == 0 {
			continue
		}
		xys := make(plotter.XYs, 0, 2*len(l.Points))
		for j, pt := range l.Points {
			xys = append(xys, plotter.XY{X: pt.T, Y: pt.V})
			if l.Steps && j+1 < len(l.Points) {
				xys = append(xys, plotter.XY{X: l.Points[j+1].T, Y: pt.V})
			}
			top = max(top, pt.V)
			if pt.V > 0 {
				low = min(low, pt.V)
			}
		}
		line, dots, err := plotter.NewLinePoints(xys)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = chartColours[i%len(chartColours)], vg.Points(1.4)
		dots.GlyphStyle = draw.GlyphStyle{Color: line.Color, Radius: vg.Points(2.5), Shape: draw.CircleGlyph{}}
		if i >= len(chartColours) {
			line.Dashes = []vg.Length{vg.Points(4), vg.Points(2)}
		}
		pl.Add(line)
		for j, r := range l.Ranges[:min(len(l.Ranges), len(l.Points))] {
			whisker, err := plotter.NewLine(plotter.XYs{{X: l.Points[j].T, Y: r.Min}, {X: l.Points[j].T, Y: r.Max}})
			if err != nil {
				return nil, err
			}
			whisker.Color, whisker.Width = line.Color, vg.Points(1)
			pl.Add(whisker)
			top = max(top, r.Max)
		}
		if l.Dots && !l.Steps {
			pl.Add(dots)
		}
		if l.Name != "" {
			pl.Legend.Add(l.Name, line)
			named++
		}
	}
	if p.Top > 0 {
		top = p.Top
	}
	if top == 0 {
		top = 1
	}
	pl.Legend.Top, pl.Legend.XOffs, pl.Legend.ThumbnailWidth = true, -vg.Points(6), vg.Points(18)
	pl.Legend.Padding = vg.Points(3)
	styleText(&pl.Legend.TextStyle, 9)
	if named > 0 { // room above the data for the legend
		top *= 1.05 + 0.09*float64(named)
	}
	pl.Y.Min, pl.Y.Max = 0, top*1.05
	if p.LogY {
		pl.Y.Min, pl.Y.Max = low/1.5, top*1.5
		pl.Y.Scale, pl.Y.Tick.Marker = plot.LogScale{}, decades{}
	}
	pl.X.Tick.Marker = numbers{}
	if p.LogX {
		pl.X.Min, pl.X.Max = from/1.1, to*1.1
		pl.X.Scale, pl.X.Tick.Marker = plot.LogScale{}, decades{}
	}
	if len(p.TicksX) > 0 {
		var ts plot.ConstantTicks
		for _, x := range p.TicksX {
			ts = append(ts, plot.Tick{Value: x, Label: strconv.FormatFloat(x, 'g', 6, 64)})
		}
		pl.X.Tick.Marker = ts
	}
	for _, m := range p.Marks {
		if m.X < pl.X.Min || m.X > pl.X.Max {
			continue
		}
		if err := errors.Join(vertical(pl, m.X, []vg.Length{vg.Points(1), vg.Points(3)}), noteAt(pl, m.X, pl.Y.Min+0.94*(pl.Y.Max-pl.Y.Min), m.Text)); err != nil {
			return nil, err
		}
	}
	return pl, nil
}

// decades labels a logarithmic axis at 1, 2 and 5 of each power of ten.
type decades struct{}

func (decades) Ticks(from, to float64) (ts []plot.Tick) {
	for d := math.Pow(10, math.Floor(math.Log10(from))); d <= to; d *= 10 {
		for _, f := range []float64{1, 2, 5} {
			if v := d * f; v >= from && v <= to {
				ts = append(ts, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'g', 6, 64)})
			}
		}
	}
	return ts
}
