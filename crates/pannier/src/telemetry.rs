//! Logs to standard error, metrics for Prometheus.

use crate::config::LogFormat;
use crate::output::Failure;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use pannier_engine::error::ErrorKind;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// Sends log messages to standard error.
pub(crate) fn log_to_stderr(level: &str, format: LogFormat) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(level).map_err(|error| {
        Failure::invalid(format!(
            "log level `{level}`: {error}; write error, warn, info, debug, trace, or a filter such \
             as info,pannier_engine=debug"
        ))
    })?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    set.map_err(|error| Failure::new(ErrorKind::Internal, format!("logging: {error}")))
}

/// Starts to collect metrics; the handle renders them.
pub(crate) fn collect_metrics() -> Result<PrometheusHandle, Failure> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)
        .map_err(|error| Failure::new(ErrorKind::Internal, format!("metrics: {error}")))?;
    Ok(handle)
}
