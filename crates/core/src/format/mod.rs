//! Codecs of what is stored: segment, stored form, checkpoint. Drawn in bytes in `docs/formats.md`.

pub mod checkpoint;
pub mod segment;
pub mod stored;
