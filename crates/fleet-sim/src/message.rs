//! Message: what a virtual vehicle has to say, before it becomes a PUBLISH.
//!
//! Drives and recordings make messages; `fleet` and `simulate` add topic, id and transport. The
//! topics lie below the vehicle's own tree `dt/{application}/{context}/{vehicle}/{type}`, the only
//! place where a device may publish out of the box.

use std::fmt::Write as _;

use bytes::Bytes;

/// Content type of native telemetry.
pub const JSON: &str = "application/json";

/// What a message is about; decides topic and content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Signals of a drive.
    Drive,
    /// Beginning and end of a trip.
    Trip,
    /// Raw CAN frames.
    Can,
    /// Positions of a satellite receiver.
    Gnss,
}

impl Channel {
    /// All of them.
    pub const ALL: [Channel; 4] = [Self::Drive, Self::Trip, Self::Can, Self::Gnss];

    /// The topic on which this vehicle publishes it.
    pub fn topic(self, vehicle: &str) -> String {
        match self {
            Self::Drive => format!("dt/telemetry/drive/{vehicle}/signals"),
            Self::Trip => format!("dt/telemetry/trip/{vehicle}/state"),
            Self::Can => format!("dt/telemetry/can/{vehicle}/frames"),
            Self::Gnss => format!("dt/telemetry/gnss/{vehicle}/position"),
        }
    }

    /// The MQTT 5 content type of its payloads.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Drive | Self::Trip | Self::Gnss => JSON,
            Self::Can => signals::can::CAN_CONTENT_TYPE,
        }
    }
}

/// One message of a vehicle.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// When it was (recorded or simulated), microseconds since the Unix epoch, UTC. Decides when a
    /// replay sends it; the payload carries its own times.
    pub time_us: i64,
    /// What it is about.
    pub channel: Channel,
    /// Its bytes.
    pub payload: Bytes,
}

/// Writes native telemetry: one `{"time": epoch ms, "signals": {…}}` or an array of those.
///
/// By hand rather than through a tree of values: this is the way of every synthetic message. What
/// it writes is read back by `signals::decode_json` in the tests.
#[derive(Debug, Default)]
pub struct Telemetry {
    text: String,
    moments: usize,
    first_signal: bool,
    open: bool,
}

impl Telemetry {
    /// Nothing written yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.moments == 0
    }

    /// Bytes so far, without closing brackets.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Begins the signals of a moment (microseconds since the Unix epoch, written as milliseconds
    /// with as many digits as it takes).
    pub fn moment(&mut self, time_us: i64) {
        self.close();
        self.text.push(if self.moments == 0 { '[' } else { ',' });
        self.moments += 1;
        let (ms, us) = (time_us.div_euclid(1_000), time_us.rem_euclid(1_000));
        self.put(format_args!("{{\"time\":{ms}"));
        if us != 0 {
            self.put(format_args!(".{us:03}"));
        }
        self.text.push_str(",\"signals\":{");
        self.first_signal = true;
        self.open = true;
    }

    /// A number with this many decimals; left out if it is not finite, which JSON cannot say.
    pub fn number(&mut self, path: &str, value: f64, decimals: usize) {
        if value.is_finite() {
            self.name(path);
            // Not "-0.0": rounding may leave a sign on nothing.
            let start = self.text.len();
            self.put(format_args!("{value:.decimals$}"));
            let written = &self.text[start..];
            if written.starts_with('-') && written.bytes().all(|b| matches!(b, b'-' | b'0' | b'.'))
            {
                self.text.remove(start);
            }
        }
    }

    /// A number with all the digits it has; left out if it is not finite.
    pub fn exact(&mut self, path: &str, value: f64) {
        if value.is_finite() {
            self.name(path);
            self.put(format_args!("{value}"));
        }
    }

    /// Yes or no.
    pub fn flag(&mut self, path: &str, value: bool) {
        self.name(path);
        self.text.push_str(if value { "true" } else { "false" });
    }

    /// Text.
    pub fn text(&mut self, path: &str, value: &str) {
        self.name(path);
        self.quoted(value);
    }

    /// A list of texts.
    pub fn list<'a>(&mut self, path: &str, values: impl Iterator<Item = &'a str>) {
        self.name(path);
        self.text.push('[');
        for (index, value) in values.enumerate() {
            if index > 0 {
                self.text.push(',');
            }
            self.quoted(value);
        }
        self.text.push(']');
    }

    /// The payload: an object for one moment, an array for several. Empties the writer.
    pub fn take(&mut self) -> Bytes {
        self.close();
        let mut text = std::mem::take(&mut self.text);
        let moments = std::mem::take(&mut self.moments);
        if moments == 1 {
            return Bytes::from(text).slice(1..);
        }
        if moments == 0 {
            text.push('[');
        }
        text.push(']');
        Bytes::from(text)
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.text.push_str("}}");
        }
    }

    fn name(&mut self, path: &str) {
        if !std::mem::take(&mut self.first_signal) {
            self.text.push(',');
        }
        self.quoted(path);
        self.text.push(':');
    }

    fn quoted(&mut self, value: &str) {
        self.text.push('"');
        for c in value.chars() {
            match c {
                '"' | '\\' => {
                    self.text.push('\\');
                    self.text.push(c);
                }
                c if u32::from(c) < 0x20 => self.put(format_args!("\\u{:04x}", u32::from(c))),
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    fn put(&mut self, arguments: std::fmt::Arguments<'_>) {
        // A `String` accepts every write.
        let _ = self.text.write_fmt(arguments);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(payload: &[u8]) -> Vec<String> {
        let mut readings = Vec::new();
        signals::decode_json(payload, 0, &mut readings).unwrap();
        readings
            .iter()
            .map(|r| format!("{} {} {:?}", r.time_us, r.signal, r.value))
            .collect()
    }

    #[test]
    fn what_is_written_is_what_the_server_reads() {
        let mut telemetry = Telemetry::new();
        telemetry.moment(1_533_226_488_301_000);
        telemetry.number("Vehicle.Speed", 87.249, 1);
        telemetry.number("Vehicle.Acceleration.Longitudinal", -0.0004, 2);
        telemetry.number("Vehicle.AverageSpeed", f64::NAN, 2);
        telemetry.flag("Vehicle.IsMoving", true);
        assert_eq!(
            decoded(&telemetry.take()),
            [
                "1533226488301000 Vehicle.Speed Number(87.2)",
                "1533226488301000 Vehicle.Acceleration.Longitudinal Number(0.0)",
                "1533226488301000 Vehicle.IsMoving Flag(true)",
            ]
        );
        telemetry.moment(1_500);
        telemetry.text("a", "say \"no\"\\\n\u{1}");
        telemetry.moment(3_000);
        telemetry.list("b", ["P0301", "U0121"].into_iter());
        telemetry.exact("c", 48.775_812_345);
        assert_eq!(
            decoded(&telemetry.take()),
            [
                r#"1500 a Text("say \"no\"\\\n\u{1}")"#,
                r#"3000 b Text("[\"P0301\",\"U0121\"]")"#,
                "3000 c Number(48.775812345)",
            ]
        );
        assert!(telemetry.is_empty());
        assert_eq!(&telemetry.take()[..], b"[]");
    }

    #[test]
    fn topics_lie_below_the_vehicle() {
        for channel in Channel::ALL {
            let topic = channel.topic("car-1");
            let levels: Vec<_> = topic.split('/').collect();
            assert_eq!(levels.len(), 5, "{topic}");
            assert_eq!((levels[0], levels[3]), ("dt", "car-1"));
        }
    }
}
