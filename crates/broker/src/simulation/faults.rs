//! Defects that can be switched on in the machine, to show that the simulation finds them.
//!
//! Each variant is one mistake a broker could make, and has been made by some. The machine asks
//! `exchange.faults` at the one place each concerns; outside of tests and of the feature `simulation`
//! neither the question nor the switch exists.

use std::fmt;
use std::str::FromStr;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// One planted defect.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fault {
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            /// Every fault.
            pub const ALL: &[Fault] = &[$(Fault::$name,)*];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Fault::$name => $text,)*
                }
            }
        }
    };
}

faults! {
    /// PUBACK does not wait until its batch is durable.
    PubAckBeforeDurable = "puback-before-durable",
    /// PUBREC does not wait until its batch is durable.
    PubRecBeforeDurable = "pubrec-before-durable",
    /// The packet identifier of a QoS 2 PUBLISH that came in is remembered, but not stored.
    InboundIdNotStored = "inbound-id-not-stored",
    /// The inbound QoS 2 packet identifiers are forgotten when the client connects again.
    InboundIdsForgottenAtReconnect = "inbound-ids-forgotten-at-reconnect",
    /// PUBREL is sent before the step to it is durable.
    PubRelBeforeDurable = "pubrel-before-durable",
    /// What was in flight is sent under new packet identifiers when the client connects again.
    FlightsRenumberedAtReconnect = "flights-renumbered-at-reconnect",
    /// DUP is not set when a PUBLISH is sent again.
    DupForgotten = "dup-forgotten",
    /// The window of a resumed session stays that of the connection before.
    WindowOfFormerConnection = "window-of-former-connection",
    /// Packet identifiers of resumed flights are taken for free.
    FlightIdsReused = "flight-ids-reused",
    /// Queues have no bound.
    QueueUnbounded = "queue-unbounded",
    /// A will is published although its session was resumed in time.
    WillDespiteResumption = "will-despite-resumption",
    /// A will without delay is not published when its session is taken over.
    NoWillAtTakeover = "no-will-at-takeover",
    /// A session whose time is over stays.
    ExpiredSessionKept = "expired-session-kept",
    /// SUBACK is sent, and the index hears of the filter only with the next packet of the connection.
    SubAckBeforeIndex = "suback-before-index",
    /// A shared subscription gives messages to members that are away.
    SharedToAway = "shared-to-away",
    /// An empty retained message deletes in memory, not in the store.
    RetainedDeletionNotStored = "retained-deletion-not-stored",
    /// A new connection is served before the one it takes over from is closed.
    TwoConnectionsServed = "two-connections-served",
    /// The record of a delivery stays after PUBACK.
    DeliveryKeptAfterPubAck = "delivery-kept-after-puback",
    /// A message that expires is dropped also after its PUBREC: no PUBREL follows.
    ExpiryCutsExchange = "expiry-cuts-exchange",
    /// What a full queue drops is not counted.
    OverflowUncounted = "overflow-uncounted",
    /// What waited is not checked against access again when it is sent.
    QueuedAccessUnchecked = "queued-access-unchecked",
    /// The message expiry interval is sent on as it came.
    ExpiryNotCountedDown = "expiry-not-counted-down",
    /// A delivery record is stored in a batch of its own, after the batch of its message.
    DeliveryInLaterBatch = "delivery-in-later-batch",
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No fault has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no fault is called `{0}`; `--fault list` names them all")]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(name: &str) -> Result<Fault, UnknownFault> {
        Fault::ALL
            .iter()
            .copied()
            .find(|fault| fault.name() == name)
            .ok_or_else(|| UnknownFault(name.to_owned()))
    }
}
