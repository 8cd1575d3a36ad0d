//! Unfinished: packets of nearly a mebibyte are announced on many connections and never finished. A
//! third stops after the announcement, the others after a quarter of it: that has to be kept somewhere.

use bytes::{BufMut, BytesMut};

use super::prelude::*;

/// At the same time.
pub(in crate::weather) const CLIENTS: usize = 2_000;
/// Below the usual limit of a packet.
const ANNOUNCED: usize = 1_000_000;
const SENT: usize = 256 * 1024;
/// Before a client that was closed comes again.
const PAUSE: Duration = Duration::from_secs(1);

/// The first bytes of a PUBLISH that goes on for ever.
pub(super) struct Beginning {
    bytes: BytesMut,
    announced: usize,
}

impl Beginning {
    /// Says how much will come, and the topic.
    fn announced(&self) -> &[u8] {
        &self.bytes[..self.announced]
    }

    /// The same, and a quarter of it.
    pub(super) fn with_a_quarter(&self) -> &[u8] {
        &self.bytes
    }
}

pub(super) fn beginning() -> Beginning {
    let mut bytes = BytesMut::new();
    // PUBLISH, QoS 0, and a remaining length of three bytes.
    bytes.put_u8(0x30);
    bytes.put_slice(&[
        (ANNOUNCED & 0x7f) as u8 | 0x80,
        (ANNOUNCED >> 7 & 0x7f) as u8 | 0x80,
        (ANNOUNCED >> 14) as u8,
    ]);
    bytes.put_slice(&[0, 1, b'u', 0]);
    let announced = bytes.len();
    bytes.put_bytes(b'x', SENT);
    Beginning { bytes, announced }
}

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    let beginning = beginning();
    scene.prepared().await;
    let count = scene.share(CLIENTS);
    let beginning = &beginning;
    let begun = crowd(count, |number| async move {
        let bytes = match number % 3 {
            0 => beginning.announced(),
            _ => beginning.with_a_quarter(),
        };
        let mut begun = 0;
        while !scene.is_over() {
            let visit = async {
                let tcp = scene.plain(Receives::Usual).await?;
                let mut visitor = Visitor::arrive(tcp, &format!("unfinished-{number}")).await?;
                visitor.spit(bytes);
                begun += 1;
                visitor.flush().await?;
                Err::<(), _>(visitor.linger().await)
            };
            if let Some(Err(turned)) = scene.while_it_lasts(visit).await {
                scene.tally.count(turned);
                sleep(PAUSE).await;
            }
        }
        begun
    })
    .await;
    Ok(format!(
        "{begun} packets begun on at most {count} connections"
    ))
}
