//! Which boot of the machine this is.

use crate::error::{Error, ErrorKind, Result};
use pannier_core::volume::ownership::BootId;
use std::sync::OnceLock;

/// Where the kernel says so.
const BOOT_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// This boot of the machine.
///
/// # Errors
/// `Unavailable` when the kernel does not say.
pub(crate) fn boot() -> Result<BootId> {
    static BOOT: OnceLock<BootId> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(*boot);
    }
    let text = std::fs::read_to_string(BOOT_FILE)
        .map_err(|error| Error::io(format!("cannot read {BOOT_FILE}"), error))?;
    let id = uuid::Uuid::parse_str(text.trim()).map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("{BOOT_FILE} has no boot id: {error}"))
    })?;
    Ok(*BOOT.get_or_init(|| BootId(id.as_u128())))
}
