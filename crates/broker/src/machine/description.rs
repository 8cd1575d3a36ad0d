//! A packet in one line, for a person who follows a trace.
//!
//! What clients chose (topics, identifiers, reason strings) is escaped, so that a line stays a line, and
//! cut where it gets long. Left out are passwords, data of enhanced authentications, payloads and the
//! values of user properties: whatever may be a secret or belongs to the application.

use std::fmt::{self, Display, Write as _};

use mqtt::{Connect, Packet, Publish, QoS, ReasonCode, RetainHandling, Subscription, Utf8};

/// Characters of one text in a line.
const SHOWN_OF_TEXT: usize = 256;

/// Entries of one list in a line.
const SHOWN_OF_LIST: usize = 16;

/// What a trace says of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Description {
    /// `CONNECT`, `PUBLISH`, ...
    pub(super) kind: &'static str,
    /// Begins with that.
    pub(super) line: String,
    pub(super) topic: Option<String>,
    pub(super) qos: Option<QoS>,
    pub(super) packet_id: Option<u16>,
    pub(super) reason: Option<ReasonCode>,
    pub(super) payload_bytes: Option<usize>,
}

impl Description {
    /// Of `packet`. `topic` is what a topic alias in it stands for, if that is known.
    pub(super) fn of(packet: &Packet, topic: Option<&str>) -> Description {
        let mut it = Description {
            kind: kind(packet),
            line: String::from(kind(packet)),
            topic: None,
            qos: None,
            packet_id: None,
            reason: None,
            payload_bytes: None,
        };
        match packet {
            Packet::Connect(connect) => it.connect(connect),
            Packet::ConnAck(ack) => {
                it.reason(ack.reason);
                let p = &ack.properties;
                it.flag("session-present", ack.session_present);
                it.field("assigned-client", p.assigned_client_id.as_ref().map(text));
                it.field("expiry", p.session_expiry_interval);
                it.field("keep-alive", p.server_keep_alive);
                it.field("server", p.server_reference.as_ref().map(text));
                it.said(p.reason_string.as_ref(), p.user_properties.len());
            }
            Packet::Publish(publish) => it.publish(publish, topic),
            Packet::PubAck(ack) => {
                it.id(ack.packet_id.get());
                it.reason(ack.reason);
                let p = &ack.properties;
                it.said(p.reason_string.as_ref(), p.user_properties.len());
            }
            Packet::PubRec(ack) => {
                it.id(ack.packet_id.get());
                it.reason(ack.reason);
                let p = &ack.properties;
                it.said(p.reason_string.as_ref(), p.user_properties.len());
            }
            Packet::PubRel(ack) => {
                it.id(ack.packet_id.get());
                it.reason(ack.reason);
                let p = &ack.properties;
                it.said(p.reason_string.as_ref(), p.user_properties.len());
            }
            Packet::PubComp(ack) => {
                it.id(ack.packet_id.get());
                it.reason(ack.reason);
                let p = &ack.properties;
                it.said(p.reason_string.as_ref(), p.user_properties.len());
            }
            Packet::Subscribe(subscribe) => {
                it.id(subscribe.packet_id.get());
                it.list(subscribe.subscriptions.iter().map(Asked));
                let p = &subscribe.properties;
                it.field("subscription-id", p.subscription_id.map(|id| id.get()));
                it.said(None, p.user_properties.len());
            }
            Packet::SubAck(ack) => {
                it.id(ack.packet_id.get());
                it.reasons(&ack.reasons);
                let p = &ack.properties;
                it.said(p.reason_string.as_ref(), p.user_properties.len());
            }
            Packet::Unsubscribe(unsubscribe) => {
                it.id(unsubscribe.packet_id.get());
                it.list(unsubscribe.filters.iter().map(|f| Text(f.as_str())));
                it.said(None, unsubscribe.properties.user_properties.len());
            }
            Packet::UnsubAck(ack) => {
                it.id(ack.packet_id.get());
                it.reasons(&ack.reasons);
                let p = &ack.properties;
                it.said(p.reason_string.as_ref(), p.user_properties.len());
            }
            Packet::PingReq | Packet::PingResp => {}
            Packet::Disconnect(disconnect) => {
                it.reason(disconnect.reason);
                let p = &disconnect.properties;
                it.field("expiry", p.session_expiry_interval);
                it.field("server", p.server_reference.as_ref().map(text));
                it.said(p.reason_string.as_ref(), p.user_properties.len());
            }
            Packet::Auth(auth) => {
                it.reason(auth.reason);
                let p = &auth.properties;
                it.field("method", p.authentication_method.as_ref().map(text));
                it.secret("data", p.authentication_data.as_deref());
                it.said(p.reason_string.as_ref(), p.user_properties.len());
            }
        }
        it
    }

    fn connect(&mut self, connect: &Connect) {
        let _ = write!(self.line, " {}", connect.version);
        self.field("client", Some(text(&connect.client_id)));
        self.flag("clean", connect.clean_start);
        self.field("keep-alive", Some(connect.keep_alive));
        // Some clients put a token behind a question mark there.
        let user = connect.username.as_deref().map(|user| {
            let name = user.split_once('?').map_or(user, |(name, _)| name);
            let rest = user.len() - name.len();
            (Text(name), rest)
        });
        if let Some((name, rest)) = user {
            self.field("user", Some(name));
            if rest > 0 {
                let _ = write!(self.line, "?({} bytes hidden)", rest - 1);
            }
        }
        self.secret("password", connect.password.as_deref());
        let p = &connect.properties;
        self.field("expiry", p.session_expiry_interval);
        self.field("receive-maximum", p.receive_maximum);
        self.field("maximum-packet-size", p.maximum_packet_size);
        self.field("method", p.authentication_method.as_ref().map(text));
        self.secret("data", p.authentication_data.as_deref());
        self.said(None, p.user_properties.len());
        if let Some(will) = &connect.will {
            self.topic = Some(will.topic.as_str().to_owned());
            let _ = write!(
                self.line,
                " will=[q{} topic={} {} bytes hidden",
                will.qos.as_u8(),
                Text(will.topic.as_str()),
                will.payload.len()
            );
            self.flag("retain", will.retain);
            self.field("delay", will.properties.will_delay_interval);
            self.line.push(']');
        }
    }

    fn publish(&mut self, publish: &Publish, topic: Option<&str>) {
        let _ = write!(self.line, " q{}", publish.qos.as_u8());
        if let Some(packet_id) = publish.packet_id {
            self.id(packet_id.get());
        }
        self.flag("dup", publish.dup);
        self.flag("retain", publish.retain);
        let topic = match publish.topic.is_empty() {
            true => topic,
            false => Some(&*publish.topic),
        };
        self.field("topic", Some(topic.map_or(Text("?"), Text)));
        let _ = write!(self.line, " {} bytes", publish.payload.len());
        let p = &publish.properties;
        self.field("alias", p.topic_alias);
        self.field("expiry", p.message_expiry_interval);
        self.field("content-type", p.content_type.as_ref().map(text));
        let response = p.response_topic.as_ref().map(|topic| Text(topic.as_str()));
        self.field("response-topic", response);
        for id in p.subscription_ids.iter().take(SHOWN_OF_LIST) {
            self.field("subscription-id", Some(id.get()));
        }
        self.said(None, p.user_properties.len());
        self.qos = Some(publish.qos);
        self.topic = topic.map(str::to_owned);
        self.payload_bytes = Some(publish.payload.len());
    }

    fn id(&mut self, id: u16) {
        self.packet_id = Some(id);
        self.field("id", Some(id));
    }

    fn reason(&mut self, reason: ReasonCode) {
        self.reason = Some(reason);
        let _ = write!(self.line, " {reason}");
    }

    fn reasons(&mut self, reasons: &[ReasonCode]) {
        let bad = reasons.iter().find(|reason| reason.is_error());
        self.reason = bad.or(reasons.first()).copied();
        self.list(reasons.iter());
    }

    fn flag(&mut self, name: &str, is_set: bool) {
        if is_set {
            self.line.push(' ');
            self.line.push_str(name);
        }
    }

    fn field(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            let _ = write!(self.line, " {name}={value}");
        }
    }

    fn secret(&mut self, name: &str, value: Option<&[u8]>) {
        if let Some(value) = value {
            let _ = write!(self.line, " {name}=({} bytes hidden)", value.len());
        }
    }

    /// What most packets may bring.
    fn said(&mut self, reason: Option<&Utf8>, user_properties: usize) {
        if let Some(reason) = reason {
            let _ = write!(self.line, " \"{}\"", Text(reason));
        }
        if user_properties > 0 {
            let _ = write!(self.line, " user-properties={user_properties}");
        }
    }

    fn list(&mut self, entries: impl ExactSizeIterator<Item = impl Display>) {
        let more = entries.len().saturating_sub(SHOWN_OF_LIST);
        for (place, entry) in entries.take(SHOWN_OF_LIST).enumerate() {
            let comma = if place > 0 { "," } else { "" };
            let _ = write!(self.line, "{comma} {entry}");
        }
        if more > 0 {
            let _ = write!(self.line, " and {more} more");
        }
    }
}

fn kind(packet: &Packet) -> &'static str {
    match packet {
        Packet::Connect(_) => "CONNECT",
        Packet::ConnAck(_) => "CONNACK",
        Packet::Publish(_) => "PUBLISH",
        Packet::PubAck(_) => "PUBACK",
        Packet::PubRec(_) => "PUBREC",
        Packet::PubRel(_) => "PUBREL",
        Packet::PubComp(_) => "PUBCOMP",
        Packet::Subscribe(_) => "SUBSCRIBE",
        Packet::SubAck(_) => "SUBACK",
        Packet::Unsubscribe(_) => "UNSUBSCRIBE",
        Packet::UnsubAck(_) => "UNSUBACK",
        Packet::PingReq => "PINGREQ",
        Packet::PingResp => "PINGRESP",
        Packet::Disconnect(_) => "DISCONNECT",
        Packet::Auth(_) => "AUTH",
    }
}

/// A text that a client chose.
struct Text<'a>(&'a str);

fn text(text: &Utf8) -> Text<'_> {
    Text(text)
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self
            .0
            .chars()
            .take(SHOWN_OF_TEXT)
            .flat_map(char::escape_debug)
        {
            f.write_char(c)?;
        }
        match self.0.char_indices().nth(SHOWN_OF_TEXT) {
            Some(_) => f.write_str("…"),
            None => Ok(()),
        }
    }
}

/// One entry of SUBSCRIBE.
struct Asked<'a>(&'a Subscription);

impl Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = self.0;
        write!(f, "{} q{}", Text(asked.filter.as_str()), asked.qos.as_u8())?;
        if asked.no_local {
            f.write_str(" no-local")?;
        }
        if asked.retain_as_published {
            f.write_str(" retain-as-published")?;
        }
        match asked.retain_handling {
            RetainHandling::AtSubscribe => Ok(()),
            RetainHandling::AtNewSubscription => f.write_str(" retained-if-new"),
            RetainHandling::Never => f.write_str(" not-retained"),
        }
    }
}

#[cfg(test)]
mod tests {
    use mqtt::{
        Auth, AuthProperties, Disconnect, PacketId, PubAck, SubAck, SubAckProperties, Subscribe,
        SubscribeProperties, TopicFilter, Version, Will, WillProperties,
    };

    use super::*;

    fn line(packet: impl Into<Packet>) -> String {
        Description::of(&packet.into(), None).line
    }

    fn id(n: u16) -> PacketId {
        PacketId::new(n).expect("not 0")
    }

    fn connect() -> Connect {
        let mut connect = Connect::new(Version::V5, "car-1");
        connect.keep_alive = 60;
        connect.username = Some("car?token=s3cret".into());
        connect.password = Some("s3cret".into());
        connect.properties.session_expiry_interval = Some(3600);
        connect.properties.authentication_method = Some("SCRAM".into());
        connect.properties.authentication_data = Some("s3cret".into());
        connect.properties.user_properties = vec![("key".into(), "s3cret".into())];
        connect.will = Some(Will {
            qos: QoS::AtLeastOnce,
            retain: true,
            topic: mqtt::TopicName::parse("gone").expect("a topic"),
            payload: "s3cret".into(),
            properties: WillProperties::default(),
        });
        connect
    }

    #[test]
    fn packets_read_like_this() {
        let publish = Publish {
            qos: QoS::AtLeastOnce,
            packet_id: Some(id(7)),
            topic: "dt/car-1/speed".into(),
            payload: "s3cret".into(),
            ..Publish::default()
        };
        let subscription = |filter, no_local| Subscription {
            no_local,
            ..Subscription::new(TopicFilter::parse(filter).expect("valid"), QoS::ExactlyOnce)
        };
        let auth = Auth {
            reason: ReasonCode::ContinueAuthentication,
            properties: AuthProperties {
                authentication_method: Some("SCRAM".into()),
                authentication_data: Some("s3cret".into()),
                ..AuthProperties::default()
            },
        };
        let rows: [(String, &str); 7] = [
            (
                line(connect()),
                "CONNECT MQTT 5 client=car-1 clean keep-alive=60 user=car?(12 bytes hidden) \
                 password=(6 bytes hidden) expiry=3600 method=SCRAM data=(6 bytes hidden) \
                 user-properties=1 will=[q1 topic=gone 6 bytes hidden retain]",
            ),
            (
                line(publish),
                "PUBLISH q1 id=7 topic=dt/car-1/speed 6 bytes",
            ),
            (
                line(PubAck::new(id(7), ReasonCode::QuotaExceeded)),
                "PUBACK id=7 Quota exceeded (0x97)",
            ),
            (
                line(Subscribe {
                    packet_id: id(3),
                    subscriptions: vec![subscription("a/+", true), subscription("b", false)],
                    properties: SubscribeProperties::default(),
                }),
                "SUBSCRIBE id=3 a/+ q2 no-local, b q2",
            ),
            (
                line(SubAck {
                    packet_id: id(3),
                    reasons: vec![ReasonCode::GrantedQoS1, ReasonCode::NotAuthorized],
                    properties: SubAckProperties::default(),
                }),
                "SUBACK id=3 Granted QoS 1 (0x01), Not authorized (0x87)",
            ),
            (
                line(auth),
                "AUTH Continue authentication (0x18) method=SCRAM data=(6 bytes hidden)",
            ),
            (
                line(Disconnect::new(ReasonCode::Success)),
                "DISCONNECT Success (0x00)",
            ),
        ];
        for (line, expected) in rows {
            assert_eq!(line, expected);
            assert!(!line.contains("s3cret"), "{line}");
        }
    }

    #[test]
    fn a_line_stays_a_line_of_bounded_length() {
        let long = "x".repeat(60_000);
        let publish = Publish {
            topic: format!("a\u{202e}b\"{long}").into(),
            ..Publish::default()
        };
        let line = line(publish);
        assert!(
            line.starts_with(r#"PUBLISH q0 topic=a\u{202e}b\"xxx"#),
            "{line}"
        );
        assert!(line.ends_with("… 0 bytes") && line.len() < 400, "{line}");
        let many =
            vec![Subscription::new(TopicFilter::parse("a").expect("valid"), QoS::AtMostOnce); 100];
        let subscribe = Subscribe {
            packet_id: id(1),
            subscriptions: many,
            properties: SubscribeProperties::default(),
        };
        let line = Description::of(&subscribe.into(), None).line;
        assert!(line.ends_with(" a q0 and 84 more"), "{line}");
    }

    #[test]
    fn an_alias_is_resolved_where_it_is_known() {
        let mut publish = Publish::default();
        publish.properties.topic_alias = 3.try_into().ok();
        let packet = Packet::from(publish);
        let known = Description::of(&packet, Some("a"));
        assert_eq!(known.line, "PUBLISH q0 topic=a 0 bytes alias=3");
        assert_eq!(known.topic.as_deref(), Some("a"));
        let unknown = Description::of(&packet, None);
        assert_eq!(unknown.line, "PUBLISH q0 topic=? 0 bytes alias=3");
        assert_eq!(unknown.topic, None);
    }
}
