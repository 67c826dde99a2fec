//! The handshake of one connection: from the greeting to a chosen export.

use super::codec::Malformed;
use super::codec::handshake::{
    ALLOCATION, ClientFlags, InfoRequest, MetaError, MetaRequest, OPTION_BYTES, OptionHeader,
    Reply, greeting, info, option, push_reply, transmission_flags,
};
use super::connection::Break;
use super::limits;
use super::socket::Socket;
use pannier_core::units::SECTOR_BYTES;
use pannier_engine::error::{Error, ErrorKind};
use pannier_engine::port::{BlockDevice, Devices};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// Identifies `base:allocation` in block status replies.
pub(super) const ALLOCATION_ID: u32 = 1;

/// What a handshake ended with.
#[derive(Debug)]
pub(super) struct Session<V> {
    pub(super) device: V,
    pub(super) name: String,
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

/// What was negotiated so far.
#[derive(Debug, Default)]
struct Negotiated {
    structured: bool,
    /// The export for which `base:allocation` was selected last.
    allocation_for: Option<String>,
}

/// Whether two export names mean the same: the leading slash may be missing.
fn same_export(one: &str, other: &str) -> bool {
    one.strip_prefix('/').unwrap_or(one) == other.strip_prefix('/').unwrap_or(other)
}

/// One client's handshake.
struct Handshake<'a, D> {
    socket: &'a mut Socket,
    devices: &'a D,
    /// When the client's patience with us ends, in its own words and not in ours: time that opening
    /// a device takes is added.
    deadline: Instant,
    out: Vec<u8>,
    no_zeroes: bool,
    negotiated: Negotiated,
}

/// Negotiates with a client, which has until `deadline` for its own part; `None` when it ended the
/// session without choosing an export.
///
/// # Errors
/// When the connection breaks, the client is malformed, or takes too long.
pub(super) async fn negotiate<D: Devices>(
    socket: &mut Socket,
    devices: &D,
    deadline: Instant,
) -> Result<Option<Session<D::Device>>, Break> {
    let mut handshake = Handshake {
        socket,
        devices,
        deadline,
        out: greeting().to_vec(),
        no_zeroes: false,
        negotiated: Negotiated::default(),
    };
    handshake.send().await?;
    let flags = handshake.receive::<4>().await?;
    handshake.no_zeroes = ClientFlags::parse(flags)?.no_zeroes;
    for _ in 0..limits::OPTIONS_MAX {
        let header = OptionHeader::parse(&handshake.receive::<OPTION_BYTES>().await?)?;
        let mut data = vec![0; header.length as usize];
        handshake.receive_into(&mut data).await?;
        match handshake.answer(header.option, &data).await? {
            Next::Option => handshake.send().await?,
            Next::End => {
                handshake.send().await?;
                return Ok(None);
            }
            Next::Transmission(session) => {
                handshake.send().await?;
                return Ok(Some(session));
            }
        }
    }
    Err(Malformed::TooManyOptions.into())
}

/// What follows an option.
enum Next<V> {
    Option,
    End,
    Transmission(Session<V>),
}

impl<D: Devices> Handshake<'_, D> {
    async fn receive_into(&mut self, into: &mut [u8]) -> Result<(), Break> {
        match timeout_at(self.deadline, self.socket.read_exact(into)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Break::Lost(error)),
            Err(_elapsed) => Err(Break::Slow),
        }
    }

    async fn receive<const N: usize>(&mut self) -> Result<[u8; N], Break> {
        let mut bytes = [0; N];
        self.receive_into(&mut bytes).await?;
        Ok(bytes)
    }

    async fn send(&mut self) -> Result<(), Break> {
        match timeout_at(self.deadline, self.socket.write_all(&self.out)).await {
            Ok(sent) => sent.map_err(Break::Lost)?,
            Err(_elapsed) => return Err(Break::Slow),
        }
        self.out.clear();
        Ok(())
    }

    fn reply(&mut self, option: u32, reply: Reply, parts: &[&[u8]]) {
        push_reply(&mut self.out, option, reply, parts);
    }

    fn refuse(&mut self, option: u32, error: &Error) {
        let reply = match error.kind() {
            ErrorKind::NotFound | ErrorKind::Invalid => Reply::ErrUnknown,
            ErrorKind::Closed => Reply::ErrShutdown,
            ErrorKind::Unavailable
            | ErrorKind::Fenced
            | ErrorKind::Corrupt
            | ErrorKind::NoSpace
            | ErrorKind::Internal => Reply::ErrPolicy,
        };
        self.reply(option, reply, &[error.context().as_bytes()]);
    }

    async fn answer(&mut self, number: u32, data: &[u8]) -> Result<Next<D::Device>, Break> {
        match number {
            option::EXPORT_NAME => return self.export_name(data).await.map(Next::Transmission),
            option::ABORT => {
                self.reply(number, Reply::Ack, &[]);
                return Ok(Next::End);
            }
            option::GO | option::INFO => return Ok(self.info(number, data).await),
            option::LIST if data.is_empty() => self.list().await,
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.negotiated.structured = true;
                self.reply(number, Reply::Ack, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                self.reply(number, Reply::ErrInvalid, &[b"this option has no data"]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(number, data);
            }
            _ => self.reply(number, Reply::ErrUnsup, &[]),
        }
        Ok(Next::Option)
    }

    async fn open(&mut self, name: &str) -> Result<D::Device, Error> {
        let begun = Instant::now();
        let opened = self.devices.open(name).await;
        self.deadline += begun.elapsed();
        opened
    }

    fn session(&self, device: D::Device, name: &str) -> Session<D::Device> {
        let selected = self.negotiated.allocation_for.as_deref();
        Session {
            device,
            name: name.to_owned(),
            structured: self.negotiated.structured,
            allocation: selected.is_some_and(|selected| same_export(selected, name)),
        }
    }

    async fn export_name(&mut self, data: &[u8]) -> Result<Session<D::Device>, Break> {
        let name = std::str::from_utf8(data).map_err(|_not_text| Malformed::Name)?;
        let device = self.open(name).await.map_err(Break::Refused)?;
        self.out.extend_from_slice(&device.size_bytes().to_be_bytes());
        let flags = transmission_flags(device.read_only(), self.negotiated.structured);
        self.out.extend_from_slice(&flags.to_be_bytes());
        if !self.no_zeroes {
            self.out.extend_from_slice(&[0; 124]);
        }
        Ok(self.session(device, name))
    }

    async fn info(&mut self, number: u32, data: &[u8]) -> Next<D::Device> {
        let Some(request) = InfoRequest::parse(data) else {
            self.reply(number, Reply::ErrInvalid, &[b"malformed export request"]);
            return Next::Option;
        };
        let device = match self.open(request.name).await {
            Ok(device) => device,
            Err(error) => {
                tracing::info!(export = request.name, %error, "NBD export refused");
                self.refuse(number, &error);
                return Next::Option;
            }
        };
        let flags = transmission_flags(device.read_only(), self.negotiated.structured);
        let size = device.size_bytes().to_be_bytes();
        let kind = info::EXPORT.to_be_bytes();
        self.reply(number, Reply::Info, &[&kind, &size, &flags.to_be_bytes()]);
        let sizes = [SECTOR_BYTES as u32, limits::BLOCK_BYTES_PREFERRED, limits::REQUEST_BYTES_MAX]
            .map(u32::to_be_bytes);
        let kind = info::BLOCK_SIZE.to_be_bytes();
        self.reply(number, Reply::Info, &[&kind, sizes.as_flattened()]);
        if request.wants_name {
            let bare = request.name.strip_prefix('/').unwrap_or(request.name);
            let kind = info::NAME.to_be_bytes();
            self.reply(number, Reply::Info, &[&kind, b"/", bare.as_bytes()]);
        }
        self.reply(number, Reply::Ack, &[]);
        if number == option::GO {
            Next::Transmission(self.session(device, request.name))
        } else {
            Next::Option
        }
    }

    async fn list(&mut self) {
        match self.devices.names().await {
            Ok(names) => {
                for name in names {
                    let length = (name.len() as u32).to_be_bytes();
                    self.reply(option::LIST, Reply::Server, &[&length, name.as_bytes()]);
                }
                self.reply(option::LIST, Reply::Ack, &[]);
            }
            Err(error) => self.refuse(option::LIST, &error),
        }
    }

    fn meta_context(&mut self, number: u32, data: &[u8]) {
        let sets = number == option::SET_META_CONTEXT;
        if sets {
            self.negotiated.allocation_for = None;
        }
        if !self.negotiated.structured {
            let hint: &[u8] = b"negotiate structured replies first";
            return self.reply(number, Reply::ErrInvalid, &[hint]);
        }
        let request = match MetaRequest::parse(data) {
            Ok(request) => request,
            Err(MetaError::Invalid) => return self.reply(number, Reply::ErrInvalid, &[]),
            Err(MetaError::TooBig) => return self.reply(number, Reply::ErrTooBig, &[]),
        };
        let (named, id) = if sets {
            (request.selects_allocation(), ALLOCATION_ID)
        } else {
            (request.lists_allocation(), 0)
        };
        if named {
            let id = id.to_be_bytes();
            self.reply(number, Reply::MetaContext, &[&id, ALLOCATION.as_bytes()]);
            if sets {
                self.negotiated.allocation_for = Some(request.name.to_owned());
            }
        }
        self.reply(number, Reply::Ack, &[]);
    }
}
