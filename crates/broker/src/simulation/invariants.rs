//! What must be true of every run, each said once.
//!
//! The judge (`judge/`) looks at what passes the broker's edge and at what the clients' applications
//! get, and names one of these when it is broken.

use std::fmt;

macro_rules! invariants {
    ($($name:ident = $text:literal: $sentence:literal,)*) => {
        /// A promise of the broker.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Invariant {
            $(#[doc = $sentence] $name,)*
        }

        impl Invariant {
            /// Every invariant.
            pub const ALL: &[Invariant] = &[$(Invariant::$name,)*];

            /// Its name, as printed.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Invariant::$name => $text,)*
                }
            }

            /// What it says.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Invariant::$name => $sentence,)*
                }
            }
        }
    };
}

invariants! {
    NothingAcknowledgedIsLost = "nothing acknowledged is lost":
        "A message that got PUBACK or PUBREC with success reaches every session whose subscription had its SUBACK before the PUBLISH, unless it expired, access went, a stated overflow rule dropped it, or the session or subscription ended.",
    AcknowledgedIsTapped = "acknowledged is tapped":
        "A message the tap took gets PUBACK or PUBREC with success only once the tap has said that its copy is durable.",
    ExactlyOnce = "QoS 2 exactly once":
        "A message of QoS 2 reaches the application of a QoS 2 subscriber once per session, whatever breaks.",
    NoCopyWithoutCause = "no copy without cause":
        "A session is sent as many copies of a message as it was published and subscribed for; none twice at QoS 0.",
    NothingInvented = "nothing invented":
        "What is delivered was published, with this topic, payload and properties, and a subscription of the receiver matches it.",
    OrderKept = "order kept":
        "Messages of one publisher, topic and QoS first reach a subscriber in the order they were published.",
    OneConnectionPerClient = "one connection per client":
        "When CONNACK says success, no other connection with that client identifier is served.",
    ReceiveMaximumHeld = "receive maximum held":
        "Messages in flight to a connection are never more than its Receive Maximum.",
    PacketIdOnce = "one exchange per packet id":
        "A packet identifier names one message until its exchange is complete, also over connections.",
    AliasResolvable = "alias resolvable":
        "A topic alias is within what the client takes, and stands for the topic it was last sent with.",
    PacketSizeHeld = "packet size held":
        "No packet is larger than the client's Maximum Packet Size.",
    QueueBoundsHeld = "queue bounds held":
        "No queue holds more messages or bytes than its limit, and what the gauges say adds up.",
    AccessHeld = "no delivery without access":
        "Nothing is sent to a client that may not have it: after access_changed nothing at all, and what waited is asked for at delivery.",
    SessionPresentTrue = "session present is true":
        "CONNACK says session present exactly if the session of this client exists, is not expired and was not to be discarded.",
    WillWhenDue = "will when due":
        "A will is published once the connection ended without DISCONNECT 0x00 and its delay, or the session, is over.",
    WillOnlyWhenDue = "will only when due":
        "A will is published once, not after DISCONNECT 0x00, not before its delay is over, not after the session was resumed in time.",
    RetainedIsLatest = "retained is the latest":
        "What a new subscription brings is the retained message acknowledged last, or one published after it.",
    RetainedIsSent = "retained is sent":
        "A new subscription brings the retained message of every topic it matches, as its retain handling says.",
    RetainFlagTrue = "retain flag is true":
        "RETAIN is set on what a subscription brings, and else only if it was published so and the subscription asked to keep the flag.",
    SharedToOneMember = "shared to one member":
        "A message of a shared subscription goes to one member; at QoS 2 to one whatever happens, else to another only when its member went.",
    SharedIsDelivered = "shared is delivered":
        "While a member is there, a message of a shared subscription does not wait for one that is away.",
    DupOnResendsOnly = "DUP on resends only":
        "DUP is set when a PUBLISH was sent before, and only then.",
    ExpiryCountedDown = "expiry counted down":
        "A message is not sent for the first time after it expired, and says how long it still lives.",
    GrantedQosHeld = "granted QoS held":
        "A delivery has the lower of the QoS published and the best QoS granted by a matching subscription.",
    NoLocalHeld = "no local held":
        "A client does not get its own messages through a subscription with No Local.",
    SubscriptionIdsTrue = "subscription identifiers are true":
        "A delivery bears the identifiers of the subscriptions that match, and no others.",
    AnswersInOrder = "answers in order":
        "PUBACK, PUBREC, SUBACK and UNSUBACK answer something that was asked, once, and PUBACKs and PUBRECs leave in the order of their PUBLISHes.",
    ExchangeGoesOn = "an exchange goes on":
        "After PUBREC comes PUBREL, never the PUBLISH again, unless the broker lost the PUBREC in a crash.",
    AcknowledgedNotRepeated = "acknowledged is not repeated":
        "What a client has acknowledged is never sent to it again once that is durable.",
    EverythingAnswered = "everything answered":
        "When nothing moves any more, every request on an open connection has its answer, and nothing that can be sent waits.",
    LossIsCounted = "loss is counted":
        "What a full queue drops is counted, and nothing is dropped from a queue that is not full.",
    NothingLeftBehind = "nothing left behind":
        "When all sessions and retained messages are gone, nothing is left in the store or in the gauges.",
    BrokerSpeaksMqtt = "the broker speaks MQTT":
        "Every byte the broker sends is part of a packet that a client of its version takes at that point.",
    ComesToRest = "comes to rest":
        "Without new input everything stops moving.",
    NoPanic = "no panic":
        "Nothing a client, the store or the outside does makes the machine panic.",
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A broken promise.
#[derive(Debug, Clone)]
pub(super) struct Violation {
    pub(super) invariant: Invariant,
    pub(super) detail: String,
}

impl Violation {
    pub(super) fn new(invariant: Invariant, detail: impl Into<String>) -> Violation {
        Violation {
            invariant,
            detail: detail.into(),
        }
    }
}

/// What a check says.
pub(super) type Verdict = Result<(), Violation>;

/// Fails with `invariant` unless `held`; the detail is only made then.
pub(super) fn demand(held: bool, invariant: Invariant, detail: impl FnOnce() -> String) -> Verdict {
    match held {
        true => Ok(()),
        false => Err(Violation::new(invariant, detail())),
    }
}
