//! Frames: what one bidirectional stream carries, a request one way and an answer the other.
//!
//! ```text
//! request                               answer
//! 0      version, 1                     0      version, 1
//! 1      service: 1 engine,             1      status: 0 done, 1 error
//!        2 registry, 3 join
//! 2      class: 0 bulk, 1 run-ahead,    2..4   zero
//!        2 demand, 3 control
//! 3      zero
//! 4..8   head length, u32 LE            4..8   head length, u32 LE
//! 8..12  payload length, u32 LE         8..12  payload length, u32 LE
//! 12..   head, payload                  12..   head (of an error: `Fault`), payload
//! ```

use crate::limits::{
    BODY_BYTES_AHEAD, BODY_TIMEOUT, ERROR_BYTES_MAX, HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX,
};
use bytes::{Bytes, BytesMut};
use pannier_core::error::ErrorKind;
use pannier_engine::error::Error;
use pannier_engine::port::Class;
use quinn::{RecvStream, SendStream};
use serde::{Deserialize, Serialize};

/// Version of frames that this build speaks.
pub(crate) const VERSION: u8 = 1;
/// Bytes of a frame's header.
pub(crate) const HEADER_BYTES: usize = 12;

/// Whom a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ServiceTag {
    /// The engine: volumes, ownership, movement.
    Engine,
    /// The registry.
    Registry,
    /// Hosts that join.
    Join,
}

/// The lengths that follow a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lengths {
    pub(crate) head: u32,
    pub(crate) payload: u32,
}

/// Header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    pub(crate) service: ServiceTag,
    pub(crate) class: Class,
    pub(crate) lengths: Lengths,
}

/// Header of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerHeader {
    pub(crate) failed: bool,
    pub(crate) lengths: Lengths,
}

/// A frame that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("frame version {0}, this host speaks {VERSION}; upgrade the older of the two hosts")]
    Version(u8),
    #[error("unknown service {0}")]
    Service(u8),
    #[error("unknown class {0}")]
    Class(u8),
    #[error("unknown status {0}")]
    Status(u8),
    #[error("reserved bytes are set")]
    Reserved,
    #[error("a head of {0} bytes, {HEAD_BYTES_MAX} may be")]
    Head(u32),
    #[error("a payload of {0} bytes, {PAYLOAD_BYTES_MAX} may be")]
    Payload(u32),
}

impl Lengths {
    /// Lengths of what is to be sent.
    pub(crate) fn of(head: &[u8], payload: &[u8]) -> Result<Self, FrameError> {
        let lengths = Self {
            head: u32::try_from(head.len()).unwrap_or(u32::MAX),
            payload: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        };
        lengths.check()
    }

    fn check(self) -> Result<Self, FrameError> {
        if self.head > HEAD_BYTES_MAX {
            return Err(FrameError::Head(self.head));
        }
        if self.payload > PAYLOAD_BYTES_MAX {
            return Err(FrameError::Payload(self.payload));
        }
        Ok(self)
    }

    fn encode(self, first: [u8; 4]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&first);
        bytes[4..8].copy_from_slice(&self.head.to_le_bytes());
        bytes[8..].copy_from_slice(&self.payload.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [_, _, _, _, a, b, c, d, e, f, g, h] = *bytes;
        let head = u32::from_le_bytes([a, b, c, d]);
        let payload = u32::from_le_bytes([e, f, g, h]);
        Self { head, payload }.check()
    }
}

impl RequestHeader {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let service = match self.service {
            ServiceTag::Engine => 1,
            ServiceTag::Registry => 2,
            ServiceTag::Join => 3,
        };
        let class = match self.class {
            Class::Bulk => 0,
            Class::RunAhead => 1,
            Class::Demand => 2,
            Class::Control => 3,
        };
        self.lengths.encode([VERSION, service, class, 0])
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [version, service, class, reserved, ..] = *bytes;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let service = match service {
            1 => ServiceTag::Engine,
            2 => ServiceTag::Registry,
            3 => ServiceTag::Join,
            other => return Err(FrameError::Service(other)),
        };
        let class = match class {
            0 => Class::Bulk,
            1 => Class::RunAhead,
            2 => Class::Demand,
            3 => Class::Control,
            other => return Err(FrameError::Class(other)),
        };
        if reserved != 0 {
            return Err(FrameError::Reserved);
        }
        Ok(Self { service, class, lengths: Lengths::decode(bytes)? })
    }
}

impl AnswerHeader {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        self.lengths.encode([VERSION, u8::from(self.failed), 0, 0])
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [version, status, reserved_a, reserved_b, ..] = *bytes;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let failed = match status {
            0 => false,
            1 => true,
            other => return Err(FrameError::Status(other)),
        };
        if reserved_a != 0 || reserved_b != 0 {
            return Err(FrameError::Reserved);
        }
        Ok(Self { failed, lengths: Lengths::decode(bytes)? })
    }
}

/// An error as it travels: its kind and its context. Sources stay where they are logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    kind: ErrorKind,
    context: String,
}

impl Fault {
    /// The head of an answer that says `error`.
    pub(crate) fn encode(error: &Error) -> Vec<u8> {
        let mut context = error.context().to_owned();
        let end = (0..=ERROR_BYTES_MAX.min(context.len()))
            .rev()
            .find(|at| context.is_char_boundary(*at))
            .unwrap_or(0);
        context.truncate(end);
        let fault = Self { kind: error.kind(), context };
        postcard::to_stdvec(&fault).unwrap_or_default()
    }

    /// The error that a failed answer's head says.
    pub(crate) fn decode(head: &[u8]) -> Error {
        match postcard::from_bytes::<Self>(head) {
            Ok(fault) => Error::new(fault.kind, fault.context),
            Err(error) => {
                Error::new(ErrorKind::Internal, format!("a peer's error cannot be read: {error}"))
            }
        }
    }
}

/// What can go wrong while a frame is read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the frame is cut off")]
    CutOff,
    #[error("no bytes of the frame for {} s", BODY_TIMEOUT.as_secs())]
    Stalled,
    #[error(transparent)]
    Read(#[from] quinn::ReadError),
}

/// Reads a header's bytes.
pub(crate) async fn read_header(
    stream: &mut RecvStream,
) -> Result<[u8; HEADER_BYTES], ReceiveError> {
    let mut bytes = [0; HEADER_BYTES];
    match stream.read_exact(&mut bytes).await {
        Ok(()) => Ok(bytes),
        Err(quinn::ReadExactError::FinishedEarly(_read)) => Err(ReceiveError::CutOff),
        Err(quinn::ReadExactError::ReadError(error)) => Err(error.into()),
    }
}

/// Reads head and payload. What is allocated grows with what has arrived; the header's lengths,
/// which were checked, only bound it.
pub(crate) async fn read_bodies(
    stream: &mut RecvStream,
    lengths: Lengths,
) -> Result<(Bytes, Bytes), ReceiveError> {
    let head = read_body(stream, lengths.head as usize).await?;
    let payload = read_body(stream, lengths.payload as usize).await?;
    Ok((head, payload))
}

async fn read_body(stream: &mut RecvStream, length: usize) -> Result<Bytes, ReceiveError> {
    if length == 0 {
        return Ok(Bytes::new());
    }
    let mut body = BytesMut::new();
    while body.len() < length {
        let next = stream.read_chunk(length - body.len(), true);
        let chunk = tokio::time::timeout(BODY_TIMEOUT, next)
            .await
            .map_err(|_elapsed| ReceiveError::Stalled)??
            .ok_or(ReceiveError::CutOff)?;
        if body.is_empty() && chunk.bytes.len() == length {
            return Ok(chunk.bytes);
        }
        if body.capacity() - body.len() < chunk.bytes.len() {
            let more = body.len().max(BODY_BYTES_AHEAD).min(length - body.len());
            body.reserve(more.max(chunk.bytes.len()));
        }
        body.extend_from_slice(&chunk.bytes);
    }
    Ok(body.freeze())
}

/// Writes a frame and ends the stream.
///
/// # Cancel safety
/// A dropped call leaves a part of the frame; the caller resets the stream then.
pub(crate) async fn write(
    stream: &mut SendStream,
    header: [u8; HEADER_BYTES],
    head: &[u8],
    payload: Bytes,
) -> Result<(), quinn::WriteError> {
    let mut first = BytesMut::with_capacity(HEADER_BYTES + head.len());
    first.extend_from_slice(&header);
    first.extend_from_slice(head);
    stream.write_all_chunks(&mut [first.freeze(), payload]).await?;
    // The stream can only be closed already if it was reset, which `write` does not do.
    stream.finish().map_err(|_closed| quinn::WriteError::ClosedStream)
}

/// A stream's priority from its class: higher goes first.
pub(crate) fn priority(class: Class) -> i32 {
    match class {
        Class::Bulk => 0,
        Class::RunAhead => 1,
        Class::Demand => 2,
        Class::Control => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let request = RequestHeader {
            service: ServiceTag::Registry,
            class: Class::Control,
            lengths: Lengths { head: 0x0001_0203, payload: 0x0001_0000 },
        };
        assert_eq!(request.encode(), [1, 2, 3, 0, 3, 2, 1, 0, 0, 0, 1, 0]);
        let answer = AnswerHeader { failed: true, lengths: Lengths { head: 5, payload: 0 } };
        assert_eq!(answer.encode(), [1, 1, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        let fault = Fault::encode(&Error::new(ErrorKind::Fenced, "no"));
        assert_eq!(fault, [1, 2, b'n', b'o']);
    }

    #[test]
    fn bad_headers_are_named() {
        let good = [1, 1, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x40, 0];
        assert!(RequestHeader::decode(&good).is_ok());
        for (at, value, expect) in [
            (0, 0, FrameError::Version(0)),
            (0, 2, FrameError::Version(2)),
            (1, 0, FrameError::Service(0)),
            (1, 4, FrameError::Service(4)),
            (2, 4, FrameError::Class(4)),
            (3, 1, FrameError::Reserved),
            (4, 1, FrameError::Head(HEAD_BYTES_MAX + 1)),
            (7, 0xff, FrameError::Head(0xff10_0000)),
            (8, 1, FrameError::Payload(PAYLOAD_BYTES_MAX + 1)),
            (11, 0xff, FrameError::Payload(0xff40_0000)),
        ] {
            let mut bytes = good;
            bytes[at] = value;
            assert_eq!(RequestHeader::decode(&bytes), Err(expect), "{at} {value}");
        }
        assert_eq!(
            AnswerHeader::decode(&[1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Err(FrameError::Status(2))
        );
        assert!(Lengths::of(&[], &vec![0; PAYLOAD_BYTES_MAX as usize + 1]).is_err());
    }

    #[test]
    fn long_errors_are_cut_at_a_character() {
        let error = Error::new(ErrorKind::NoSpace, "ä".repeat(ERROR_BYTES_MAX));
        let back = Fault::decode(&Fault::encode(&error));
        assert_eq!(back.kind(), ErrorKind::NoSpace);
        assert_eq!(back.context(), "ä".repeat(ERROR_BYTES_MAX / 2));
        assert_eq!(Fault::decode(&[0xff; 3]).kind(), ErrorKind::Internal);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = RequestHeader::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
            if let Ok(header) = AnswerHeader::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn near_headers_decode_or_fail(
            first in proptest::array::uniform4(0u8..5),
            head in 0u32..HEAD_BYTES_MAX + 2,
            payload in 0u32..PAYLOAD_BYTES_MAX + 2,
        ) {
            let bytes = Lengths { head, payload }.encode(first);
            let fits = head <= HEAD_BYTES_MAX && payload <= PAYLOAD_BYTES_MAX;
            let [version, service, class, reserved] = first;
            let good =
                version == 1 && (1..=3).contains(&service) && class <= 3 && reserved == 0 && fits;
            prop_assert_eq!(RequestHeader::decode(&bytes).is_ok(), good);
        }

        #[test]
        fn any_fault_decodes(bytes: Vec<u8>) {
            // Every outcome is an error to hand on; none panics.
            let _error = Fault::decode(&bytes);
        }
    }
}
