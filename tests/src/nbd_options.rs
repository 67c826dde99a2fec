//! The handshake of the NBD client: fixed newstyle.

use std::io::{self, Read, Write};

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;

/// What the handshake agreed on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Agreed {
    /// Size of the device in bytes.
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Whether replies are structured.
    pub structured: bool,
    /// Id of the context `base:allocation`, when it was agreed on.
    pub allocation: Option<u32>,
}

/// An error of the protocol.
#[must_use]
pub fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Reads a fixed number of bytes.
///
/// # Errors
/// When the connection ends.
pub fn read_array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_u32(from: &mut impl Read) -> io::Result<u32> {
    read_array(from).map(u32::from_be_bytes)
}

fn read_u64(from: &mut impl Read) -> io::Result<u64> {
    read_array(from).map(u64::from_be_bytes)
}

fn send_option(stream: &mut impl Write, option: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    stream.write_all(&bytes)
}

fn receive_reply(stream: &mut impl Read, option: u32) -> io::Result<(u32, Vec<u8>)> {
    if read_u64(stream)? != REPLY_MAGIC || read_u32(stream)? != option {
        return Err(wrong("a reply to another option"));
    }
    let kind = read_u32(stream)?;
    let length = read_u32(stream)?;
    if length > 64 << 10 {
        return Err(wrong("an option's reply is too long"));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

/// Opens an export. With `structured` it asks for structured replies and `base:allocation`.
///
/// # Errors
/// `NotFound` with the server's words when it refuses the export; else what the connection or the
/// protocol fails with.
pub fn handshake(
    stream: &mut (impl Read + Write),
    export: &str,
    structured: bool,
) -> io::Result<Agreed> {
    let mut agreed = Agreed::default();
    if read_u64(stream)? != MAGIC || read_u64(stream)? != OPTION_MAGIC {
        return Err(wrong("not an NBD server"));
    }
    let server: [u8; 2] = read_array(stream)?;
    if server[1] & 3 != 3 {
        return Err(wrong("no fixed newstyle, or zeroes are sent"));
    }
    stream.write_all(&3_u32.to_be_bytes())?;

    if structured {
        send_option(stream, OPT_STRUCTURED_REPLY, &[])?;
        agreed.structured = receive_reply(stream, OPT_STRUCTURED_REPLY)?.0 == REP_ACK;
        let context = b"base:allocation";
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&1_u32.to_be_bytes());
        data.extend_from_slice(&(context.len() as u32).to_be_bytes());
        data.extend_from_slice(context);
        send_option(stream, OPT_SET_META_CONTEXT, &data)?;
        loop {
            match receive_reply(stream, OPT_SET_META_CONTEXT)? {
                (REP_META_CONTEXT, data) if data.len() >= 4 => {
                    agreed.allocation =
                        Some(u32::from_be_bytes([data[0], data[1], data[2], data[3]]));
                }
                (REP_ACK, _) => break,
                (kind, data) => return Err(refused(kind, &data)),
            }
        }
    }

    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&0_u16.to_be_bytes());
    send_option(stream, OPT_GO, &data)?;
    loop {
        match receive_reply(stream, OPT_GO)? {
            (REP_INFO, data) if data.len() == 12 && data[..2] == [0, 0] => {
                let mut size = [0; 8];
                size.copy_from_slice(&data[2..10]);
                agreed.size_bytes = u64::from_be_bytes(size);
                agreed.flags = u16::from_be_bytes([data[10], data[11]]);
            }
            (REP_INFO, _) => {}
            (REP_ACK, _) => return Ok(agreed),
            (kind, data) => return Err(refused(kind, &data)),
        }
    }
}

fn refused(kind: u32, data: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(data);
    io::Error::new(io::ErrorKind::NotFound, format!("refused with {kind:#x}: {text}"))
}
