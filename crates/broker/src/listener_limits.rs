//! Bounds of one listener, beside those of the whole broker in [`Limits`](crate::Limits).

use crate::admission::rate::Rate;

/// Bounds of one listener: so that the cars on one port leave room for the services on another. By
/// default there are none, and only the broker's own hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Sockets of this listener, connected clients or not. The next one is closed before its
    /// handshake, and counted as `listener_full`.
    pub max_connections: Option<usize>,
    /// New sockets. One that is too many is closed before its handshake, and counted as
    /// `listener_connect_rate`.
    pub connect_rate: Option<Rate>,
    /// TLS handshakes of this listener at once, the ones waiting for their turn
    /// ([`max_handshakes`](crate::Limits::max_handshakes)) included. The next one is closed, and counted
    /// as `handshakes`.
    pub max_handshakes: Option<usize>,
    /// PUBLISH packets of all clients of this listener together. While it is exceeded they are not read
    /// from (TCP slows them down) and nothing is lost.
    pub messages_in: Option<Rate>,
    /// Bytes of all clients of this listener together, above TLS; the same rule.
    pub bytes_in: Option<Rate>,
}
