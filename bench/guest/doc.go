// Command guest is the init of the test guest: a static program that is all of
// a VM's user space. It mounts what it needs, loads the network driver, sets up
// eth0 from the kernel command line, and then works on a self-checking set of
// pages while it serves them over HTTP:
//
//	GET /page?n=K&pages=8   content from pages drawn by K, each one verified
//	GET /stats              counters, as JSON (guestapi.Stats)
//	GET /touches            touches per 100 ms, as JSON ([]guestapi.TouchBin)
//	GET /verify             one pass over the whole set (guestapi.Verify)
//	GET /poweroff           the end
//
// The parameters are those of guestapi.Config. A page that fails its check is
// printed on the console, counted, and reported by /stats for ever.
package main
