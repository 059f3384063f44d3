// Package report holds what a benchmark or a demonstration hands back: the
// schema of report.json, its writer, the summary for people, and the timeline
// plot. It measures nothing itself; [Summarize] turns samples into the
// percentiles that every report uses.
package report
