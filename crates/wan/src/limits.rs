//! Every bound of the emulator, with its reason.

use std::time::Duration;

/// Largest UDP datagram in bytes.
pub(crate) const DATAGRAM_BYTES_MAX: usize = 65_536;

/// Bytes that a link holds at once, in its queue and on the wire, whatever its rate: 10 Gbit/s over
/// 100 ms.
pub(crate) const HELD_BYTES_MAX: usize = 128 << 20;

/// Sources that one relay keeps a mapping for. Sites have a handful.
pub(crate) const MAPPINGS_MAX: usize = 256;

/// Kernel buffer of each socket in bytes: what arrives while a thread waits for its turn.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// How soon a thread notices that its relay was stopped.
pub(crate) const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// Queue of a link without a rate, in bytes; with a rate the default is one bandwidth-delay
/// product, but never less than this many full frames.
pub(crate) const QUEUE_FRAMES_MIN: u64 = 32;

/// A full frame in bytes.
pub(crate) const FRAME_BYTES: u64 = 1500;

/// Datagrams due within this time leave together: fewer wake-ups for less than the clock's noise.
pub(crate) const BATCH: Duration = Duration::from_micros(50);
