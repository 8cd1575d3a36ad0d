//! The server's side of WebSocket (RFC 6455), as far as MQTT needs it: bytes in, bytes out, no IO.
//!
//! A client asks for an upgrade by HTTP ([`upgrade`]); after that both sides send frames ([`frame`]).
//! The stream that does the IO is in `shell/websocket.rs`.
//!
//! Our own, because a broker holds hundreds of thousands of connections that are idle: libraries keep
//! a read buffer for each (tokio-websockets 8 KiB, tungstenite 128 KiB by default), this keeps none. MQTT
//! does not care where frames begin and end (MQTT 5 section 6), so payload is unmasked where the
//! reader put it and handed on as it comes, never gathered into messages. For the same reason
//! there are no extensions: compression would need a window for each connection.

pub mod frame;
pub mod upgrade;

#[cfg(test)]
mod frame_stories;
#[cfg(test)]
mod upgrade_rows;
