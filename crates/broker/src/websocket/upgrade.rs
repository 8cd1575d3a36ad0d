//! The request that turns an HTTP connection into a WebSocket (RFC 6455 section 4.2), and its answer.
//!
//! The `Origin` of a page is not looked at. It keeps one site's page from using another's cookies, and
//! nothing here goes by cookies: who a client is, MQTT's CONNECT says, and TLS before it.

use std::fmt;

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Longest head of a request, in bytes: what common web servers take.
pub const MAX_HEAD: usize = 8 * 1024;

/// Most header fields of a request.
pub const MAX_HEADERS: usize = 64;

/// What the key is hashed with (section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Sub-protocols we speak, the preferred first. The second is what clients of MQTT 3.1.1's early days
/// ask for.
const PROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

const NOT_HTTP: Refusal = Refusal::Bad("this is not a request of HTTP/1.1");

/// What a connection's first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// More must come.
    Incomplete,
    /// A client that is to be let in.
    Upgrade {
        /// Length of the head in bytes: frames follow.
        len: usize,
        /// The answer.
        upgrade: Upgrade,
    },
    /// A request for our path that we do not grant.
    Refused(Refusal),
    /// Something else. What to answer if there is nobody else to take it.
    Elsewhere(Refusal),
}

/// What is agreed with a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    accept: String,
    protocol: &'static str,
}

impl Upgrade {
    /// The sub-protocol.
    pub fn protocol(&self) -> &'static str {
        self.protocol
    }

    /// The answer, head and all.
    pub fn response(&self) -> String {
        let Upgrade { accept, protocol } = self;
        format!(
            "HTTP/1.1 101 Switching Protocols\r\n\
             Upgrade: websocket\r\n\
             Connection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        )
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 400, for this reason.
    Bad(&'static str),
    /// 404: another path.
    NotFound,
    /// 405: an upgrade begins with GET.
    Method,
    /// 426: no upgrade is asked for.
    NoUpgrade,
    /// 426: not version 13.
    Version,
    /// 431: longer than [`MAX_HEAD`], or more fields than [`MAX_HEADERS`].
    TooLarge,
}

impl Refusal {
    /// Status code and reason phrase.
    pub fn status(self) -> &'static str {
        match self {
            Refusal::Bad(_) => "400 Bad Request",
            Refusal::NotFound => "404 Not Found",
            Refusal::Method => "405 Method Not Allowed",
            Refusal::NoUpgrade | Refusal::Version => "426 Upgrade Required",
            Refusal::TooLarge => "431 Request Header Fields Too Large",
        }
    }

    /// The answer, head and all. The connection is closed after it.
    pub fn response(self) -> String {
        let status = self.status();
        let fields = match self {
            Refusal::Method => "Allow: GET\r\n",
            Refusal::NoUpgrade => "Upgrade: websocket\r\n",
            Refusal::Version => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            Refusal::Bad(_) | Refusal::NotFound | Refusal::TooLarge => "",
        };
        let connection = match self {
            Refusal::NoUpgrade | Refusal::Version => "Upgrade, close",
            _ => "close",
        };
        let body = format!("{self}\n");
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\n\
             {fields}\
             Connection: {connection}\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\n\r\n\
             {body}"
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Bad(why) => f.write_str(why),
            Refusal::NotFound => f.write_str("nothing is served at this path"),
            Refusal::Method => f.write_str("a WebSocket begins with GET"),
            Refusal::NoUpgrade => {
                f.write_str("MQTT over WebSocket is served here, and nothing else")
            }
            Refusal::Version => f.write_str("only version 13 of WebSocket is spoken"),
            Refusal::TooLarge => write!(
                f,
                "the request's head is longer than {MAX_HEAD} bytes or has more than {MAX_HEADERS} fields"
            ),
        }
    }
}

/// Whether a request can begin like this. MQTT and TLS do not.
pub fn may_begin(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(u8::is_ascii_uppercase)
}

/// Looks at what came so far. `path` is where MQTT is served; a query behind it is ignored.
pub fn read(bytes: &[u8], path: &str) -> Head {
    if !may_begin(bytes) {
        return Head::Elsewhere(NOT_HTTP);
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Head::Incomplete,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return Head::Elsewhere(Refusal::TooLarge);
        }
        Err(_) => return Head::Elsewhere(NOT_HTTP),
    };
    let target = request.path.unwrap_or_default();
    let target = target.split_once('?').map_or(target, |(path, _)| path);
    if target != path {
        return Head::Elsewhere(Refusal::NotFound);
    }
    let fields = Fields(request.headers);
    if !fields.lists("Upgrade", "websocket") {
        return Head::Elsewhere(match request.method {
            Some("GET") => Refusal::NoUpgrade,
            _ => Refusal::Method,
        });
    }
    if request.method != Some("GET") {
        return Head::Refused(Refusal::Method);
    }
    match check(&fields, request.version) {
        Ok(upgrade) => Head::Upgrade { len, upgrade },
        Err(refusal) => Head::Refused(refusal),
    }
}

/// Section 4.2.1, and MQTT 5 section 6.
fn check(fields: &Fields<'_>, version: Option<u8>) -> Result<Upgrade, Refusal> {
    if version != Some(1) {
        return Err(Refusal::Bad("a WebSocket begins with HTTP/1.1"));
    }
    if fields.only("Host").is_none() {
        return Err(Refusal::Bad("one Host field is required"));
    }
    if !fields.lists("Connection", "upgrade") {
        return Err(Refusal::Bad("the Connection field must list `Upgrade`"));
    }
    // Bytes of a body would be taken for frames.
    let no_body = fields.all("Content-Length").all(|length| length == b"0");
    if !no_body || fields.all("Transfer-Encoding").next().is_some() {
        return Err(Refusal::Bad("a request for a WebSocket has no body"));
    }
    if fields.only("Sec-WebSocket-Version") != Some(b"13") {
        return Err(Refusal::Version);
    }
    let key = fields.only("Sec-WebSocket-Key");
    let key = key.filter(|key| BASE64_STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
    let Some(key) = key else {
        return Err(Refusal::Bad(
            "one Sec-WebSocket-Key of 16 bytes in base64 is required",
        ));
    };
    let protocol = PROTOCOLS
        .into_iter()
        .find(|protocol| fields.offers(protocol))
        .ok_or(Refusal::Bad(
            "the sub-protocol `mqtt` is required in Sec-WebSocket-Protocol",
        ))?;
    Ok(Upgrade {
        accept: accept(key),
        protocol,
    })
}

/// Proves that the request was read (section 4.2.2). SHA-1 is what the protocol says; nothing secret
/// hangs on it.
fn accept(key: &[u8]) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    BASE64_STANDARD.encode(hash.finish())
}

struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    /// The values of all fields of this name.
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let named = self
            .0
            .iter()
            .filter(move |f| f.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii())
    }

    /// The value of the only field of this name.
    fn only(&self, name: &str) -> Option<&'a [u8]> {
        let mut all = self.all(name);
        let value = all.next()?;
        all.next().is_none().then_some(value)
    }

    /// Whether a list of tokens has this one, in any case.
    fn lists(&self, name: &str, token: &str) -> bool {
        self.members(name)
            .any(|member| member.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Whether this sub-protocol is among those the client speaks. Their names have a case.
    fn offers(&self, protocol: &str) -> bool {
        self.members("Sec-WebSocket-Protocol")
            .any(|member| member == protocol.as_bytes())
    }

    fn members(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let lists = self
            .all(name)
            .flat_map(|list| list.split(|byte| *byte == b','));
        lists.map(<[u8]>::trim_ascii)
    }
}
