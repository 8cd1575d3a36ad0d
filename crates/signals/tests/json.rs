//! JSON telemetry: what is read, what is refused and with which words.

use proptest::prelude::*;
use signals::{
    DecodeError, Limit, MAX_NAME_BYTES, MAX_READINGS, MAX_VALUE_DEPTH, Reading, Value, decode_json,
};

const RECEIVED: i64 = 1_700_000_000_000_000;

fn decode(payload: &str) -> Result<Vec<Reading>, DecodeError> {
    let mut out = Vec::new();
    decode_json(payload.as_bytes(), RECEIVED, &mut out).map(|()| out)
}

/// Readings as `name@time=value` with the time relative to the receipt where it is the time of receipt.
fn shown(readings: &[Reading]) -> String {
    let one = |reading: &Reading| {
        let time = match reading.time_us {
            RECEIVED => "received".to_owned(),
            other => other.to_string(),
        };
        let value = match &reading.value {
            Value::Number(number) => format!("{number}"),
            Value::Flag(flag) => format!("{flag}"),
            Value::Text(text) => format!("'{text}'"),
        };
        format!("{}@{time}={value}", reading.signal)
    };
    readings.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn what_is_read() {
    let rows = [
        // Native: times.
        (r#"{"signals": {"A": 1}}"#, "A@received=1"),
        (
            r#"{"time": 1533226488301, "signals": {"A": 1}}"#,
            "A@1533226488301000=1",
        ),
        (
            r#"{"time": 1533226488301.25, "signals": {"A": 1}}"#,
            "A@1533226488301250=1",
        ),
        (
            r#"{"time": "2018-08-02T18:14:48.301+02:00", "signals": {"A": 1}}"#,
            "A@1533226488301000=1",
        ),
        (r#"{"signals": {"A": 1, "B": 2}, "time": 0}"#, "A@0=1 B@0=2"),
        // Native: values.
        (
            r#"{"signals": {"A": -0.5e1, "B": true, "C": false, "D": "x\u00e9\n", "E": null}}"#,
            "A@received=-5 B@received=true C@received=false D@received='xé\n'",
        ),
        (
            r#"{"signals": {"A": "12", "B": "true"}}"#,
            "A@received='12' B@received='true'",
        ),
        (
            r#"{"signals": {"A": [ 1, 2.5, "x\"", [], null, true, {} ], "B": {"k" : [1], "l": -1}}}"#,
            r#"A@received='[1,2.5,"x\"",[],null,true,{}]' B@received='{"k":[1],"l":-1}'"#,
        ),
        (r#"{"signals": {}}"#, ""),
        (
            r#"{"signals": {"A": 18446744073709551615, "B": -9223372036854775808}}"#,
            "A@received=18446744073709552000 B@received=-9223372036854776000",
        ),
        // Native: arrays of messages.
        (
            r#"[{"time": 1, "signals": {"A": 1}}, {"signals": {"A": 2}}, {"signals": {"A": 3}, "time": 2}]"#,
            "A@1000=1 A@received=2 A@2000=3",
        ),
        ("[]", ""),
        // VISS.
        (
            r#"{"values": [{"path": "A", "dp": [{"value": "87.2", "ts": "2018-08-02T16:14:48.301Z"}, {"value": "88", "ts": 1000}]},
                        {"path": "B", "dp": [{"value": "true"}]}]}"#,
            "A@1533226488301000=87.2 A@1000000=88 B@received=true",
        ),
        (
            r#"{"values": [{"dp": [{"ts": 1, "value": 1}], "path": "A"}, {"dp": [{"ts": 1, "value": 2}], "path": "B"}]}"#,
            "A@1000=1 B@1000=2",
        ),
        (
            r#"{"values": {"path": "A", "dp": {"value": "1"}}}"#,
            "A@received=1",
        ),
        (
            r#"{"path": "A", "dp": {"value": "1", "ts": 5}}"#,
            "A@5000=1",
        ),
        (
            r#"{"dp": [{"value": "1"}, {"value": "2"}], "path": "A", "ts": 7}"#,
            "A@7000=1 A@7000=2",
        ),
        (
            r#"[{"path": "A", "dp": {"value": "1"}}, {"signals": {"B": 1}}]"#,
            "A@received=1 B@received=1",
        ),
        (
            r#"{"action": "subscription", "subscriptionId": "x", "requestId": [1], "ts": "1970-01-01T00:00:01Z",
             "data": {"path": "A", "dp": {"value": "OFF"}}}"#,
            "A@1000000='OFF'",
        ),
        (r#"{"values": []}"#, ""),
        (r#"{"values": [{"path": "A", "dp": []}]}"#, ""),
        (r#"{"values": [{"path": "A", "dp": {"value": null}}]}"#, ""),
        // Escaped names are names.
        (r#"{"\u0073ignals": {"\u0041": 1}}"#, "A@received=1"),
    ];
    for (payload, expected) in rows {
        let readings = decode(payload).unwrap_or_else(|error| panic!("{payload}: {error}"));
        assert_eq!(shown(&readings), expected, "{payload}");
    }
}

#[test]
fn strings_of_viss_are_numbers_only_where_json_says_so() {
    let rows = [
        ("0", "0"),
        ("-1.5e3", "-1500"),
        ("1E2", "100"),
        ("true", "true"),
        ("false", "false"),
        ("007", "'007'"),
        ("+1", "'+1'"),
        ("1.", "'1.'"),
        (".5", "'.5'"),
        ("0x10", "'0x10'"),
        ("inf", "'inf'"),
        ("NaN", "'NaN'"),
        ("1e999", "'1e999'"),
        ("1 ", "'1 '"),
        (" 1", "' 1'"),
        ("1 2", "'1 2'"),
        ("-", "'-'"),
        ("", "''"),
        ("True", "'True'"),
        ("null", "'null'"),
        ("[1]", "'[1]'"),
    ];
    for (value, expected) in rows {
        let payload = format!(r#"{{"path": "A", "dp": {{"value": "{value}"}}}}"#);
        let readings = decode(&payload).expect(value);
        assert_eq!(
            shown(&readings),
            format!("A@received={expected}"),
            "{value}"
        );
    }
}

#[test]
fn what_is_refused_names_the_place_and_the_remedy() {
    let long = format!(
        r#"{{"signals": {{"{}": 1}}}}"#,
        "x".repeat(MAX_NAME_BYTES + 1)
    );
    let rows = [
        // Not JSON.
        ("", "payload: not JSON"),
        ("hello", "payload: not JSON"),
        (r#"{"signals": {"A": 1}"#, "payload: not JSON"),
        (r#"{"signals": {"A": 1"#, "signals: not JSON"),
        (r#"{"signals": {"A": "x"#, "signals.A: not JSON"),
        (r#"{"signals": {"A": 1}} x"#, "payload: not JSON"),
        (r#"{"signals": {"A": NaN}}"#, "signals.A: not JSON"),
        (r#"{"signals": {"A": 1e999}}"#, "signals.A: not JSON"),
        (r#"{"signals": {"A": 01}}"#, "signals.A: not JSON"),
        // Not our shape.
        (
            "1",
            "payload: invalid type: integer `1`, expected an object with `signals` or `values`",
        ),
        ("{}", "payload: nothing to read here; send `signals`"),
        ("[1]", "[0]: invalid type: integer `1`, expected an object"),
        ("[[]]", "[0]: invalid type: sequence"),
        (
            r#"{"signal": {"A": 1}}"#,
            "payload: unknown member `signal`; `time` and `signals`",
        ),
        (
            r#"{"signals": [1]}"#,
            "signals: invalid type: sequence, expected an object of signal names",
        ),
        (
            r#"{"signals": {"A": 1}, "signals": {"B": 1}}"#,
            "signals: `signals` is there already",
        ),
        (
            r#"{"signals": {"A": 1}, "values": []}"#,
            "values: `signals` is there already",
        ),
        (
            r#"{"signals": {"A": 1}, "path": "A"}"#,
            "payload: `path` belongs with `dp`",
        ),
        (
            r#"{"time": 1, "signals": {}, "time": 1}"#,
            "time: given twice",
        ),
        (r#"{"path": "A"}"#, "payload: missing field `dp`"),
        (r#"{"dp": []}"#, "payload: missing field `path`"),
        (
            r#"{"values": [{"path": "A"}]}"#,
            "values[0]: missing field `dp`",
        ),
        (
            r#"{"values": [{"dp": []}]}"#,
            "values[0]: missing field `path`",
        ),
        (
            r#"{"values": [{"path": "A", "dp": [{"ts": 1}]}]}"#,
            "values[0].dp[0]: missing field `value`",
        ),
        (
            r#"{"values": [{"path": "A", "dp": [{"value": 1, "x": 1}]}]}"#,
            "values[0].dp[0]: unknown field `x`, expected `value` or `ts`",
        ),
        (
            r#"{"values": [{"path": 5}]}"#,
            "values[0].path: invalid type: integer `5`, expected a signal's name",
        ),
        (
            r#"{"values": "x"}"#,
            "values: invalid type: string \"x\", expected an object with `path` and `dp`",
        ),
        // Times.
        (
            r#"{"values": [{"path": "A", "dp": [{"value": "1"}]}, {"path": "A", "dp": [{"value": "1"}, {"value": "1", "ts": "noon"}]}]}"#,
            "values[1].dp[1].ts: `noon` is no RFC 3339 time; send e.g.",
        ),
        (
            r#"{"time": "2018-08-02T16:14:48", "signals": {}}"#,
            "time: `2018-08-02T16:14:48` is no RFC 3339 time",
        ),
        (
            r#"{"time": -1, "signals": {}}"#,
            "time: -1 is not between 1970 and 2100; numbers are milliseconds",
        ),
        (
            r#"{"time": 1533226488301000, "signals": {}}"#,
            "time: 1533226488301000 is not between 1970 and 2100",
        ),
        (
            r#"{"time": 18446744073709551615, "signals": {}}"#,
            "is not between 1970 and 2100",
        ),
        (
            r#"{"time": 1e300, "signals": {}}"#,
            "is not between 1970 and 2100",
        ),
        (
            r#"{"time": "9999-01-01T00:00:00Z", "signals": {}}"#,
            "is not between 1970 and 2100",
        ),
        (
            r#"{"time": null, "signals": {}}"#,
            "time: invalid type: null, expected a time",
        ),
        // Names.
        (r#"{"signals": {"": 1}}"#, "signals: `` is no signal name"),
        (
            r#"{"signals": {"A\u0000": 1}}"#,
            r"signals: `A\0` is no signal name",
        ),
        (
            &long,
            "the signal's name has more than 256 bytes; send a VSS path",
        ),
    ];
    for (payload, expected) in rows {
        let error = decode(payload).expect_err(payload).to_string();
        assert!(
            error.contains(expected),
            "{payload}\n  {error}\n  {expected}"
        );
        assert!(error.len() < 400, "{payload}: {error}");
    }
}

#[test]
fn an_empty_name_stays_refused_after_readings_that_waited_for_theirs() {
    decode(r#"{"dp": {"value": "1"}, "path": "A"}"#).expect("decodes");
    decode(r#"{"signals": {"": 1}}"#).expect_err("no name");
    decode(r#"{"dp": {"value": "1"}, "path": ""}"#).expect_err("no name");
}

#[test]
fn a_payload_is_not_quoted_at_length() {
    let long = "é".repeat(100_000);
    for payload in [
        format!(r#"{{"values": "{long}"}}"#),
        format!(r#"{{"{long}": 1}}"#),
        format!(r#"{{"time": "{long}"}}"#),
        format!(r#"{{"values": [{{"{long}": 1}}]}}"#),
        format!(r#"{{"signals": {{"{long}": 1}}}}"#),
    ] {
        let error = decode(&payload).expect_err("wrong").to_string();
        assert!(error.chars().count() < 450, "{}", error.len());
    }
}

#[test]
fn after_an_error_nothing_of_the_payload_is_kept() {
    let mut out = decode(r#"{"signals": {"Earlier": 1}}"#).expect("decodes");
    let payload = br#"[{"signals": {"A": 1, "B": 2}}, {"signals": {"C": 3, "D": }}]"#;
    decode_json(payload, RECEIVED, &mut out).expect_err("broken");
    assert_eq!(shown(&out), "Earlier@received=1");
}

#[test]
fn names_are_shared_between_payloads() {
    let first = decode(r#"{"signals": {"Vehicle.Speed": 1}}"#).expect("decodes");
    let second = decode(r#"{"path": "Vehicle.Speed", "dp": {"value": "2"}}"#).expect("decodes");
    assert!(std::sync::Arc::ptr_eq(&first[0].signal, &second[0].signal));
}

#[test]
fn each_limit_is_refused_by_its_name() {
    let readings = |count: usize| {
        let all = (0..count).map(|n| format!("\"s{}\":1", n % 100));
        format!("{{\"signals\":{{{}}}}}", all.collect::<Vec<_>>().join(","))
    };
    assert_eq!(
        decode(&readings(MAX_READINGS)).expect("fits").len(),
        MAX_READINGS
    );
    let error = decode(&readings(MAX_READINGS + 1)).expect_err("one more");
    let DecodeError::Limit {
        limit: Limit::Readings,
        ..
    } = error
    else {
        panic!("{error}");
    };

    // The limit is the payload's, not that of a vector that collects many.
    let mut out = decode(&readings(MAX_READINGS)).expect("fits");
    decode_json(b"{\"signals\":{\"A\":1}}", RECEIVED, &mut out).expect("another payload");

    let nested = |depth: usize| {
        format!(
            "{{\"signals\":{{\"A\":{}{}}}}}",
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    decode(&nested(MAX_VALUE_DEPTH)).expect("deep enough");
    for depth in [MAX_VALUE_DEPTH + 1, 100, 100_000] {
        let error = decode(&nested(depth)).expect_err("too deep");
        let DecodeError::Limit {
            place,
            limit: Limit::ValueDepth,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(place, "signals.A");
    }
    // Depth where no value is expected is no danger either.
    decode(&"[".repeat(100_000)).expect_err("too deep");
    decode(&format!("{{\"action\":{}", "[".repeat(100_000))).expect_err("too deep");

    let name = "x".repeat(MAX_NAME_BYTES);
    decode(&format!("{{\"signals\":{{\"{name}\":1}}}}")).expect("long enough");
}

/// A value as JSON, and as it must come back.
fn any_value() -> impl Strategy<Value = (serde_json::Value, Value)> {
    prop_oneof![
        any::<bool>().prop_map(|flag| (flag.into(), Value::Flag(flag))),
        // Fifteen digits, which is what survives; see the module's documentation.
        (-999_999_999_999_999_i64..=999_999_999_999_999, 0..10).prop_map(|(digits, places)| {
            let number = digits as f64 / 10_f64.powi(places);
            (number.into(), Value::Number(number))
        }),
        any::<i32>().prop_map(|number| (number.into(), Value::Number(f64::from(number)))),
        ".{0,20}".prop_map(|text| (text.clone().into(), Value::from(&*text))),
        prop::collection::vec(any::<i16>(), 0..4).prop_map(|list| {
            let json = serde_json::Value::from(list);
            let text = json.to_string();
            (json, Value::from(&*text))
        }),
    ]
}

proptest! {
    #[test]
    fn whatever_is_sent_natively_comes_back(
        time_ms in 0_i64..4_102_444_800_000,
        sent in prop::collection::vec(("[A-Za-z0-9._é]{1,40}", any_value()), 0..20),
    ) {
        let members = sent.iter().map(|(name, (json, _))| format!("{}:{json}", serde_json::json!(name)));
        let payload = format!("{{\"signals\":{{{}}},\"time\":{time_ms}}}", members.collect::<Vec<_>>().join(","));
        let found = decode(&payload).expect("decodes");
        prop_assert_eq!(found.len(), sent.len());
        for (reading, (name, (_, value))) in found.iter().zip(&sent) {
            prop_assert_eq!(&*reading.signal, name.as_str());
            prop_assert_eq!(reading.time_us, time_ms * 1_000);
            prop_assert_eq!(&reading.value, value);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut out = Vec::new();
        let _ = decode_json(&bytes, RECEIVED, &mut out);
    }

    #[test]
    fn no_damage_to_a_payload_makes_it_panic_or_leaves_anything_behind(
        at in 0_usize..200,
        byte in any::<u8>(),
        cut in 0_usize..200,
    ) {
        let mut payload = br#"[{"time":"2018-08-02T16:14:48.301Z","signals":{"A":1,"B":[1,{"x":"y"}],"C":"z"}},{"values":[{"path":"D","dp":[{"value":"1","ts":"2018-08-02T16:14:48Z"}]}]}]"#.to_vec();
        let at = at % payload.len();
        payload[at] = byte;
        payload.truncate(cut.max(1));
        let mut out = Vec::new();
        match decode_json(&payload, RECEIVED, &mut out) {
            Ok(()) => prop_assert!(out.iter().all(|reading| reading.time_us >= 0 && !reading.signal.is_empty())),
            Err(error) => {
                prop_assert!(out.is_empty());
                prop_assert!(error.to_string().len() < 500);
            }
        }
    }
}
