//! The header with which a proxy says for whom it connects: PROXY protocol, versions 1 and 2.
//!
//! Pure: bytes in, meaning out, so that it can be fuzzed. Reading it from a socket is
//! `shell/proxied.rs`. The specification is HAProxy's `doc/proxy-protocol.txt` (section numbers below).
//!
//! Only proxies on a list are heard at all, but what they pass on comes from strangers, so the parser
//! is strict: whatever is ambiguous (a name twice, a port with a sign) is refused, not guessed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// Longest header of version 1, with its line end (section 2.1).
const MAX_V1: usize = 107;

/// Longest header of version 2 that we take. Its length field allows 64 KiB; the addresses, a host name of
/// 255 bytes and the description of a certificate stay well below this.
pub const MAX_HEADER: usize = 2048;

/// How a header of version 1 begins.
const V1: &[u8] = b"PROXY ";

/// How a header of version 2 begins. No MQTT, TLS or HTTP begins like this.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and transport, length.
const V2_FIXED: usize = 16;

/// A connection that came through a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxied {
    /// The proxy.
    pub proxy: SocketAddr,
    /// Common name of the certificate that the client showed to the proxy. Only if the proxy says that
    /// it verified it; whether to believe the proxy was decided by listing it.
    pub certificate_name: Option<Arc<str>>,
    /// Name of the server that the client asked for (SNI).
    pub server_name: Option<Arc<str>>,
    /// Version of TLS between client and proxy, as the proxy writes it: `TLSv1.3`.
    pub tls_version: Option<Arc<str>>,
}

/// What a header says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The client. `None`: the proxy speaks for itself (LOCAL, a health check), or does not know
    /// (UNKNOWN, or something that is not TCP); its own address counts then.
    pub source: Option<SocketAddr>,
    /// See [`Proxied::certificate_name`].
    pub certificate_name: Option<Arc<str>>,
    /// See [`Proxied::server_name`].
    pub server_name: Option<Arc<str>>,
    /// See [`Proxied::tls_version`].
    pub tls_version: Option<Arc<str>>,
}

/// Outcome of [`parse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parse {
    /// All bytes so far belong to a header that goes on. Never said of [`MAX_HEADER`] bytes.
    Incomplete,
    /// A header stands at the front.
    Done {
        /// What it says.
        header: Header,
        /// How long it is; what follows is the client's.
        len: usize,
    },
    /// This is no header.
    Malformed(Malformed),
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Something else than a header: mostly a proxy that was not told to send one.
    #[error("no PROXY header; switch it on in the proxy (HAProxy: `send-proxy-v2`)")]
    Signature,
    /// Version 1 without an end.
    #[error("version 1 without a line end in 107 bytes")]
    Endless,
    /// Version 1 that is not `PROXY TCP4|TCP6 SOURCE DESTINATION PORT PORT` or `PROXY UNKNOWN`.
    #[error("version 1 with a line that cannot be read")]
    Line,
    /// Version 2 longer than [`MAX_HEADER`].
    #[error("version 2 of {len} bytes, more than 2048")]
    TooLong {
        /// With the fixed part.
        len: usize,
    },
    /// Neither version 2 nor a command of it.
    #[error("version and command 0x{0:02x}; 0x20 and 0x21 are known")]
    Command(u8),
    /// Not a family and transport of the specification, or one of datagrams.
    #[error("family and transport 0x{0:02x}, which is not one of a stream")]
    Family(u8),
    /// The addresses or a field go beyond the end.
    #[error("a field goes beyond the end of the header")]
    Truncated,
    /// The checksum is not the one of the bytes.
    #[error("the checksum does not fit")]
    Checksum,
    /// A field that may be there once is there twice.
    #[error("field 0x{0:02x} is there twice")]
    Twice(u8),
    /// A name or version that is not UTF-8 or has control characters in it.
    #[error("field 0x{0:02x} is not text")]
    Text(u8),
}

/// Looks for a header at the front of `bytes`.
pub fn parse(bytes: &[u8]) -> Parse {
    let parsed = match bytes.first() {
        None => Ok(None),
        Some(b'P') => parse_v1(bytes),
        Some(_) => parse_v2(bytes),
    };
    match parsed {
        Ok(None) => Parse::Incomplete,
        Ok(Some((header, len))) => Parse::Done { header, len },
        Err(malformed) => Parse::Malformed(malformed),
    }
}

type Parsed = Result<Option<(Header, usize)>, Malformed>;

/// Whether the signature is all there; an error as soon as it can not be it.
fn begins_with(bytes: &[u8], signature: &[u8]) -> Result<bool, Malformed> {
    let common = bytes.len().min(signature.len());
    if bytes[..common] != signature[..common] {
        return Err(Malformed::Signature);
    }
    Ok(common == signature.len())
}

// ----- version 1 (section 2.1) -----

fn parse_v1(bytes: &[u8]) -> Parsed {
    if !begins_with(bytes, V1)? {
        return Ok(None);
    }
    let window = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return match window.len() {
            MAX_V1 => Err(Malformed::Endless),
            _ => Ok(None),
        };
    };
    let line = window[V1.len()..end]
        .strip_suffix(b"\r")
        .ok_or(Malformed::Line)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed::Line)?;
    let source = match line.split(' ').collect::<Vec<_>>().as_slice() {
        // What follows is to be ignored.
        ["UNKNOWN", ..] => None,
        ["TCP4", source, destination, from, to] => {
            address::<Ipv4Addr>(destination, to)?;
            Some(address::<Ipv4Addr>(source, from)?)
        }
        ["TCP6", source, destination, from, to] => {
            address::<Ipv6Addr>(destination, to)?;
            Some(address::<Ipv6Addr>(source, from)?)
        }
        _ => return Err(Malformed::Line),
    };
    let header = Header {
        source,
        ..Header::default()
    };
    Ok(Some((header, end + 1)))
}

fn address<A: FromStr + Into<IpAddr>>(address: &str, port: &str) -> Result<SocketAddr, Malformed> {
    let address: A = address.parse().map_err(|_| Malformed::Line)?;
    // `parse` alone would take `+80` and `080`.
    let plain =
        port.bytes().all(|byte| byte.is_ascii_digit()) && (port == "0" || !port.starts_with('0'));
    let port: u16 = port.parse().map_err(|_| Malformed::Line)?;
    match plain {
        true => Ok(peer(address.into(), port)),
        false => Err(Malformed::Line),
    }
}

/// An IPv4 address in IPv6 clothes is the IPv4 address: one client has one address in logs and limits.
fn peer(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

// ----- version 2 (section 2.2) -----

fn parse_v2(bytes: &[u8]) -> Parsed {
    if !begins_with(bytes, V2)? {
        return Ok(None);
    }
    let Some(&command) = bytes.get(V2.len()) else {
        return Ok(None);
    };
    if !matches!(command, 0x20 | 0x21) {
        return Err(Malformed::Command(command));
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED>() else {
        return Ok(None);
    };
    let [.., family, high, low] = *fixed;
    let len = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if len > MAX_HEADER {
        return Err(Malformed::TooLong { len });
    }
    let Some(mut body) = rest.get(..len - V2_FIXED) else {
        return Ok(None);
    };
    if command == 0x20 {
        // LOCAL: the rest is to be skipped.
        return Ok(Some((Header::default(), len)));
    }
    let source = match family {
        // Not told.
        0x00 => None,
        0x11 => {
            let [a, b, c, d, _, _, _, _, p, q, _, _] = take::<12>(&mut body)?;
            Some(peer(
                Ipv4Addr::new(a, b, c, d).into(),
                u16::from_be_bytes([p, q]),
            ))
        }
        0x21 => {
            let source = Ipv6Addr::from(take::<16>(&mut body)?);
            take::<16>(&mut body)?;
            let [p, q, _, _] = take::<4>(&mut body)?;
            Some(peer(source.into(), u16::from_be_bytes([p, q])))
        }
        // A Unix socket: a client on the proxy's machine.
        0x31 => {
            take::<216>(&mut body)?;
            None
        }
        other => return Err(Malformed::Family(other)),
    };
    let mut header = Header {
        source,
        ..Header::default()
    };
    extensions(&mut header, &bytes[..len], body)?;
    Ok(Some((header, len)))
}

fn take<const N: usize>(body: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (taken, rest) = body.split_first_chunk::<N>().ok_or(Malformed::Truncated)?;
    *body = rest;
    Ok(*taken)
}

/// Type and value of the next field (section 2.2.1).
fn field<'a>(body: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, Malformed> {
    if body.is_empty() {
        return Ok(None);
    }
    let [kind, high, low] = take::<3>(body)?;
    let len = usize::from(u16::from_be_bytes([high, low]));
    let (value, rest) = body.split_at_checked(len).ok_or(Malformed::Truncated)?;
    *body = rest;
    Ok(Some((kind, value)))
}

const AUTHORITY: u8 = 0x02;
const CRC32C: u8 = 0x03;
const SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_CN: u8 = 0x22;

/// The client showed a certificate, on this connection or when the TLS session began.
const CERT_CONN_OR_SESS: u8 = 0x02 | 0x04;

fn extensions(header: &mut Header, whole: &[u8], mut body: &[u8]) -> Result<(), Malformed> {
    let mut ssl = None;
    let mut checksum = None;
    while let Some((kind, value)) = field(&mut body)? {
        match kind {
            AUTHORITY => once(&mut header.server_name, kind, text(kind, value)?)?,
            SSL => once(&mut ssl, kind, value)?,
            CRC32C => {
                let stated = value.try_into().map_err(|_| Malformed::Truncated)?;
                once(&mut checksum, kind, u32::from_be_bytes(stated))?;
                // The sum is over the header with zeros in its place, which is right before `body`.
                let place = whole.len() - body.len() - 4;
                let sum = crc32c::crc32c(&whole[..place]);
                let sum = crc32c::crc32c_append(sum, &[0; 4]);
                let sum = crc32c::crc32c_append(sum, body);
                if Some(sum) != checksum {
                    return Err(Malformed::Checksum);
                }
            }
            // Others, and those to come, are the proxy's concern.
            _ => {}
        }
    }
    match ssl {
        Some(value) => client_tls(header, value),
        None => Ok(()),
    }
}

/// What the client's TLS connection to the proxy was (section 2.2.6).
fn client_tls(header: &mut Header, mut value: &[u8]) -> Result<(), Malformed> {
    let [client, verify @ ..] = take::<5>(&mut value)?;
    let mut name = None;
    while let Some((kind, value)) = field(&mut value)? {
        match kind {
            SSL_VERSION => once(&mut header.tls_version, kind, text(kind, value)?)?,
            SSL_CN => once(&mut name, kind, text(kind, value)?)?,
            _ => {}
        }
    }
    // Zero: verified. Anything else: the proxy lets clients through whose certificate is bad.
    if verify == [0; 4] && client & CERT_CONN_OR_SESS != 0 {
        header.certificate_name = name.filter(|name| !name.is_empty());
    }
    Ok(())
}

fn once<T>(place: &mut Option<T>, kind: u8, value: T) -> Result<(), Malformed> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed::Twice(kind)),
    }
}

fn text(kind: u8, value: &[u8]) -> Result<Arc<str>, Malformed> {
    match std::str::from_utf8(value) {
        Ok(text) if !text.contains(char::is_control) => Ok(text.into()),
        _ => Err(Malformed::Text(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn done(header: Header, len: usize) -> Parse {
        Parse::Done { header, len }
    }

    fn from(source: &str) -> Header {
        Header {
            source: Some(source.parse().expect("an address")),
            ..Header::default()
        }
    }

    /// A header of version 2.
    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = V2.to_vec();
        bytes.extend([command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend((value.len() as u16).to_be_bytes());
        bytes.extend(value);
        bytes
    }

    /// 192.0.2.1:4711 to 192.0.2.2:8883.
    const TCP4: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0x12, 0x67, 0x22, 0xb3];

    fn tcp4(fields: &[Vec<u8>]) -> Vec<u8> {
        v2(0x21, 0x11, &[&TCP4[..], &fields.concat()].concat())
    }

    fn ssl(client: u8, verify: u32, fields: &[Vec<u8>]) -> Vec<u8> {
        let value = [&[client][..], &verify.to_be_bytes(), &fields.concat()].concat();
        tlv(SSL, &value)
    }

    /// The same header with its checksum.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.extend(tlv(CRC32C, &[0; 4]));
        let len = (bytes.len() - V2_FIXED) as u16;
        bytes[14..16].copy_from_slice(&len.to_be_bytes());
        let sum = crc32c::crc32c(&bytes);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    #[test]
    fn version_1() {
        let rows: &[(&str, Result<Header, Malformed>)] = &[
            (
                "PROXY TCP4 192.0.2.1 192.0.2.2 4711 8883\r\n",
                Ok(from("192.0.2.1:4711")),
            ),
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
                Ok(from("255.255.255.255:65535")),
            ),
            (
                "PROXY TCP6 2001:db8::1 ::1 0 8883\r\n",
                Ok(from("[2001:db8::1]:0")),
            ),
            (
                "PROXY TCP6 ::ffff:192.0.2.1 ::1 4711 8883\r\n",
                Ok(from("192.0.2.1:4711")),
            ),
            ("PROXY UNKNOWN\r\n", Ok(Header::default())),
            ("PROXY UNKNOWN any thing\r\n", Ok(Header::default())),
            (
                "PROXY TCP4 192.0.2.1 192.0.2.2 4711 8883\n",
                Err(Malformed::Line),
            ),
            (
                "PROXY TCP4 192.0.2.1 192.0.2.2 4711\r\n",
                Err(Malformed::Line),
            ),
            (
                "PROXY TCP4 192.0.2.1 192.0.2.2 4711 8883 \r\n",
                Err(Malformed::Line),
            ),
            (
                "PROXY TCP4  192.0.2.1 192.0.2.2 4711 8883\r\n",
                Err(Malformed::Line),
            ),
            ("PROXY TCP4 ::1 ::1 4711 8883\r\n", Err(Malformed::Line)),
            (
                "PROXY TCP6 192.0.2.1 192.0.2.2 4711 8883\r\n",
                Err(Malformed::Line),
            ),
            (
                "PROXY TCP4 192.0.2.01 192.0.2.2 4711 8883\r\n",
                Err(Malformed::Line),
            ),
            (
                "PROXY TCP4 192.0.2.1 192.0.2.2 +4711 8883\r\n",
                Err(Malformed::Line),
            ),
            (
                "PROXY TCP4 192.0.2.1 192.0.2.2 04711 8883\r\n",
                Err(Malformed::Line),
            ),
            (
                "PROXY TCP4 192.0.2.1 192.0.2.2 65536 8883\r\n",
                Err(Malformed::Line),
            ),
            (
                "PROXY TCP4 192.0.2.1 192.0.2.2 4711 \r\n",
                Err(Malformed::Line),
            ),
            (
                "PROXY UDP4 192.0.2.1 192.0.2.2 4711 8883\r\n",
                Err(Malformed::Line),
            ),
            ("PROXY \r\n", Err(Malformed::Line)),
            ("PROXY\r\n", Err(Malformed::Signature)),
            ("PUT / HTTP/1.1\r\n", Err(Malformed::Signature)),
        ];
        for (line, expected) in rows {
            let expected = match expected.clone() {
                Ok(header) => done(header, line.len()),
                Err(malformed) => Parse::Malformed(malformed),
            };
            let followed = format!("{line}\x10\n");
            assert_eq!(parse(followed.as_bytes()), expected, "{line:?}");
        }
    }

    #[test]
    fn a_line_of_version_1_has_at_most_107_bytes() {
        let mut line = b"PROXY UNKNOWN ".to_vec();
        line.resize(MAX_V1 - 2, b'x');
        let longest = [&line[..], b"\r\n"].concat();
        assert_eq!(parse(&longest), done(Header::default(), MAX_V1));
        let longer = [&line[..], b"x\r\n"].concat();
        assert_eq!(parse(&longer), Parse::Malformed(Malformed::Endless));
    }

    #[test]
    fn version_2() {
        let v6: [u8; 16] = "2001:db8::1".parse::<Ipv6Addr>().expect("valid").octets();
        let mapped: [u8; 16] = "::ffff:192.0.2.1"
            .parse::<Ipv6Addr>()
            .expect("valid")
            .octets();
        let tcp6 = |source: [u8; 16]| [&source[..], &v6, &TCP4[8..]].concat();
        let named = |name: &str| Header {
            certificate_name: Some(name.into()),
            ..from("192.0.2.1:4711")
        };
        let cn = |name: &str| tlv(SSL_CN, name.as_bytes());
        let good = tcp4(&[ssl(0x07, 0, &[cn("tcu-1")])]);
        let mut changed = sealed(good.clone());
        changed[16] = 10;
        let rows = [
            ("TCP4", tcp4(&[]), Ok(from("192.0.2.1:4711"))),
            (
                "TCP6",
                v2(0x21, 0x21, &tcp6(v6)),
                Ok(from("[2001:db8::1]:4711")),
            ),
            (
                "mapped",
                v2(0x21, 0x21, &tcp6(mapped)),
                Ok(from("192.0.2.1:4711")),
            ),
            ("LOCAL", v2(0x20, 0x00, b""), Ok(Header::default())),
            (
                "LOCAL whatever it says",
                v2(
                    0x20,
                    0x11,
                    &[&TCP4[..], &ssl(7, 0, &[cn("tcu-1")])].concat(),
                ),
                Ok(Header::default()),
            ),
            ("UNSPEC", v2(0x21, 0x00, b""), Ok(Header::default())),
            (
                "a Unix socket",
                v2(0x21, 0x31, &[0; 216]),
                Ok(Header::default()),
            ),
            ("a verified name", good.clone(), Ok(named("tcu-1"))),
            (
                "of a resumed session",
                tcp4(&[ssl(0x05, 0, &[cn("tcu-1")])]),
                Ok(named("tcu-1")),
            ),
            (
                "a name that was not verified",
                tcp4(&[ssl(0x07, 1, &[cn("tcu-1")])]),
                Ok(from("192.0.2.1:4711")),
            ),
            (
                "a name without a certificate",
                tcp4(&[ssl(0x01, 0, &[cn("tcu-1")])]),
                Ok(from("192.0.2.1:4711")),
            ),
            (
                "an empty name",
                tcp4(&[ssl(0x07, 0, &[cn("")])]),
                Ok(from("192.0.2.1:4711")),
            ),
            (
                "all we look at, and more",
                sealed(tcp4(&[
                    tlv(0x04, &[0; 9]),
                    tlv(AUTHORITY, b"mqtt.example"),
                    ssl(
                        0x07,
                        0,
                        &[tlv(SSL_VERSION, b"TLSv1.3"), cn("tcu-1"), tlv(0x23, b"x")],
                    ),
                    tlv(0xee, b"own"),
                ])),
                Ok(Header {
                    server_name: Some("mqtt.example".into()),
                    tls_version: Some("TLSv1.3".into()),
                    ..named("tcu-1")
                }),
            ),
            ("a sum that does not fit", changed, Err(Malformed::Checksum)),
            (
                "a sum in the middle",
                tcp4(&[tlv(CRC32C, &[1; 4]), tlv(4, b"")]),
                Err(Malformed::Checksum),
            ),
            (
                "a short sum",
                tcp4(&[tlv(CRC32C, &[0; 3])]),
                Err(Malformed::Truncated),
            ),
            (
                "version 1 in binary",
                v2(0x11, 0x11, &TCP4),
                Err(Malformed::Command(0x11)),
            ),
            (
                "a new command",
                v2(0x22, 0x11, &TCP4),
                Err(Malformed::Command(0x22)),
            ),
            (
                "datagrams",
                v2(0x21, 0x12, &TCP4),
                Err(Malformed::Family(0x12)),
            ),
            (
                "a new family",
                v2(0x21, 0x41, &TCP4),
                Err(Malformed::Family(0x41)),
            ),
            (
                "short addresses",
                v2(0x21, 0x11, &TCP4[..11]),
                Err(Malformed::Truncated),
            ),
            (
                "short v6",
                v2(0x21, 0x21, &tcp6(v6)[..35]),
                Err(Malformed::Truncated),
            ),
            (
                "half a field",
                tcp4(&[vec![4, 0]]),
                Err(Malformed::Truncated),
            ),
            (
                "a field beyond the end",
                tcp4(&[vec![4, 0, 2, 0]]),
                Err(Malformed::Truncated),
            ),
            (
                "a short SSL field",
                tcp4(&[tlv(SSL, &[7, 0, 0, 0])]),
                Err(Malformed::Truncated),
            ),
            (
                "a name beyond the SSL field",
                tcp4(&[ssl(7, 0, &[vec![SSL_CN, 0, 9, b'x']]), tlv(4, &[0; 9])]),
                Err(Malformed::Truncated),
            ),
            (
                "two names",
                tcp4(&[ssl(7, 0, &[cn("tcu-1"), cn("tcu-2")])]),
                Err(Malformed::Twice(SSL_CN)),
            ),
            (
                "two SSL fields",
                tcp4(&[ssl(7, 0, &[cn("tcu-1")]), ssl(7, 0, &[])]),
                Err(Malformed::Twice(SSL)),
            ),
            (
                "a name that is not text",
                tcp4(&[ssl(7, 0, &[tlv(SSL_CN, b"\xff")])]),
                Err(Malformed::Text(SSL_CN)),
            ),
            (
                "a name of two lines",
                tcp4(&[ssl(7, 0, &[cn("tcu-1\n")])]),
                Err(Malformed::Text(SSL_CN)),
            ),
        ];
        for (what, bytes, expected) in rows {
            let expected = match expected {
                Ok(header) => done(header, bytes.len()),
                Err(malformed) => Parse::Malformed(malformed),
            };
            let followed = [&bytes[..], b"\x10\x0d"].concat();
            assert_eq!(parse(&followed), expected, "{what}");
        }
    }

    #[test]
    fn version_2_is_as_long_as_it_says_up_to_a_bound() {
        let room = MAX_HEADER - V2_FIXED - TCP4.len() - 3;
        let longest = tcp4(&[tlv(4, &vec![0; room])]);
        assert_eq!(parse(&longest), done(from("192.0.2.1:4711"), MAX_HEADER));
        let longer = tcp4(&[tlv(4, &vec![0; room + 1])]);
        let refused = Parse::Malformed(Malformed::TooLong { len: 2049 });
        assert_eq!(parse(&longer), refused);
        assert_eq!(parse(&longer[..16]), refused, "before it has all come");
    }

    #[test]
    fn what_is_no_header_is_known_by_its_first_wrong_byte() {
        let rows: [&[u8]; 6] = [
            b"\x10",
            b"\x16\x03\x01",
            b"GET ",
            b"PX",
            b"\r\n\r\n\r",
            b"\0",
        ];
        for bytes in rows {
            assert_eq!(
                parse(bytes),
                Parse::Malformed(Malformed::Signature),
                "{bytes:?}"
            );
        }
    }

    proptest! {
        /// However it is cut, a header is incomplete until it is there, then it is the same whatever
        /// follows.
        #[test]
        fn a_header_is_the_same_however_it_comes(cut: prop::sample::Index, tail: Vec<u8>) {
            let headers = [
                b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 8883\r\n".to_vec(),
                sealed(tcp4(&[ssl(7, 0, &[tlv(SSL_CN, b"tcu-1")])])),
            ];
            for header in headers {
                let whole = parse(&header);
                let ends = matches!(whole, Parse::Done { len, .. } if len == header.len());
                prop_assert!(ends);
                prop_assert_eq!(parse(&header[..cut.index(header.len())]), Parse::Incomplete);
                prop_assert_eq!(parse(&[&header[..], &tail].concat()), whole);
            }
        }

        /// Whatever comes: no panic, no header beyond its bytes, no waiting without a bound.
        #[test]
        fn any_bytes(start in 0..3usize, bytes in prop::collection::vec(any::<u8>(), 0..2200)) {
            let start: &[u8] = [&b""[..], V1, V2][start];
            let bytes = [start, &bytes].concat();
            match parse(&bytes) {
                Parse::Incomplete => prop_assert!(bytes.len() < MAX_HEADER),
                Parse::Done { len, .. } => prop_assert!(len <= bytes.len().min(MAX_HEADER)),
                Parse::Malformed(_) => {}
            }
        }
    }
}
