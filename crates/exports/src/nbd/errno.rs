//! What an engine error is to an NBD client.

use super::codec::Errno;
use pannier_engine::error::ErrorKind;

/// The error value of a reply. `Fenced` and `Closed` say that this server no longer serves the
/// device, which a client can answer by connecting again; the rest has no closer word than EIO.
pub(super) fn errno(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::Invalid => Errno::Inval,
        ErrorKind::NoSpace => Errno::NoSpc,
        ErrorKind::Fenced | ErrorKind::Closed => Errno::Shutdown,
        ErrorKind::Unavailable | ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Internal => {
            Errno::Io
        }
    }
}
