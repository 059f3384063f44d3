package model

import (
	"math"
	"math/rand/v2"
	"sort"
)

// FilesPerDir is how many files each directory of Support's file set holds.
const FilesPerDir = 16

// class is a class of files: with what probability a download asks for one of
// it, its base size in bytes, and how many of a directory's files belong to it.
type class struct {
	probability float64
	bytes       float64
	files       int
}

// The probabilities and sizes are the published ones; the 16 files of a
// directory are divided among the classes about as they are asked for.
var classes = [...]class{
	{.137, 0.105e6, 2}, {.126, 0.63e6, 2}, {.284, 1.05e6, 4}, {.223, 4.19e6, 4}, {.125, 9.99e6, 2}, {.105, 37.7e6, 2},
}

const (
	zipfExponent = 1.2
	// minFileBytes keeps a file a file at small scales.
	minFileBytes = 1 << 10
	// sizeStep is by how much of the base the files of a class differ.
	sizeStep = 0.1
)

// FileSet is Support's file set: which files there are and how they are asked
// for. It is immutable.
type FileSet struct {
	// Dirs is the number of directories: 0.25 for each session, 1 at least.
	Dirs  int
	scale float64
	zipf  []float64 // cumulative, by directory
}

// NewFileSet returns the file set for a number of simultaneous sessions, with
// sizes multiplied by scale.
func NewFileSet(sessions int, scale float64) *FileSet {
	f := &FileSet{Dirs: max(1, int(math.Ceil(0.25*float64(sessions)))), scale: scale}
	f.zipf = zipf(f.Dirs, zipfExponent)
	return f
}

// zipf returns the cumulative distribution over n ranks.
func zipf(n int, exponent float64) []float64 {
	sums := make([]float64, n)
	sum := 0.0
	for i := range sums {
		sum += math.Pow(float64(i+1), -exponent)
		sums[i] = sum
	}
	for i := range sums {
		sums[i] /= sum
	}
	return sums
}

// Bytes returns the size of a file in bytes, scaled; file counts from 0 to
// FilesPerDir-1.
func (f *FileSet) Bytes(file int) int {
	for _, c := range classes {
		if file < c.files {
			// The class's mean stays its base size.
			off := sizeStep * (float64(file) - float64(c.files-1)/2)
			return max(minFileBytes, int(c.bytes*(1+off)*f.scale))
		}
		file -= c.files
	}
	return 0
}

// TotalBytes returns the size of all files in bytes, scaled.
func (f *FileSet) TotalBytes() int64 {
	var sum int64
	for file := range FilesPerDir {
		sum += int64(f.Bytes(file))
	}
	return sum * int64(f.Dirs)
}

// Draw draws a directory (Zipf) and a file in it (by class, then evenly).
func (f *FileSet) Draw(r *rand.Rand) (dir, file int) {
	x := r.Float64()
	dir = min(sort.Search(len(f.zipf), func(i int) bool { return x < f.zipf[i] }), f.Dirs-1)
	x = r.Float64()
	for i, c := range classes {
		if x -= c.probability; x < 0 || i == len(classes)-1 {
			return dir, file + r.IntN(c.files)
		}
		file += c.files
	}
	return dir, file
}

// Images of the pages: sizes of small graphics, and of a scanned check.
const (
	minImageBytes   = 500
	maxImageBytes   = 10 << 10
	checkImageBytes = 12 << 10
	imagesPerPage   = 8
)

// Image returns the number of a page's i-th image.
func Image(page, i int) int { return page*imagesPerPage + i%imagesPerPage }

// MaxImage is the highest number of an image, and one.
const MaxImage = 64 * imagesPerPage

// ImageBytes returns the size of an image in bytes, scaled; most are small.
func ImageBytes(image int, scale float64) int {
	r := rand.New(rand.NewPCG(uint64(image), 0x1a6e))
	x := r.Float64()
	return max(64, int((minImageBytes+x*x*(maxImageBytes-minImageBytes))*scale))
}

// CheckImageBytes returns the size of the image of one side of a check, scaled.
func CheckImageBytes(scale float64) int { return max(64, int(checkImageBytes*scale)) }
