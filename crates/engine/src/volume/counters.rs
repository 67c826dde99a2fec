//! A volume's metrics, with handles made once so that the guest's path only adds.

use metrics::{Counter, Gauge};

/// Counters and gauges; all volumes of a host add to the same ones.
pub(crate) struct Counters {
    entries: Counter,
    written: Counter,
    pub(crate) syncs: Counter,
    pub(crate) reads_waited: Counter,
    pub(crate) pages_missed: Counter,
    pub(crate) uploaded: Counter,
    pub(crate) upload_lag: Gauge,
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            entries: metrics::counter!("pannier_log_entries_total"),
            written: metrics::counter!("pannier_written_bytes_total"),
            syncs: metrics::counter!("pannier_syncs_total"),
            reads_waited: metrics::counter!("pannier_reads_waited_total"),
            pages_missed: metrics::counter!("pannier_pages_missed_total"),
            uploaded: metrics::counter!("pannier_uploaded_bytes_total"),
            upload_lag: metrics::gauge!("pannier_upload_lag_segments"),
        }
    }

    pub(crate) fn wrote(&self, entries: u64, bytes: u64) {
        self.entries.increment(entries);
        self.written.increment(bytes);
    }
}
