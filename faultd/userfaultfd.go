package faultd

import "github.com/pagewarp/pagewarp/internal/uffd"

// Userfaultfd is an open userfaultfd(2). Its Close closes our descriptor, its Fd tells
// the number; all else is the business of [Shared] and [Private], which close it as well.
type Userfaultfd = uffd.FD

// AdoptUserfaultfd takes over descriptor fd, a userfaultfd of the machine's process, for
// [UFFDConfig]. How it comes here is the caller's affair: a VMM sends it over a unix socket
// (SCM_RIGHTS), or it is taken from the process by pidfd_getfd(2). It may have had its
// handshake and its registrations, or neither, see UFFDConfig.Registered. On an error, fd
// being something else, it stays the caller's.
func AdoptUserfaultfd(fd int) (*Userfaultfd, error) { return uffd.Open(fd) }
