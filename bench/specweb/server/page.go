package server

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"

	"github.com/pagewarp/pagewarp/bench/specweb/model"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

// printable maps any byte to one of 64 characters, so that padding is text
// that compresses as its source does, or better by a quarter.
var printable = func() (t [256]byte) {
	const alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ."
	for i := range t {
		t[i] = alphabet[i%len(alphabet)]
	}
	return t
}()

// page answers with a dynamic page.
func (s *Server) page(w http.ResponseWriter, req *http.Request) {
	index := s.cfg.Workload.Index(req.PathValue("page"))
	if index < 0 {
		http.Error(w, fmt.Sprintf("workload %s has no page %q", s.cfg.Workload.Name, req.PathValue("page")), http.StatusNotFound)
		return
	}
	page := &s.cfg.Workload.Pages[index]
	n, err := strconv.ParseUint(req.FormValue("n"), 10, 64)
	if err != nil {
		http.Error(w, fmt.Sprintf("parameter n=%q: want a number", req.FormValue("n")), http.StatusBadRequest)
		return
	}
	x, err := s.session(w, req, index)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	count, ok := x.request(s.memory, page.Name)
	if !ok {
		badMemory(w)
		return
	}
	s.requests.Add(1)
	w.Header().Set(PageHeader, fmt.Sprintf("%s %d %d", page.Name, x.user, count))
	if page.Name == "logout" {
		s.sessions.end(x)
	}
	r := rand.New(rand.NewPCG(x.user, n))
	if page.Download {
		s.download(w, req)
		return
	}
	buf := s.buffers.Get().(*bytes.Buffer)
	defer s.buffers.Put(buf)
	buf.Reset()
	rows, err := s.ask(req, page, x.user, n)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	if page.Raw {
		s.sendRaw(w, r, model.CheckImageBytes(s.cfg.Scale), "image/jpeg")
		return
	}
	s.write(buf, page, index, x, count, rows)
	if !s.pad(buf, r, s.cfg.Workload.Padding(r, s.cfg.Scale)) {
		badMemory(w)
		return
	}
	s.send(w, buf.Bytes(), "text/html; charset=us-ascii")
}

// session finds the request's session; a workload's first page starts one when
// the request names a user.
func (s *Server) session(w http.ResponseWriter, req *http.Request, page int) (*session, error) {
	if c, err := req.Cookie(SessionCookie); err == nil {
		if x := s.sessions.find(c.Value); x != nil {
			return x, nil
		}
		return nil, fmt.Errorf("session %q is unknown: it has ended or timed out", c.Value)
	}
	if page != 0 {
		return nil, fmt.Errorf("page %s without a session: begin with %s", s.cfg.Workload.Pages[page].Name, s.cfg.Workload.Pages[0].Name)
	}
	user, err := strconv.ParseUint(req.FormValue("user"), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("parameter user=%q: want a number", req.FormValue("user"))
	}
	x := s.sessions.start(user)
	http.SetCookie(w, &http.Cookie{Name: SessionCookie, Value: x.id, Path: "/specweb/"})
	return x, nil
}

// ask makes the page's queries.
func (s *Server) ask(req *http.Request, page *model.Page, user, n uint64) (rows []byte, err error) {
	for q := range page.Queries {
		if rows, err = s.backEnd.ask(req.Context(), rows, s.cfg.Workload.Name, page.Name, user, n+uint64(q)); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// write writes the page up to its padding.
func (s *Server) write(buf *bytes.Buffer, page *model.Page, index int, x *session, count uint64, rows []byte) {
	fmt.Fprintf(buf, "<!DOCTYPE html>\n<html><head><title>%s: %s</title></head><body>\n", s.cfg.Workload.Name, page.Name)
	fmt.Fprintf(buf, "<p>user %d, request %d of session %s; seen: %s</p>\n", x.user, count, x.id, strings.Join(x.trail(), ", "))
	for i := range page.Images {
		fmt.Fprintf(buf, "<img src=\"%s%d\">\n", ImagePath, model.Image(index, i))
	}
	buf.WriteString("<pre>\n")
	buf.Write(rows)
	buf.WriteString("</pre>\n")
}

// pad appends the padding, as a comment, and ends the page.
func (s *Server) pad(buf *bytes.Buffer, r *rand.Rand, n int) bool {
	buf.WriteString("<!--\n")
	at := buf.Len()
	ok := s.fill(buf, r.IntN(s.pool.Pages()), n)
	text := buf.Bytes()[at:]
	for i, b := range text {
		text[i] = printable[b]
	}
	buf.WriteString("\n-->\n</body></html>\n")
	return ok
}

// download sends a file, page by page, each of which is verified before it
// goes. The checksum is made at the first download of the file.
func (s *Server) download(w http.ResponseWriter, req *http.Request) {
	dir, err1 := strconv.Atoi(req.FormValue("dir"))
	file, err2 := strconv.Atoi(req.FormValue("file"))
	if err1 != nil || err2 != nil || dir < 0 || dir >= s.files.Dirs || file < 0 || file >= model.FilesPerDir {
		http.Error(w, fmt.Sprintf("dir=%q file=%q: there are %d directories of %d files each",
			req.FormValue("dir"), req.FormValue("file"), s.files.Dirs, model.FilesPerDir), http.StatusNotFound)
		return
	}
	number := dir*model.FilesPerDir + file
	size := s.files.Bytes(file)
	part := make([]byte, min(size, 16*payload))
	sum, ok := s.sum(number, size, part)
	if !ok {
		badMemory(w)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.Itoa(size))
	h.Set(guestapi.ChecksumHeader, fmt.Sprintf("%08x", sum))
	ok = s.parts(number, size, part, func(b []byte) bool {
		_, err := w.Write(b)
		return err == nil // else the client is gone: its own affair
	})
	if !ok {
		panic(http.ErrAbortHandler) // the length is promised: only a broken connection tells
	}
}

// sum returns the CRC-32C of a file, and whether its memory was good if it had
// to be read for it.
func (s *Server) sum(number, size int, part []byte) (uint32, bool) {
	const known = 1 << 32
	if v := s.fileSum[number].Load(); v&known != 0 {
		return uint32(v), true
	}
	var sum uint32
	ok := s.parts(number, size, part, func(b []byte) bool {
		sum = crc32.Update(sum, castagnoli, b)
		return true
	})
	if ok {
		s.fileSum[number].Store(known | uint64(sum))
	}
	return sum, ok
}

// parts calls f for the file's content, part by part, until f returns false.
// It reports whether all pages that it read were good; a bad one is not passed
// on.
func (s *Server) parts(number, size int, part []byte, f func([]byte) bool) bool {
	at := s.fileAt[number]
	for size > 0 {
		n := 0
		for n < len(part) && n < size {
			got, good := s.pool.Read(at, part[n:min(n+payload, size, len(part))])
			if !good {
				return false
			}
			n += got
			at++
		}
		if !f(part[:n]) {
			return true
		}
		size -= n
	}
	return true
}
