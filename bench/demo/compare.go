package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

const comparePage = 4096

// Difference is the outcome of a comparison of two memory files.
type Difference struct {
	Pages      uint64   // compared, of 4 KiB
	Mismatches uint64   // that differ
	First      []uint64 // numbers of the first few that differ
}

// Compare compares two memory files bit for bit. It reads, rather than maps,
// them, so that a hole stays a hole.
func Compare(ctx context.Context, pathA, pathB string) (d Difference, err error) {
	a, err := os.Open(pathA)
	if err != nil {
		return d, fmt.Errorf("compare memory: %w", err)
	}
	defer a.Close()
	b, err := os.Open(pathB)
	if err != nil {
		return d, fmt.Errorf("compare memory: %w", err)
	}
	defer b.Close()
	sa, err := a.Stat()
	if err != nil {
		return d, err
	}
	sb, err := b.Stat()
	if err != nil {
		return d, err
	}
	if sa.Size() != sb.Size() || sa.Size()%comparePage != 0 || os.SameFile(sa, sb) {
		return d, fmt.Errorf("compare memory: %s has %d bytes and %s has %d: want two files of the same number of pages",
			pathA, sa.Size(), pathB, sb.Size())
	}
	bufA, bufB := make([]byte, 256*comparePage), make([]byte, 256*comparePage)
	for ctx.Err() == nil {
		n, err := io.ReadFull(a, bufA)
		if errors.Is(err, io.EOF) {
			return d, nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return d, fmt.Errorf("compare memory: %w", err)
		}
		if _, err := io.ReadFull(b, bufB[:n]); err != nil {
			return d, fmt.Errorf("compare memory: read %s: %w", pathB, err)
		}
		d.add(bufA[:n], bufB[:n])
	}
	return d, context.Cause(ctx)
}

func (d *Difference) add(a, b []byte) {
	if bytes.Equal(a, b) {
		d.Pages += uint64(len(a) / comparePage)
		return
	}
	for i := 0; i < len(a); i += comparePage {
		if !bytes.Equal(a[i:i+comparePage], b[i:i+comparePage]) {
			d.Mismatches++
			if len(d.First) < 8 {
				d.First = append(d.First, d.Pages)
			}
		}
		d.Pages++
	}
}
