//! Quality of service: how often a message may arrive.

/// Quality of service of a message or a subscription (section 4.3). Ordered: the quality of a
/// delivery is the `min` of what was published and what was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum QoS {
    /// 0: may be lost.
    #[default]
    AtMostOnce = 0,
    /// 1: may come twice.
    AtLeastOnce = 1,
    /// 2: comes once.
    ExactlyOnce = 2,
}

impl QoS {
    /// The two bits on the wire.
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// From the two bits on the wire; 3 is no quality of service.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}
