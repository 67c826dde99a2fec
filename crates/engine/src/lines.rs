//! The log, for tests that read it.

use parking_lot::Mutex;
use std::io::Write;
use std::sync::{Arc, OnceLock};

/// Lines that were logged.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Collects what this process logs, of other tests too where they share it.
    pub(crate) fn of_process() -> Self {
        static LINES: OnceLock<Lines> = OnceLock::new();
        let lines = LINES.get_or_init(|| {
            let lines = Self::default();
            tracing::subscriber::set_global_default(lines.subscriber()).unwrap();
            lines
        });
        lines.clone()
    }

    /// What collects into these lines.
    pub(crate) fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + use<> {
        let lines = self.clone();
        let log = tracing_subscriber::fmt().with_ansi(false);
        log.with_writer(move || lines.clone()).finish()
    }

    /// Those of a level.
    pub(crate) fn of(&self, level: &str) -> Vec<String> {
        let bytes = self.0.lock().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().filter(|line| line.contains(level)).map(str::to_owned).collect()
    }
}
