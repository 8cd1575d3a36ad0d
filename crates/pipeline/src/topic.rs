//! Uplink topics: `dt/{application}/{context}/{vehicle}/{type…}`.

/// The parts of an uplink topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topic<'a> {
    /// The application that the data belongs to (`telemetry`, `adas`).
    pub application: &'a str,
    /// The application's own division (`eu`, `prod`, `v2`).
    pub context: &'a str,
    /// The vehicle.
    pub vehicle: &'a str,
    /// What kind of message it is: the rest of the topic, one level or more (`signals`, `events/door`).
    pub kind: &'a str,
}

impl<'a> Topic<'a> {
    /// Takes an uplink topic apart; `None` if it is none: another tree, too few levels, or an empty level.
    #[must_use]
    pub fn parse(topic: &'a str) -> Option<Topic<'a>> {
        let rest = topic.strip_prefix("dt/")?;
        let (application, rest) = rest.split_once('/')?;
        let (context, rest) = rest.split_once('/')?;
        let (vehicle, kind) = rest.split_once('/')?;
        let named = !application.is_empty() && !context.is_empty() && !vehicle.is_empty();
        let kind_is_whole = !kind.split('/').any(str::is_empty);
        (named && kind_is_whole).then_some(Topic {
            application,
            context,
            vehicle,
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_taken_apart_or_are_none_of_ours() {
        let rows = [
            (
                "dt/telemetry/prod/car-1/signals",
                Some(("telemetry", "prod", "car-1", "signals")),
            ),
            ("dt/a/b/c/d/e/f", Some(("a", "b", "c", "d/e/f"))),
            ("dt/a/b/c", None),
            ("dt/a/b/c/", None),
            ("dt/a/b/c/d/", None),
            ("dt/a/b/c//d", None),
            ("dt//b/c/d", None),
            ("dt/a//c/d", None),
            ("dt/a/b//d", None),
            ("/dt/a/b/c/d", None),
            ("DT/a/b/c/d", None),
            ("bc/a/b/c/d", None),
            ("$milepost/dt/a/b/c/d", None),
            ("dt", None),
            ("", None),
        ];
        for (topic, expected) in rows {
            let found =
                Topic::parse(topic).map(|it| (it.application, it.context, it.vehicle, it.kind));
            assert_eq!(found, expected, "{topic}");
        }
    }
}
