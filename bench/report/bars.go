package report

import (
	"errors"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Bar is one bar of a bar chart: the median of Value, with a whisker over its
// range, and a text at its end.
type Bar struct {
	Name  string
	Value Spread
	Text  string
	// Pale bars are drawn in grey: for what was not complete.
	Pale bool
}

const barHeight = vg.Inch * 0.42

// WriteBars draws horizontal bars, the first at the top, as an SVG and a PNG
// file; x says what is drawn, with its unit.
func WriteBars(title, x string, bars []Bar, svgPath, pngPath string) error {
	if len(bars) == 0 {
		return errors.New("a bar chart without bars")
	}
	height := barHeight*vg.Length(len(bars)) + 1.1*vg.Inch
	return WriteFigure(chartWidth, height, func(c draw.Canvas) error { return drawBars(title, x, bars, c) }, svgPath, pngPath)
}

func drawBars(title, x string, bars []Bar, c draw.Canvas) error {
	c.SetColor(color.White)
	c.Fill(c.Rectangle.Path())
	longest := 0.0
	for _, b := range bars {
		longest = max(longest, b.Value.Max)
	}
	if longest <= 0 || math.IsNaN(longest) {
		return errors.New("a bar chart of nothing but zeros")
	}
	p, err := panel("", nil, ink, 0, longest*1.35) // room for the texts
	if err != nil {
		return err
	}
	styleTitle(p, title)
	p.X.Label.Text = x
	styleText(&p.X.Label.TextStyle, 10)
	names := make([]string, len(bars))
	for i, b := range bars {
		at := len(bars) - 1 - i // the first at the top
		names[at] = b.Name
		chart, err := plotter.NewBarChart(plotter.Values{b.Value.Median}, barHeight*0.6)
		if err != nil {
			return err
		}
		chart.Horizontal, chart.XMin, chart.Color, chart.LineStyle.Width = true, float64(at), blue, 0
		if b.Pale {
			chart.Color = pale
		}
		whisker, err := plotter.NewLine(plotter.XYs{{X: b.Value.Min, Y: float64(at)}, {X: b.Value.Max, Y: float64(at)}})
		if err != nil {
			return err
		}
		whisker.Color, whisker.Width = ink, vg.Points(1.2)
		label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: b.Value.Max, Y: float64(at)}}, Labels: []string{b.Text}})
		if err != nil {
			return err
		}
		styleText(&label.TextStyle[0], 9)
		label.TextStyle[0].YAlign = draw.YCenter
		label.Offset.X = vg.Points(5)
		p.Add(chart, whisker, label)
	}
	p.NominalY(names...)
	styleText(&p.Y.Tick.Label, 9)
	p.Y.Tick.Label.XAlign, p.Y.Tick.Label.YAlign = draw.XRight, draw.YCenter
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, longest*1.35, -0.6, float64(len(bars))-0.4
	p.X.Tick.Marker = numbers{}
	pad := vg.Points(12)
	p.Draw(draw.Crop(c, pad, -pad, pad, -pad))
	return nil
}

// styleTitle puts a title over a plot.
func styleTitle(p *plot.Plot, title string) {
	p.Title.Text = title
	p.Title.TextStyle.Font = titleFont
	p.Title.TextStyle.Color = ink
	p.Title.Padding = vg.Points(8)
}
