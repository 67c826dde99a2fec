//! Every bound of the NBD server, with its reason.

use std::time::Duration;

/// Longest READ or WRITE in bytes. The protocol document names 32 MiB as what no server should take
/// for an attack, and clients do not send more.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// Preferred block size in bytes: the unit of the map, below which a write is read-modify-write.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;

/// Longest data of one option in bytes. The longest honest one, meta context queries, stays under a
/// kilobyte; export names are at most 4096 bytes.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;

/// Options in one handshake. Honest clients send fewer than ten.
pub const OPTIONS_MAX: u32 = 256;

/// Queries in one meta context option.
pub const QUERIES_MAX: usize = 64;

/// Time that a client may take to say what it wants. A person at an interactive client needs
/// seconds; whoever needs more only holds a connection.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(60);

/// Connections at once. Each holds a receive and a reply buffer of which only touched pages cost.
pub const CONNECTIONS_MAX: usize = 4096;

/// Receive buffer of a connection in bytes: a batch of requests is what fits, or one whole write of
/// [`WHOLE_WRITE_BYTES_MAX`]. Small enough to stay in the core's cache from socket to page cache.
pub(super) const RECEIVE_BYTES: usize = (512 << 10) + 4096;

/// Longest write that is awaited as a whole before it is executed. Longer ones are executed piece
/// by piece as they arrive, so that no client makes the buffer grow.
pub(super) const WHOLE_WRITE_BYTES_MAX: u32 = 256 << 10;

/// Longest read that is answered inline from the reply buffer; longer ones are queued.
pub(super) const INLINE_READ_BYTES_MAX: u32 = 512 << 10;

/// Reply buffer of a connection in bytes: two of the largest inline reads, so that one is read
/// while the other is on its way. When it is full the connection takes no more requests.
pub(super) const REPLY_BYTES: usize = (1 << 20) + 4096;

/// Writes that are handed to the device as one batch.
pub(super) const WRITE_BATCH_MAX: usize = 64;

/// Requests of one connection that wait for the device at once. Clients keep 16 to 128 in flight.
pub(super) const QUEUED_REQUESTS_MAX: usize = 128;

/// Bytes of one connection's queued requests: two of the largest.
pub(super) const QUEUED_BYTES_MAX: usize = 64 << 20;

/// Bytes of all connections' queued requests, [`RESERVE_BYTES`] of each apart.
pub(super) const SERVER_BYTES_MAX: usize = 512 << 20;

/// Bytes that one connection may queue whatever the others hold: so a client that reads its replies
/// goes on, one request at a time, beside any number that do not. A whole small write.
pub(super) const RESERVE_BYTES: usize = WHOLE_WRITE_BYTES_MAX as usize;

/// What a connection may hold of the server's memory, as a part of what is still free: the more
/// connections ask, the less each gets, and there is always some left ("dynamic thresholds",
/// Choudhury and Hahne 1998).
pub(super) const SHARE_OF_FREE: usize = 2;

/// Time that a client may leave its replies unread while they take memory that others wait for. A
/// client that is stopped for longer connects again.
pub const UNREAD_TIME_MAX: Duration = Duration::from_secs(20);

/// Unit in which [`SERVER_BYTES_MAX`] is handed out.
pub(super) const CHARGE_UNIT_BYTES: usize = 4096;

/// Bytes of reply buffers that a connection keeps for its next queued reads.
pub(super) const SPARE_BYTES_MAX: usize = 4 << 20;

/// Extents in one block status reply.
pub(super) const EXTENTS_MAX: usize = 2048;

/// Slices in one writev.
pub(super) const SLICES_MAX: usize = 32;

/// Time that a shutdown gives connections to answer what they have received.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// Time that queued requests of a connection that is gone may take before they are abandoned and
/// the device is let go.
pub(super) const LINGER_TIME_MAX: Duration = Duration::from_secs(5);

/// Size of the kernel's buffer for replies on a unix socket, in bytes. The default of about 200 KiB
/// is less than one large reply, so that a writev would stop half-way and wait for the client.
pub(super) const UNIX_SEND_BUFFER_BYTES: usize = 1 << 20;

/// Pause after an accept that failed for want of descriptors or memory.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
