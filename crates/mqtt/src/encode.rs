//! One packet to bytes: the exact inverse of [`Decoder`](crate::Decoder).
//!
//! Sizes are computed first. That is where everything that cannot be said is refused, so that writing
//! cannot fail and memory is reserved once.

use bytes::{BufMut, BytesMut};

use crate::{
    error::EncodeError,
    packet::{Packet, PacketType},
    varint,
    version::Version,
};

/// Appends `packet` to `out`.
///
/// 3.1.1 has no properties and few reason codes. Properties, and codes that say something went well, are
/// left out there; SUBACK failures become 0x80; UNSUBACK codes are left out; CONNACK says
/// [`connect_return_code`](crate::ReasonCode::connect_return_code). Any other failure cannot be said: an
/// acknowledgement without it would be a lie.
///
/// # Errors
/// [`EncodeError`] when the packet cannot be said in `version`; `out` is then as it was before. Not
/// checked is what depends on the side that sends.
pub fn encode(packet: &Packet, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
    let remaining = remaining_length(packet, version)?;
    let end = out.len() + 1 + varint::len(remaining) + remaining as usize;
    out.reserve(end - out.len());
    put_fixed_header(packet.packet_type(), packet.flags(), remaining, out);
    packet.write(version, out);
    debug_assert_eq!(out.len(), end, "{packet:?}");
    Ok(())
}

/// Bytes [`encode`] will append, to be held against the receiver's maximum packet size.
///
/// # Errors
/// As [`encode`].
pub fn encoded_len(packet: &Packet, version: Version) -> Result<usize, EncodeError> {
    let remaining = remaining_length(packet, version)?;
    Ok(1 + varint::len(remaining) + remaining as usize)
}

fn remaining_length(packet: &Packet, version: Version) -> Result<u32, EncodeError> {
    check_remaining_length(packet.packet_type(), packet.size(version)?)
}

pub(crate) fn check_remaining_length(packet: PacketType, len: usize) -> Result<u32, EncodeError> {
    match u32::try_from(len) {
        Ok(remaining) if remaining <= varint::MAX => Ok(remaining),
        _ => Err(EncodeError::PacketTooLarge { packet, len }),
    }
}

pub(crate) fn put_fixed_header(packet: PacketType, flags: u8, remaining: u32, out: &mut BytesMut) {
    out.put_u8((packet as u8) << 4 | flags);
    varint::write(remaining, out);
}
