//! Storm: which ones there are, and how one is run.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::LocalSet;

use super::scene::Scene;
use super::storms;
use super::visitor::Turned;

macro_rules! storms {
    ($($(#[$doc:meta])* $variant:ident, $name:literal;)*) => {
        /// A kind of bad weather.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Storm {
            $($(#[$doc])* $variant,)*
        }

        impl Storm {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

storms! {
    /// Subscribers that never read, while 1,000 messages a second go to each.
    SlowReaders, "slow-readers";
    /// Four clients publish at QoS 0 as fast as they can.
    FloodQos0, "flood-qos0";
    /// The same at QoS 1.
    FloodQos1, "flood-qos1";
    /// Sockets that never say CONNECT.
    HalfOpen, "half-open";
    /// TLS handshakes that stop in the middle.
    HalfHandshake, "half-handshake";
    /// Clients that send a byte per second.
    Trickle, "trickle";
    /// Topics and filters of 64k levels.
    DeepTopics, "deep-topics";
    /// A hundred thousand distinct subscriptions on one client, again and again.
    ManySubscriptions, "many-subscriptions";
    /// All clients connect again at once, over TCP.
    ReconnectTcp, "reconnect-tcp";
    /// The same with certificates.
    ReconnectMtls, "reconnect-mtls";
    /// Wildcard subscriptions over half a million retained messages.
    Retained, "retained";
    /// Clients that connect and leave as fast as they can.
    Flapping, "flapping";
    /// TLS clients without a certificate, or with a stranger's.
    BadCredentials, "bad-credentials";
    /// Bytes that are no MQTT.
    Malformed, "malformed";
    /// Huge packets that are announced and never finished.
    Unfinished, "unfinished";
    /// Everything that is kept for clients is filled at once, by somebody else's doing up to small limits.
    MemoryLimit, "memory-limit";
    /// The disk fills up, by somebody else's doing, and publishers want to be kept.
    DiskFull, "disk-full";
    /// More connections than the server may have files.
    FilesExhausted, "files-exhausted";
    /// The clock jumps, by somebody else's doing, while clients with keep-alive stay.
    ClockJump, "clock-jump";
}

impl Storm {
    /// Whether it goes to the TLS listener.
    pub fn needs_tls(self) -> bool {
        matches!(
            self,
            Self::HalfHandshake | Self::ReconnectMtls | Self::BadCredentials | Self::MemoryLimit
        )
    }

    /// Devices with certificates it wants, at full scale.
    pub fn devices(self) -> usize {
        match self {
            Self::ReconnectMtls => storms::reconnect::DEVICES,
            Self::HalfHandshake | Self::BadCredentials => 1,
            _ => 0,
        }
    }

    /// Sockets it opens at the same time.
    pub(super) fn sockets(self, scale: f64) -> usize {
        let full = match self {
            Self::HalfOpen => storms::half_open::SOCKETS,
            Self::FilesExhausted => storms::files_exhausted::SOCKETS,
            Self::Unfinished => storms::unfinished::CLIENTS,
            Self::ReconnectTcp => storms::reconnect::CLIENTS,
            _ => 2_000,
        };
        (full as f64 * scale).ceil() as usize
    }
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text is no storm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no storm; there are {}", names())]
pub struct UnknownStorm {
    text: String,
}

fn names() -> String {
    let names: Vec<_> = Storm::ALL.iter().map(|storm| storm.name()).collect();
    names.join(", ")
}

impl FromStr for Storm {
    type Err = UnknownStorm;

    fn from_str(text: &str) -> Result<Self, UnknownStorm> {
        let mut all = Self::ALL.iter();
        let found = all.find(|storm| storm.name() == text);
        found.copied().ok_or_else(|| UnknownStorm {
            text: text.to_owned(),
        })
    }
}

/// Why a storm did not happen.
#[derive(Debug, thiserror::Error)]
pub enum StormError {
    /// No runtime or socket.
    #[error("the system gives it no runtime or socket")]
    Io(#[from] std::io::Error),
    /// It takes too long to prepare.
    #[error("it was not ready within {} s", .after.as_secs())]
    NotReady {
        /// How long was waited.
        after: Duration,
    },
    /// The server does not let it prepare.
    #[error("the server did not let it prepare: {answer}")]
    Unwelcome {
        /// What the server said.
        answer: String,
    },
    /// Certificates or TLS settings that cannot be used.
    #[error("its TLS settings cannot be used")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It panicked.
    #[error("it broke down; its thread has said why")]
    Panicked,
}

impl From<Turned> for StormError {
    fn from(turned: Turned) -> Self {
        Self::Unwelcome {
            answer: turned.to_string(),
        }
    }
}

/// Runs it, on a thread of its own, until its time is over. Returns what it did, in words.
pub(super) fn blow(storm: Storm, scene: Arc<Scene>) -> Result<String, StormError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let blow = async {
        match storm {
            Storm::SlowReaders => storms::slow_readers::blow(&scene).await,
            Storm::FloodQos0 => storms::flood::blow(&scene, mqtt::QoS::AtMostOnce).await,
            Storm::FloodQos1 => storms::flood::blow(&scene, mqtt::QoS::AtLeastOnce).await,
            Storm::HalfOpen => storms::half_open::blow(&scene).await,
            Storm::HalfHandshake => storms::half_handshake::blow(&scene).await,
            Storm::Trickle => storms::trickle::blow(&scene).await,
            Storm::DeepTopics => storms::deep_topics::blow(&scene).await,
            Storm::ManySubscriptions => storms::many_subscriptions::blow(&scene).await,
            Storm::ReconnectTcp => storms::reconnect::blow_tcp(&scene).await,
            Storm::ReconnectMtls => storms::reconnect::blow_mtls(&scene).await,
            Storm::Retained => storms::retained::blow(&scene).await,
            Storm::Flapping => storms::flapping::blow(&scene).await,
            Storm::BadCredentials => storms::bad_credentials::blow(&scene).await,
            Storm::Malformed => storms::malformed::blow(&scene).await,
            Storm::Unfinished => storms::unfinished::blow(&scene).await,
            Storm::MemoryLimit => storms::memory_limit::blow(&scene).await,
            Storm::DiskFull => storms::disk_full::blow(&scene).await,
            Storm::FilesExhausted => storms::files_exhausted::blow(&scene).await,
            Storm::ClockJump => storms::clock_jump::blow(&scene).await,
        }
    };
    LocalSet::new().block_on(&runtime, Box::pin(blow))
}
