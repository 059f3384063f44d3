// Package server is the server side of the SPECweb-style load: dynamic pages
// out of memory, and the back-end simulator that they query.
//
// All content (padding, images, the file set of Support) comes from one
// self-checking working set, and every session rewrites pages of a second one
// with each request; so requests read and write guest memory all over, and a
// page that a relocation damaged, or brought in an old version of, is found out
// when it is next used. The answer then is a status 500 that says so, or for a
// file on its way a broken connection, never bad data.
//
// A [Server] needs a way to the back end, which runs as a process of its own
// ([ServeBackEnd]) as it does in the published design. What the client can
// check is in the headers: a checksum over the body, and the page, the user and
// the count of requests in the session, which a server that lost state would
// get wrong.
package server
