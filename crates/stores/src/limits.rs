//! Every bound of this crate, with its reason.

use std::time::Duration;

/// Largest head of a frame in bytes: a message without its bulk. A batch of log entries or a page
/// of map fits; nothing that a peer says makes us hold more for one.
pub const HEAD_BYTES_MAX: u32 = 1 << 20;

/// Largest payload of a frame in bytes. Bulk moves in pieces of at most this, so that a stream is
/// short, priorities between streams mean something, and a broken link loses little.
pub const PAYLOAD_BYTES_MAX: u32 = 4 << 20;

/// Bytes that are allocated for a body before its first byte arrived; it grows as bytes arrive, so
/// a peer must send what it makes us hold.
pub const BODY_BYTES_AHEAD: usize = 64 << 10;

/// Longest text of an error that travels, in bytes.
pub const ERROR_BYTES_MAX: usize = 4 << 10;

/// Requests of one host that are served at once, by class. Each may hold a head and a payload both
/// ways, so the classes that carry payloads are few. Control has the long polls: one per followed
/// volume and one for the registry.
pub const SERVED_BULK_MAX: usize = 32;
/// See [`SERVED_BULK_MAX`].
pub const SERVED_RUN_AHEAD_MAX: usize = 32;
/// See [`SERVED_BULK_MAX`].
pub const SERVED_DEMAND_MAX: usize = 256;
/// See [`SERVED_BULK_MAX`].
pub const SERVED_CONTROL_MAX: usize = 1024;

/// Streams that a peer may have open on one connection: all classes full, and some that wait for
/// their class. The next one waits at the peer.
pub const STREAMS_MAX: u32 = 2048;

/// Connections that are accepted and not yet closed, over all hosts. Each costs about 100 KiB when
/// idle; a cluster of 200 hosts in both directions fits twice.
pub const CONNECTIONS_MAX: usize = 1024;

/// Handshakes under way: each costs a signature; beyond it connections are refused.
pub const HANDSHAKES_MAX: usize = 256;

/// Handshakes under way from which on a stranger must prove its address first (a QUIC retry), so
/// that forged addresses cannot fill the places.
pub const HANDSHAKES_UNPROVEN_MAX: usize = 32;

/// Connections without a certificate that are open at once: hosts that are joining.
pub const JOINING_MAX: usize = 16;

/// Connection attempts that wait to be looked at.
pub const INCOMING_MAX: usize = 256;

/// Flow-control window of one stream in bytes: a whole frame, so that a stream is never held up by
/// its own window.
pub const STREAM_WINDOW_BYTES: u32 = HEAD_BYTES_MAX + PAYLOAD_BYTES_MAX + (64 << 10);

/// Flow-control window of a connection in bytes, both directions: 1 Gbit/s times 100 ms is
/// 12.5 MB; twice that, and room for a stream that waits for its reader.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// Bytes that a new connection may send before the first acknowledgement, paced over one round
/// trip. Ten packets (RFC 9002, section 7.2) would hold a GRANT with the log's tail, 20 to 200 KiB,
/// for two or three round trips while a guest waits; what fills the link, bulk, is bounded and
/// grown by the mover, not by this. See decision 0009.
pub const INITIAL_WINDOW_BYTES: u64 = 512 << 10;

/// Kernel buffers asked for the UDP socket in bytes, each way: 30 ms at 1 Gbit/s. The kernel may
/// give less (`net.core.rmem_max`).
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// A connection on which nothing arrives for this long is dead.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// A quiet connection is asked for a sign of life this often: three chances before it is dead.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// First guess of a round trip, until it is measured. A lost first packet is sent again after
/// three of these.
pub const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Time that one attempt to connect may take. A fresh attempt starts its timers anew, so that a
/// link that is back is noticed within about a second however long it was away.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between failed attempts to connect.
pub const CONNECT_PAUSE: Duration = Duration::from_millis(200);

/// How long a lost connection is retried without anybody asking for it.
pub const RECONNECT_FOR: Duration = Duration::from_secs(120);

/// Time for the handshake of an accepted connection.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest that a request may take altogether: longer than any long poll and than a payload over
/// 1 Mbit/s; a peer that hangs with its link alive is `Unavailable` after it.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest that a stop waits for peers to hear of it; one whose link is cut never does.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest pause within the bytes of one frame.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest that a joining host's connection lives.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a joining host that has its answer may take to read it and close.
pub const JOIN_LINGER: Duration = Duration::from_secs(1);

/// Longest registry key in bytes: `path/` and the longest volume path.
pub const KEY_BYTES_MAX: usize = 1100;

/// Largest registry value in bytes: records are small; a volume with hundreds of homes fits.
pub const VALUE_BYTES_MAX: usize = 256 << 10;

/// Keys that one registry transaction may expect or change: what etcd takes (`--max-txn-ops`).
pub const TRANSACTION_KEYS_MAX: usize = 128;

/// Bytes of keys and values in one registry transaction: it travels in one head, and etcd takes
/// 1.5 MiB (`--max-request-bytes`).
pub const TRANSACTION_BYTES_MAX: usize = 768 << 10;

/// Changes that the registry remembers. Whoever was away for longer reads everything again.
pub const HISTORY_MAX: u64 = 65_536;

/// How long a question for changes waits for some.
pub const CHANGES_WAIT: Duration = Duration::from_secs(20);

/// Time for a registry request over the network, beside the wait for changes.
pub const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of one page of a registry listing on the wire.
pub const LISTING_BYTES_MAX: usize = 2 << 20;

/// Times that a listing of several pages is begun anew because the registry changed under it.
pub const LISTING_ATTEMPTS_MAX: usize = 8;

/// Time for a connection to a member of etcd, TLS included.
pub const ETCD_CONNECT: Duration = Duration::from_secs(2);

/// Time for one request to one member of etcd: a few syncs of a slow disk.
pub const ETCD_TRY: Duration = Duration::from_secs(3);

/// Time for one transaction at one member of etcd. It is not sent again, so nothing is won by less
/// than etcd's own patience, which with its defaults is 7 s.
pub const ETCD_COMMIT: Duration = Duration::from_secs(8);

/// How long etcd's members are asked in turn before the registry is `Unavailable`: with etcd's
/// defaults an election is over after two seconds.
pub const ETCD_PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two rounds over etcd's members.
pub const ETCD_PAUSE: Duration = Duration::from_millis(200);

/// How often a connection with requests under way is asked for a sign of life, and how long that
/// may take. More often than every 5 s etcd closes it.
pub const ETCD_PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));

/// Keys of one page of a listing from etcd.
pub const ETCD_PAGE_KEYS: i64 = 256;

/// Bytes of one message from etcd: a page of the largest values. A watcher that missed more than
/// that at once reads everything again.
pub const ETCD_MESSAGE_BYTES_MAX: usize = 80 << 20;

/// How long a host that says nothing more counts as alive.
pub const ETCD_ALIVE_TTL: Duration = Duration::from_secs(60);

/// Longest object key in bytes, as S3 has it.
pub const OBJECT_KEY_BYTES_MAX: usize = 1024;

/// Directories of a directory store that are remembered as durable; beyond it they are forgotten
/// and synced again.
pub const DURABLE_DIRECTORIES_MAX: usize = 65_536;

/// How long a join token can be used when nothing else is asked.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// Join tokens that are kept, used and expired ones included, until those are swept.
pub const TOKENS_MAX: usize = 1024;
