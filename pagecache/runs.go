package pagecache

// Run is a run of pages of one region, in units of the region's page size. It
// has the fields of a fetch's range on the wire, so that the one converts to
// the other.
type Run struct {
	Region uint32 // region id
	Count  uint32 // pages
	First  uint64 // number of the first page
}
