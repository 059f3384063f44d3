// Package api is the contract between the daemon and its clients: HTTP/1.1 with
// JSON over a unix socket, its types, its errors, and a client.
//
// # Access
//
// The socket has mode 0600: who may open it may move and stop every machine of
// the host. There is no other authentication. Requests are at most 64 KiB,
// unknown fields are refused, and machine names match [A-Za-z0-9._-]{1,64}.
//
// # Resources
//
//	GET    /v1/version                 VersionReply
//	GET    /v1/vms                     {"vms": [relocate.Machine…]}
//	POST   /v1/vms                     AddRequest → 201 relocate.Machine
//	GET    /v1/vms/{name}              relocate.Machine
//	DELETE /v1/vms/{name}              204; the machine itself is left alone
//	POST   /v1/vms/{name}/relocate     RelocateRequest → 202 relocate.Status
//	POST   /v1/vms/{name}/cancel       202; the rollback may still be going on
//	POST   /v1/vms/{name}/bandwidth    BandwidthRequest → 204
//	GET    /v1/limits                  Limits: of all relocations of the host together
//	PUT    /v1/limits                  LimitsRequest → Limits
//	GET    /v1/cache                   CacheReply: what is kept of machines that left
//	DELETE /v1/cache/{name}            204
//	GET    /v1/status[?vm=NAME]        StatusReply: live relocations and the last ended ones
//	GET    /v1/events?after=N&follow=1 application/x-ndjson: relocate.Event, one a line
//	GET    /metrics                    Prometheus text
//
// A relocation is started by POST …/relocate, which answers as soon as the
// first checks have passed. What follows is seen in /v1/status and /v1/events
// under the session of the answer; a client may go away and come back.
//
// # Events
//
// Sequence numbers rise by one and begin again at 1 when the daemon starts.
// Without follow the answer ends with the newest event. With follow it goes on
// until the client leaves, with a line of kind "heartbeat" (without sequence
// number) after 15 s of silence. A client that reads too slowly, and every
// client when the daemon stops, sees the answer end: it asks again with
// after= the last number it saw.
//
// # Errors
//
// An answer of 400 and above has the body {"error", "code", "remedy"}: a
// sentence, a word that stays the same between versions, and what to do about
// it (may be empty).
//
//	400 bad_request       malformed name, body, parameter or address
//	403 clear_text        the peer is another host and there are no certificates
//	404 unknown_machine   no machine of that name is adopted
//	404 not_cached        nothing is kept of that machine
//	404 not_found         no such resource
//	405 bad_method        the resource does not have this method
//	409 exists            the name is taken
//	409 busy              the machine is being relocated
//	409 too_late          past the switch-over, nothing can be rolled back
//	409 idle              the machine is not being relocated
//	409 rolled_back       it failed, the machine runs on at the source
//	410 lost              the machine died after the switch-over
//	413 too_large         the body is over 64 KiB
//	422 failed            the operation was understood and did not succeed
//	503 too_many          over 64 requests or 32 event streams at a time
//	503 stopping          the daemon is stopping
//	504 timeout           it took too long
//	500 internal          a defect of the daemon
//
// The client's errors compare with errors.Is to the sentinels of package
// relocate, so that the far side of the socket does not matter to a caller.
package api
