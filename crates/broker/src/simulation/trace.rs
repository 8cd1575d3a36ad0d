//! What happened in a run, in words.
//!
//! Off while seeds are tried, so that it costs nothing: a seed that fails is run once more with the
//! trace on, which the same draws make the same run.

use std::collections::VecDeque;
use std::fmt;

/// How much of a run is kept as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Nothing.
    Off,
    /// The last events.
    Last(usize),
    /// Everything, printed on stderr as it happens.
    Printed,
}

#[derive(Debug)]
pub(super) struct Trace {
    detail: Detail,
    lines: VecDeque<String>,
    /// A running hash of all that was noted; two runs of one seed must agree.
    digest: u64,
}

impl Trace {
    pub(super) fn new(detail: Detail) -> Trace {
        Trace {
            detail,
            lines: VecDeque::new(),
            digest: 0xCBF2_9CE4_8422_2325,
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.detail != Detail::Off
    }

    /// Notes an event. The text is made only if somebody wants it.
    pub(super) fn note(&mut self, step: usize, text: impl FnOnce() -> String) {
        let kept = match self.detail {
            Detail::Off => return,
            Detail::Last(kept) => kept,
            Detail::Printed => 60,
        };
        let line = format!("{step:>6}  {}", text());
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
        if self.detail == Detail::Printed {
            eprintln!("{line}");
        }
        self.lines.push_back(line);
        if self.lines.len() > kept {
            self.lines.pop_front();
        }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn lines(self) -> Vec<String> {
        self.lines.into()
    }
}

/// A packet in one line.
pub(super) struct Short<'a>(pub(super) &'a mqtt::Packet);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use mqtt::Packet::*;
        write!(f, "{}", self.0.packet_type())?;
        match self.0 {
            Connect(c) => write!(
                f,
                " {} {} clean={} expiry={:?} rm={:?} will={}",
                c.client_id.as_str(),
                c.version,
                c.clean_start,
                c.properties.session_expiry_interval,
                c.properties.receive_maximum,
                match &c.will {
                    Some(will) => format!(
                        "{}@{} q{} delay={:?}",
                        String::from_utf8_lossy(&will.payload),
                        will.topic.as_str(),
                        will.qos.as_u8(),
                        will.properties.will_delay_interval
                    ),
                    None => "-".to_owned(),
                }
            ),
            ConnAck(a) => write!(f, " present={} {}", a.session_present, a.reason.name()),
            Publish(p) => {
                let payload = &p.payload[..p.payload.len().min(8)];
                write!(
                    f,
                    " {} @{} q{} id={:?}{}{} exp={:?} alias={:?} subs={:?}",
                    String::from_utf8_lossy(payload),
                    p.topic.as_str(),
                    p.qos.as_u8(),
                    p.packet_id.map(mqtt::PacketId::get),
                    if p.dup { " DUP" } else { "" },
                    if p.retain { " RETAIN" } else { "" },
                    p.properties.message_expiry_interval,
                    p.properties.topic_alias,
                    p.properties
                        .subscription_ids
                        .iter()
                        .map(|id| id.get())
                        .collect::<Vec<_>>(),
                )
            }
            PubAck(a) => write!(f, " {} {}", a.packet_id, a.reason.name()),
            PubRec(a) => write!(f, " {} {}", a.packet_id, a.reason.name()),
            PubRel(a) => write!(f, " {} {}", a.packet_id, a.reason.name()),
            PubComp(a) => write!(f, " {} {}", a.packet_id, a.reason.name()),
            Subscribe(s) => {
                write!(f, " {} id={:?}", s.packet_id, s.properties.subscription_id)?;
                for s in &s.subscriptions {
                    write!(
                        f,
                        " {}:q{}{}{} {:?}",
                        s.filter.as_str(),
                        s.qos.as_u8(),
                        if s.no_local { " nl" } else { "" },
                        if s.retain_as_published { " rap" } else { "" },
                        s.retain_handling
                    )?;
                }
                Ok(())
            }
            SubAck(a) => write!(f, " {} {:?}", a.packet_id, a.reasons),
            Unsubscribe(u) => {
                write!(f, " {}", u.packet_id)?;
                for filter in &u.filters {
                    write!(f, " {}", filter.as_str())?;
                }
                Ok(())
            }
            UnsubAck(a) => write!(f, " {} {:?}", a.packet_id, a.reasons),
            Disconnect(d) => write!(
                f,
                " {} expiry={:?}",
                d.reason.name(),
                d.properties.session_expiry_interval
            ),
            PingReq | PingResp => Ok(()),
            Auth(a) => write!(f, " {:?}", a.reason),
        }
    }
}
