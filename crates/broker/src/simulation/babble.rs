//! What strangers say: packets put together from the bytes of a fuzzer, each of which decides something.
//!
//! Most of it is valid MQTT that no reasonable client would say at that moment; a fuzzer that had to
//! find even that byte by byte would not get beyond CONNECT.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use mqtt::{
    Auth, AuthProperties, Connect, ConnectProperties, Disconnect, DisconnectProperties, Packet,
    PacketId, PubAck, PubComp, PubRec, PubRel, Publish, PublishProperties, QoS, ReasonCode,
    RetainHandling, Subscribe, SubscribeProperties, Subscription, SubscriptionId, TopicFilter,
    TopicName, Unsubscribe, UnsubscribeProperties, Version, Will, WillProperties,
};

use super::topics::TOPICS;

/// The names they go by: few, so that they take over from each other. The last is left to the broker.
pub(super) const NAMES: [&str; 5] = ["car", "truck", "app", "car/é", ""];

const FILTERS: &[&str] = &[
    "a/1",
    "a/+",
    "#",
    "+/1",
    "$z/#",
    "b//x",
    "w/1",
    "$share/g/s/#",
    "$share/h/+/1",
    "$share/g/#",
    "1/2/3/4/5/6/7/8/9/10/11",
    "+",
    "/",
    "a/1/#",
];

const EXPIRIES: &[u32] = &[0, 1, 30, 600, 100_000, u32::MAX];

/// The bytes of a fuzzer, used up from the front.
#[derive(Debug)]
pub(super) struct Tape<'a>(pub(super) &'a [u8]);

impl Tape<'_> {
    pub(super) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte; 0 when there are no more.
    pub(super) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n.max(1)
    }

    pub(super) fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.below(of.len())]
    }

    /// True once in `n` bytes.
    pub(super) fn one_in(&mut self, n: u8) -> bool {
        self.byte() % n == n - 1
    }

    /// Up to `n` of the bytes that are left.
    pub(super) fn take(&mut self, n: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    /// A packet identifier of a few.
    fn id(&mut self) -> PacketId {
        PacketId::new(1 + u16::from(self.byte() % 6)).unwrap_or(PacketId::FIRST)
    }

    fn qos(&mut self) -> QoS {
        *self.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
    }

    fn payload(&mut self) -> Bytes {
        let len = *self.pick(&[0, 1, 20, 200, 3_000]);
        vec![b'x'; len].into()
    }

    pub(super) fn reason(&mut self) -> ReasonCode {
        *self.pick(&[
            ReasonCode::Success,
            ReasonCode::Success,
            ReasonCode::NoMatchingSubscribers,
            ReasonCode::UnspecifiedError,
            ReasonCode::QuotaExceeded,
            ReasonCode::PacketIdentifierNotFound,
        ])
    }

    pub(super) fn connect(&mut self) -> Connect {
        let version = *self.pick(&[Version::V5, Version::V311]);
        let mut connect = Connect::new(version, *self.pick(&NAMES));
        connect.clean_start = self.one_in(3);
        connect.keep_alive = *self.pick(&[0, 1, 10, u16::MAX]);
        if self.one_in(4) {
            connect.username = Some((*self.pick(&NAMES)).into());
        }
        if self.one_in(2) {
            let mut properties = WillProperties::default();
            if version == Version::V5 {
                properties.will_delay_interval = Some(*self.pick(EXPIRIES));
                properties.message_expiry_interval = self.one_in(3).then_some(5);
            }
            connect.will = TopicName::parse(self.pick::<&str>(TOPICS))
                .ok()
                .map(|topic| Will {
                    qos: self.qos(),
                    retain: self.one_in(3),
                    topic,
                    payload: self.payload(),
                    properties,
                });
        }
        if version == Version::V5 {
            connect.properties = ConnectProperties {
                session_expiry_interval: Some(*self.pick(EXPIRIES)),
                receive_maximum: NonZeroU16::new(*self.pick(&[0, 1, 2, 100])),
                maximum_packet_size: NonZeroU32::new(*self.pick(&[0, 0, 0, 8, 40, 300])),
                topic_alias_maximum: Some(*self.pick(&[0, 1, 3, u16::MAX])),
                request_problem_information: Some(!self.one_in(4)),
                request_response_information: Some(self.one_in(2)),
                authentication_method: self.one_in(12).then(|| "none".into()),
                ..ConnectProperties::default()
            };
        }
        connect
    }

    fn publish(&mut self, version: Version) -> Publish {
        let qos = self.qos();
        let mut publish = Publish {
            qos,
            dup: qos > QoS::AtMostOnce && self.one_in(4),
            retain: self.one_in(4),
            topic: (*self.pick(TOPICS)).into(),
            packet_id: (qos > QoS::AtMostOnce).then(|| self.id()),
            payload: self.payload(),
            ..Publish::default()
        };
        if version == Version::V5 && self.one_in(2) {
            publish.properties = PublishProperties {
                message_expiry_interval: self.one_in(2).then(|| *self.pick(EXPIRIES)),
                topic_alias: NonZeroU16::new(*self.pick(&[0, 1, 2, 999])),
                user_properties: match self.one_in(4) {
                    true => vec![("priority".into(), "high".into())],
                    false => Vec::new(),
                },
                ..PublishProperties::default()
            };
            if publish.properties.topic_alias.is_some() && self.one_in(2) {
                publish.topic = "".into();
            }
        }
        publish
    }

    fn subscribe(&mut self, version: Version) -> Subscribe {
        let count = 1 + self.below(4);
        let mut properties = SubscribeProperties::default();
        if version == Version::V5 && self.one_in(2) {
            properties.subscription_id = SubscriptionId::new(u32::from(self.byte()));
        }
        Subscribe {
            packet_id: self.id(),
            subscriptions: (0..count)
                .filter_map(|_| {
                    let filter = TopicFilter::parse(self.pick::<&str>(FILTERS)).ok()?;
                    let mut asked = Subscription::new(filter, self.qos());
                    if version == Version::V5 {
                        asked.no_local = self.one_in(4);
                        asked.retain_as_published = self.one_in(2);
                        asked.retain_handling = *self.pick(&[
                            RetainHandling::AtSubscribe,
                            RetainHandling::AtNewSubscription,
                            RetainHandling::Never,
                        ]);
                    }
                    Some(asked)
                })
                .collect(),
            properties,
        }
    }

    /// Anything a client may say.
    pub(super) fn packet(&mut self, version: Version) -> Packet {
        let five = version == Version::V5;
        match self.below(16) {
            0 => self.connect().into(),
            1..=4 => self.publish(version).into(),
            5 | 6 => self.subscribe(version).into(),
            7 => Unsubscribe {
                packet_id: self.id(),
                filters: TopicFilter::parse(self.pick::<&str>(FILTERS))
                    .into_iter()
                    .collect(),
                properties: UnsubscribeProperties::default(),
            }
            .into(),
            8 | 9 => PubAck::new(self.id(), self.answer(five)).into(),
            10 => PubRec::new(self.id(), self.answer(five)).into(),
            11 => PubRel::new(self.id(), ReasonCode::Success).into(),
            12 => PubComp::new(self.id(), ReasonCode::Success).into(),
            13 => Packet::PingReq,
            14 => Auth {
                reason: *self.pick(&[
                    ReasonCode::ReAuthenticate,
                    ReasonCode::ContinueAuthentication,
                ]),
                properties: AuthProperties {
                    authentication_method: self.one_in(2).then(|| "none".into()),
                    ..AuthProperties::default()
                },
            }
            .into(),
            _ => {
                let mut properties = DisconnectProperties::default();
                if five && self.one_in(2) {
                    properties.session_expiry_interval = Some(*self.pick(EXPIRIES));
                }
                let with_will = five && self.one_in(2);
                Disconnect {
                    reason: match with_will {
                        true => ReasonCode::DisconnectWithWill,
                        false => ReasonCode::NORMAL_DISCONNECTION,
                    },
                    properties,
                }
                .into()
            }
        }
    }

    fn answer(&mut self, five: bool) -> ReasonCode {
        match five {
            true => self.reason(),
            false => ReasonCode::Success,
        }
    }
}
