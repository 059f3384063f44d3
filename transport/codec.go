package transport

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// ErrNoMemory says that received pages could not be written: the file system
// that holds the guest's memory is full, or the host is out of memory. The
// channel ends, nothing was committed; a new one may find room.
var ErrNoMemory = errors.New("out of memory for the guest (is its tmpfs full?)")

// ErrDecode marks a block that does not decode to exactly the expected bytes.
// It is fatal to the channel.
var ErrDecode = errors.New("cannot decode block")

// Encoders and decoders of zstd hold a few hundred KiB each, so they are shared
// by the process and at most poolSize of each kind are kept.
var (
	poolSize  = max(4, 2*runtime.GOMAXPROCS(0))
	encoders  = make(chan *zstd.Encoder, poolSize)
	zdecoders = make(chan *zstd.Decoder, poolSize)
)

func getEncoder() (*zstd.Encoder, error) {
	select {
	case e := <-encoders:
		return e, nil
	default:
		// The frame's own checksum would repeat our CRC32C.
		return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
			zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	}
}

func putEncoder(e *zstd.Encoder) {
	select {
	case encoders <- e:
	default:
		e.Close()
	}
}

func getDecoder() (*zstd.Decoder, error) {
	select {
	case d := <-zdecoders:
		return d, nil
	default:
		return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(MaxBodyLimit))
	}
}

func putDecoder(d *zstd.Decoder) {
	select {
	case zdecoders <- d:
	default:
		d.Close()
	}
}

// MaxEncoded returns the size of a buffer that takes n bytes encoded by any
// codec.
func MaxEncoded(n int) int {
	// zstd's worst case is 3 bytes for each block of 128 KiB or less and the
	// frame's head and tail; S2's bound is larger for every n that matters.
	return max(s2.MaxEncodedLen(n), n+n>>12+1024)
}

// Encode encodes src into dst, whose length must be at least MaxEncoded(len(src)),
// and returns the encoded part of dst.
func Encode(c Codec, dst, src []byte) ([]byte, error) {
	if len(dst) < MaxEncoded(len(src)) {
		return nil, fmt.Errorf("encode %d bytes with %v: buffer has %d bytes, needs %d", len(src), c, len(dst), MaxEncoded(len(src)))
	}
	switch c {
	case CodecS2:
		return s2.Encode(dst, src), nil
	case CodecZstd:
		e, err := getEncoder()
		if err != nil {
			return nil, fmt.Errorf("make a zstd encoder: %w", err)
		}
		out := e.EncodeAll(src, dst[:0])
		putEncoder(e)
		return out, nil
	}
	return nil, fmt.Errorf("encode with %v: not a codec that encodes", c)
}

// Decode decodes src into dst, which has exactly the expected length. Whatever
// src holds, no byte outside dst is written and no more than a block's worth of
// memory is taken. After an error the content of dst is undefined.
// The codec's own error is not wrapped: its io.EOF is not the channel's.
func Decode(c Codec, dst, src []byte) error {
	want := len(dst)
	dst = dst[:want:want]
	switch c {
	case CodecNone:
		if len(src) != want {
			return fmt.Errorf("%w: %d raw bytes, want %d", ErrDecode, len(src), want)
		}
		copy(dst, src)
		return nil
	case CodecS2:
		n, err := s2.DecodedLen(src)
		if err != nil {
			return fmt.Errorf("%w: s2: %v", ErrDecode, err)
		}
		if n != want {
			return fmt.Errorf("%w: s2 block says it holds %d bytes, want %d", ErrDecode, n, want)
		}
		if _, err := s2.Decode(dst, src); err != nil {
			return fmt.Errorf("%w: s2: %v", ErrDecode, err)
		}
		return nil
	case CodecZstd:
		return decodeZstd(dst, src)
	}
	return fmt.Errorf("%w: unknown codec %d", ErrDecode, uint8(c))
}

func decodeZstd(dst, src []byte) error {
	want := len(dst)
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return fmt.Errorf("%w: zstd header: %v", ErrDecode, err)
	}
	switch {
	case h.Skippable:
		return fmt.Errorf("%w: zstd frame is a skippable one", ErrDecode)
	case h.DictionaryID != 0:
		return fmt.Errorf("%w: zstd frame needs dictionary %d", ErrDecode, h.DictionaryID)
	case !h.HasFCS:
		return fmt.Errorf("%w: zstd frame does not say how long its content is", ErrDecode)
	case h.FrameContentSize != uint64(want):
		return fmt.Errorf("%w: zstd frame says it holds %d bytes, want %d", ErrDecode, h.FrameContentSize, want)
	}
	d, err := getDecoder()
	if err != nil {
		return fmt.Errorf("make a zstd decoder: %w", err)
	}
	out, err := d.DecodeAll(src, dst[:0])
	putDecoder(d)
	if err != nil {
		return fmt.Errorf("%w: zstd: %v", ErrDecode, err)
	}
	if len(out) != want || want > 0 && &out[0] != &dst[0] {
		return fmt.Errorf("%w: zstd frame held %d bytes, want %d", ErrDecode, len(out), want)
	}
	return nil
}
