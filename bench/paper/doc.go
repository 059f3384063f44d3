// Package paper measures what the paper on this way of relocating virtual
// machines claims (CCGrid 2010): that a web server under heavy load relocates
// within a second, what precache is worth, that the total time of a
// memory-intensive machine beats precopy, and that downtime does not depend on
// the size of memory. It is built on bench/engine and bench/downtime, and writes
// one report as HTML, Markdown and JSON, with plots.
package paper
