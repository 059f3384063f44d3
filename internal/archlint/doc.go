// Package archlint holds the rules on the shape of the source that no compiler
// knows, and a test that fails when a file breaks one:
//
//   - imports point down: cmd and bench → relocate → faultd, pageserver →
//     transport, pagecache, kmod → internal; packages of one layer that are not
//     in one folder do not import each other (tests may);
//   - unsafe is imported only in *_unsafe.go, in internal/, and in cgo files,
//     and a file that makes pointers by it says why it may ("SAFETY:");
//   - cgo is confined to transport/rdma/*_cgo.go;
//   - logging is left to faultd, relocate, cmd and bench;
//   - no test is skipped, and no file is longer than 500 lines.
package archlint
