//! Stamp: the first bytes of a payload: who sent it, as which of its messages, and when.

/// The first 16 bytes of a payload, and so the smallest payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Number of the publisher, from 0.
    pub(super) publisher: u32,
    /// Number among the publisher's messages, from 0.
    pub(super) number: u32,
    /// When it was sent, or was to be sent at a fixed rate; nanoseconds since the run began.
    pub(super) at_ns: u64,
}

impl Stamp {
    /// Bytes it takes.
    pub(super) const SIZE: usize = 16;

    /// Into the front of a payload of at least [`Stamp::SIZE`] bytes.
    pub(super) fn write(self, payload: &mut [u8]) {
        payload[..4].copy_from_slice(&self.publisher.to_be_bytes());
        payload[4..8].copy_from_slice(&self.number.to_be_bytes());
        payload[8..16].copy_from_slice(&self.at_ns.to_be_bytes());
    }

    /// From the front of a payload, if it is long enough to have one.
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        let (publisher, rest) = payload.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (at_ns, _) = rest.split_first_chunk()?;
        Some(Self {
            publisher: u32::from_be_bytes(*publisher),
            number: u32::from_be_bytes(*number),
            at_ns: u64::from_be_bytes(*at_ns),
        })
    }
}
