//! What the tests of this crate share.
#![allow(dead_code)] // each test binary uses a part

use mqtt::{BytesMut, Decoder, Version};

pub mod oracle;
pub mod packets;

/// Where on a connection bytes arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// A server, before CONNECT.
    ServerStart,
    /// A server, after CONNECT.
    Server(Version),
    /// A client, before CONNACK.
    ClientStart(Version),
    /// A client, after CONNACK.
    Client(Version),
}

impl At {
    pub fn decoder(self, max_packet_size: u32) -> Decoder {
        let (mut decoder, opening) = match self {
            Self::ServerStart => (Decoder::for_server(max_packet_size), ""),
            Self::Server(Version::V311) => (
                Decoder::for_server(max_packet_size),
                "10 0C 0004 'MQTT' 04 02 0000 0000",
            ),
            Self::Server(Version::V5) => (
                Decoder::for_server(max_packet_size),
                "10 0D 0004 'MQTT' 05 02 0000 00 0000",
            ),
            Self::ClientStart(version) => (Decoder::for_client(version, max_packet_size), ""),
            Self::Client(Version::V311) => (
                Decoder::for_client(Version::V311, max_packet_size),
                "20 02 00 00",
            ),
            Self::Client(Version::V5) => (
                Decoder::for_client(Version::V5, max_packet_size),
                "20 03 00 00 00",
            ),
        };
        let mut bytes = BytesMut::from(&wire(opening)[..]);
        while decoder
            .decode(&mut bytes)
            .expect("the opening is well-formed")
            .is_some()
        {}
        assert!(bytes.is_empty());
        decoder
    }
}

/// Bytes as a person writes them: hexadecimal digits, and text between `'`. Spaces mean nothing.
pub fn wire(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, part) in text.split('\'').enumerate() {
        if i % 2 == 1 {
            bytes.extend_from_slice(part.as_bytes());
            continue;
        }
        let digits: Vec<u32> = part
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| {
                c.to_digit(16)
                    .unwrap_or_else(|| panic!("{c:?} in {text:?}"))
            })
            .collect();
        assert!(digits.len().is_multiple_of(2), "half a byte in {text:?}");
        bytes.extend(digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8));
    }
    bytes
}
