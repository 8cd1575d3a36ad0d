//! Every packet a version has, for property tests.

use std::num::{NonZeroU16, NonZeroU32};

use mqtt::*;
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::select,
    strategy::{BoxedStrategy, Union},
};

/// Who sends a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

pub fn text() -> impl Strategy<Value = Utf8> {
    prop_oneof![
        4 => "\\PC{0,12}".prop_map(Utf8::from),
        1 => "[a-z]{120,140}".prop_map(Utf8::from),
        1 => "[\u{1}-\u{9f}\u{fffe}\u{feff}\u{10ffff}]{1,4}".prop_map(Utf8::from),
    ]
}

fn topic_name() -> impl Strategy<Value = TopicName> {
    "[$a-z0-9é /]{1,20}".prop_map(|topic| TopicName::parse(&topic).expect("has no wildcards"))
}

fn topic_filter() -> impl Strategy<Value = TopicFilter> {
    let level = prop_oneof![3 => "[a-z$]{0,4}", 1 => Just("+".to_owned())];
    (
        vec(level, 1..5),
        any::<bool>(),
        option::weighted(0.2, "[a-z]{1,3}"),
    )
        .prop_map(|(mut levels, hash, share)| {
            if hash {
                levels.push("#".to_owned());
            }
            let filter = levels.join("/");
            let filter = if filter.is_empty() {
                "/".to_owned()
            } else {
                filter
            };
            let text = match share {
                Some(share) => format!("$share/{share}/{filter}"),
                None => filter,
            };
            TopicFilter::parse(&text).expect("is put together from legal parts")
        })
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => bytes(),
        1 => (100_usize..20_000, any::<u8>()).prop_map(|(len, fill)| Bytes::from(vec![fill; len])),
    ]
}

fn secret() -> impl Strategy<Value = Secret> {
    bytes().prop_map(Secret::from)
}

fn user_properties() -> impl Strategy<Value = Vec<UserProperty>> {
    vec((text(), text()), 0..3)
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    any::<NonZeroU16>().prop_map(PacketId::from)
}

fn qos() -> impl Strategy<Value = QoS> {
    select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn subscription_id() -> impl Strategy<Value = SubscriptionId> {
    prop_oneof![1_u32..300, 1..=SubscriptionId::MAX]
        .prop_map(|id| SubscriptionId::new(id).expect("is in range"))
}

fn payload_format() -> impl Strategy<Value = PayloadFormat> {
    select(vec![PayloadFormat::Unspecified, PayloadFormat::Utf8])
}

fn reason(packet: PacketType) -> impl Strategy<Value = ReasonCode> {
    let fitting: Vec<_> = ReasonCode::ALL
        .iter()
        .copied()
        .filter(|c| c.fits(packet))
        .collect();
    select(fitting)
}

fn connect_properties() -> impl Strategy<Value = ConnectProperties> {
    (
        option::of(any::<u32>()),
        option::of(any::<NonZeroU16>()),
        option::of(any::<NonZeroU32>()),
        option::of(any::<u16>()),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        user_properties(),
        option::of((text(), option::of(secret()))),
    )
        .prop_map(
            |(expiry, receive, size, alias, response, problem, user_properties, auth)| {
                ConnectProperties {
                    session_expiry_interval: expiry,
                    receive_maximum: receive,
                    maximum_packet_size: size,
                    topic_alias_maximum: alias,
                    request_response_information: response,
                    request_problem_information: problem,
                    user_properties,
                    authentication_data: auth.as_ref().and_then(|(_, data)| data.clone()),
                    authentication_method: auth.map(|(method, _)| method),
                }
            },
        )
}

fn will_properties() -> impl Strategy<Value = WillProperties> {
    (
        option::of(any::<u32>()),
        option::of(payload_format()),
        option::of(any::<u32>()),
        option::of(text()),
        option::of(topic_name()),
        option::of(bytes()),
        user_properties(),
    )
        .prop_map(
            |(delay, payload_format, expiry, content_type, response, correlation, user)| {
                WillProperties {
                    will_delay_interval: delay,
                    payload_format,
                    message_expiry_interval: expiry,
                    content_type,
                    response_topic: response,
                    correlation_data: correlation,
                    user_properties: user,
                }
            },
        )
}

fn will(version: Version) -> impl Strategy<Value = Will> {
    (
        qos(),
        any::<bool>(),
        topic_name(),
        bytes(),
        will_properties(),
    )
        .prop_map(move |(qos, retain, topic, payload, properties)| Will {
            qos,
            retain,
            topic,
            payload,
            properties: only_v5(version, properties),
        })
}

fn only_v5<T: Default>(version: Version, properties: T) -> T {
    match version {
        Version::V311 => T::default(),
        Version::V5 => properties,
    }
}

pub fn connect(version: Version) -> impl Strategy<Value = Connect> {
    (
        text(),
        any::<bool>(),
        any::<u16>(),
        option::of(text()),
        option::of(secret()),
        option::of(will(version)),
        connect_properties(),
    )
        .prop_map(
            move |(client_id, clean_start, keep_alive, username, password, will, properties)| {
                let v311 = version == Version::V311;
                Connect {
                    version,
                    clean_start: clean_start || v311 && client_id.is_empty(),
                    client_id,
                    keep_alive,
                    password: password.filter(|_| !v311 || username.is_some()),
                    username,
                    will,
                    properties: only_v5(version, properties),
                }
            },
        )
}

fn connack_properties() -> impl Strategy<Value = ConnAckProperties> {
    let numbers = (
        option::of(any::<u32>()),
        option::of(any::<NonZeroU16>()),
        option::of(select(vec![QoS::AtMostOnce, QoS::AtLeastOnce])),
        option::of(any::<NonZeroU32>()),
        option::of(any::<u16>()),
        option::of(any::<u16>()),
    );
    let switches = (
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
    );
    let texts = (
        option::of(text()),
        option::of(text()),
        option::of(text()),
        option::of(text()),
        option::of(text()),
        option::of(secret()),
    );
    (numbers, switches, texts, user_properties()).prop_map(
        |(numbers, switches, texts, user_properties)| ConnAckProperties {
            session_expiry_interval: numbers.0,
            receive_maximum: numbers.1,
            maximum_qos: numbers.2,
            retain_available: switches.0,
            maximum_packet_size: numbers.3,
            assigned_client_id: texts.0,
            topic_alias_maximum: numbers.4,
            reason_string: texts.1,
            user_properties,
            wildcard_subscription_available: switches.1,
            subscription_identifiers_available: switches.2,
            shared_subscription_available: switches.3,
            server_keep_alive: numbers.5,
            response_information: texts.2,
            server_reference: texts.3,
            authentication_method: texts.4,
            authentication_data: texts.5,
        },
    )
}

pub fn connack(version: Version) -> BoxedStrategy<ConnAck> {
    let reason = match version {
        Version::V5 => reason(PacketType::ConnAck).boxed(),
        Version::V311 => (0_u8..=5)
            .prop_map(|code| ConnectReturnCode::from_u8(code).expect("0 to 5").into())
            .boxed(),
    };
    (any::<bool>(), reason, connack_properties())
        .prop_map(move |(session, reason, properties)| ConnAck {
            session_present: session && !reason.is_error(),
            reason,
            properties: only_v5(version, properties),
        })
        .boxed()
}

pub fn publish(side: Side, version: Version) -> impl Strategy<Value = Publish> {
    let properties = (
        option::of(payload_format()),
        option::of(any::<u32>()),
        option::of(any::<NonZeroU16>()),
        option::of(topic_name()),
        option::of(bytes()),
        user_properties(),
        vec(subscription_id(), 0..3),
        option::of(text()),
    )
        .prop_map(
            move |(payload_format, expiry, alias, response, correlation, user, ids, kind)| {
                PublishProperties {
                    payload_format,
                    message_expiry_interval: expiry,
                    topic_alias: alias,
                    response_topic: response,
                    correlation_data: correlation,
                    user_properties: user,
                    subscription_ids: if side == Side::Server {
                        ids
                    } else {
                        Vec::new()
                    },
                    content_type: kind,
                }
            },
        );
    let flags = (any::<bool>(), qos(), any::<bool>());
    (
        flags,
        topic_name(),
        any::<bool>(),
        packet_id(),
        properties,
        payload(),
    )
        .prop_map(
            move |((dup, qos, retain), topic, no_topic, id, properties, payload)| {
                let properties = only_v5(version, properties);
                let by_alias = no_topic && properties.topic_alias.is_some();
                Publish {
                    dup: dup && qos > QoS::AtMostOnce,
                    qos,
                    retain,
                    topic: if by_alias { Utf8::EMPTY } else { topic.into() },
                    packet_id: (qos > QoS::AtMostOnce).then_some(id),
                    properties,
                    payload,
                }
            },
        )
}

macro_rules! acknowledgement {
    ($function:ident, $packet:ident, $properties:ident) => {
        fn $function(version: Version) -> BoxedStrategy<Packet> {
            (
                packet_id(),
                reason(PacketType::$packet),
                option::of(text()),
                user_properties(),
            )
                .prop_map(move |(packet_id, reason, reason_string, user_properties)| {
                    let properties = $properties {
                        reason_string,
                        user_properties,
                    };
                    $packet {
                        packet_id,
                        reason: only_v5(version, reason),
                        properties: only_v5(version, properties),
                    }
                    .into()
                })
                .boxed()
        }
    };
}

acknowledgement!(puback, PubAck, PubAckProperties);
acknowledgement!(pubrec, PubRec, PubRecProperties);
acknowledgement!(pubrel, PubRel, PubRelProperties);
acknowledgement!(pubcomp, PubComp, PubCompProperties);

fn subscription(version: Version) -> impl Strategy<Value = Subscription> {
    let handling = select(vec![
        RetainHandling::AtSubscribe,
        RetainHandling::AtNewSubscription,
        RetainHandling::Never,
    ]);
    (
        topic_filter(),
        qos(),
        any::<bool>(),
        any::<bool>(),
        handling,
    )
        .prop_map(
            move |(filter, qos, no_local, retain_as_published, retain_handling)| Subscription {
                qos,
                no_local: only_v5(version, no_local && !filter.is_shared()),
                filter,
                retain_as_published: only_v5(version, retain_as_published),
                retain_handling: only_v5(version, retain_handling),
            },
        )
}

fn subscribe(version: Version) -> impl Strategy<Value = Packet> {
    let entries = vec(subscription(version), 1..4);
    (
        packet_id(),
        entries,
        option::of(subscription_id()),
        user_properties(),
    )
        .prop_map(
            move |(packet_id, subscriptions, subscription_id, user_properties)| {
                let properties = SubscribeProperties {
                    subscription_id,
                    user_properties,
                };
                Subscribe {
                    packet_id,
                    subscriptions,
                    properties: only_v5(version, properties),
                }
                .into()
            },
        )
}

fn unsubscribe(version: Version) -> impl Strategy<Value = Packet> {
    (packet_id(), vec(topic_filter(), 1..4), user_properties()).prop_map(
        move |(packet_id, filters, user_properties)| {
            let properties = UnsubscribeProperties { user_properties };
            Unsubscribe {
                packet_id,
                filters,
                properties: only_v5(version, properties),
            }
            .into()
        },
    )
}

fn suback(version: Version) -> impl Strategy<Value = Packet> {
    let reason = reason(PacketType::SubAck).prop_map(move |reason| match version {
        Version::V311 if reason.is_error() => ReasonCode::UnspecifiedError,
        _ => reason,
    });
    (
        packet_id(),
        vec(reason, 1..5),
        option::of(text()),
        user_properties(),
    )
        .prop_map(
            move |(packet_id, reasons, reason_string, user_properties)| {
                let properties = SubAckProperties {
                    reason_string,
                    user_properties,
                };
                SubAck {
                    packet_id,
                    reasons,
                    properties: only_v5(version, properties),
                }
                .into()
            },
        )
}

fn unsuback(version: Version) -> impl Strategy<Value = Packet> {
    let reasons = vec(reason(PacketType::UnsubAck), 1..5);
    (packet_id(), reasons, option::of(text()), user_properties()).prop_map(
        move |(packet_id, reasons, reason_string, user_properties)| {
            let properties = UnsubAckProperties {
                reason_string,
                user_properties,
            };
            UnsubAck {
                packet_id,
                reasons: only_v5(version, reasons),
                properties: only_v5(version, properties),
            }
            .into()
        },
    )
}

fn disconnect(side: Side, version: Version) -> impl Strategy<Value = Packet> {
    let codes: Vec<_> = ReasonCode::ALL
        .iter()
        .copied()
        .filter(|code| match side {
            Side::Client => code.may_client_disconnect_with(),
            Side::Server => code.may_server_disconnect_with(),
        })
        .collect();
    let properties = (
        option::of(any::<u32>()),
        option::of(text()),
        user_properties(),
        option::of(text()),
    )
        .prop_map(
            move |(expiry, reason_string, user_properties, server_reference)| {
                DisconnectProperties {
                    session_expiry_interval: expiry.filter(|_| side == Side::Client),
                    reason_string,
                    user_properties,
                    server_reference,
                }
            },
        );
    (select(codes), properties, any::<bool>()).prop_map(move |(reason, properties, bare)| {
        let properties = if bare {
            DisconnectProperties::default()
        } else {
            properties
        };
        Disconnect {
            reason: only_v5(version, reason),
            properties: only_v5(version, properties),
        }
        .into()
    })
}

fn auth(side: Side) -> impl Strategy<Value = Packet> {
    let codes = match side {
        Side::Client => [
            ReasonCode::ContinueAuthentication,
            ReasonCode::ReAuthenticate,
        ],
        Side::Server => [ReasonCode::ContinueAuthentication, ReasonCode::Success],
    };
    let properties = (
        text(),
        option::of(secret()),
        option::of(text()),
        user_properties(),
    );
    (select(codes.to_vec()), properties, any::<bool>()).prop_map(
        |(reason, (method, authentication_data, reason_string, user_properties), bare)| {
            if bare && reason == ReasonCode::Success {
                return Auth::default().into();
            }
            let properties = AuthProperties {
                authentication_method: Some(method),
                authentication_data,
                reason_string,
                user_properties,
            };
            Auth { reason, properties }.into()
        },
    )
}

/// What `side` sends once the connection is open.
pub fn packet(side: Side, version: Version) -> BoxedStrategy<Packet> {
    let mut kinds = vec![
        publish(side, version).prop_map(Packet::from).boxed(),
        puback(version),
        pubrec(version),
        pubrel(version),
        pubcomp(version),
    ];
    match side {
        Side::Client => kinds.extend([
            subscribe(version).boxed(),
            unsubscribe(version).boxed(),
            Just(Packet::PingReq).boxed(),
        ]),
        Side::Server => kinds.extend([
            suback(version).boxed(),
            unsuback(version).boxed(),
            Just(Packet::PingResp).boxed(),
        ]),
    }
    if side == Side::Client || version == Version::V5 {
        kinds.push(disconnect(side, version).boxed());
    }
    if version == Version::V5 {
        kinds.push(auth(side).boxed());
    }
    Union::new(kinds).boxed()
}

/// All that `side` says on a connection, from its first packet.
pub fn conversation(side: Side, version: Version) -> BoxedStrategy<Vec<Packet>> {
    let first = match side {
        Side::Client => connect(version).prop_map(Packet::from).boxed(),
        Side::Server => connack(version).prop_map(Packet::from).boxed(),
    };
    (first, vec(packet(side, version), 0..6))
        .prop_map(|(first, rest)| std::iter::once(first).chain(rest).collect())
        .boxed()
}
