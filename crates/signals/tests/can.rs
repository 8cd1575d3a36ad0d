//! CAN: DBC files decoded as written, damaged input refused, framing there and back.

use proptest::prelude::*;
use signals::can::{DbcError, DbcProblem, Decoded, decode_frames, encode_frames};
use signals::timestamp::PLAUSIBLE;
use signals::{CanData, CanDecoder, CanFrame, CanId, Mapping, Reading, Value, candump};

fn frame(id: CanId, data: &[u8]) -> CanFrame {
    CanFrame {
        time_us: 7,
        bus: 0,
        id,
        data: CanData::new(data).expect("a length that frames have"),
    }
}

fn standard(id: u16, data: &[u8]) -> CanFrame {
    frame(CanId::Standard(id), data)
}

fn decoder(messages: &str) -> CanDecoder {
    CanDecoder::new(&format!("VERSION \"\"\n\nBU_:\n\n{messages}"), None).expect("a good DBC")
}

fn shown(readings: &[Reading]) -> String {
    let one = |reading: &Reading| {
        let value = match &reading.value {
            Value::Number(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
            Value::Text(text) => format!("'{text}'"),
        };
        format!("{}={value}", reading.signal)
    };
    readings.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn decode(decoder: &CanDecoder, frame: &CanFrame) -> String {
    let mut out = Vec::new();
    decoder.decode(frame, &mut out);
    shown(&out)
}

#[test]
fn integers_floats_signs_and_byte_orders_are_read_as_the_dbc_says() {
    let decoder = decoder(concat!(
        "BO_ 16 M: 8 X\n",
        " SG_ IntelByte : 0|8@1+ (1,0) [0|0] \"\" X\n",
        " SG_ IntelSigned : 4|12@1- (0.5,10) [0|0] \"\" X\n",
        " SG_ MotorolaSigned : 3|12@0- (1.5,0) [0|0] \"deg\" X\n",
        " SG_ Motorola : 7|16@0+ (0.01,-67.67) [0|0] \"km/h\" X\n",
        "\n",
        "BO_ 17 F: 8 X\n",
        " SG_ Float : 0|32@1- (2,1) [0|0] \"\" X\n",
        " SG_ FloatBig : 39|32@0- (1,0) [0|0] \"\" X\n",
        "\n",
        "BO_ 18 D: 8 X\n",
        " SG_ Double : 0|64@1- (1,0) [0|0] \"\" X\n",
        "\n",
        "SIG_VALTYPE_ 17 Float : 1;\n",
        "SIG_VALTYPE_ 17 FloatBig : 1;\n",
        "SIG_VALTYPE_ 18 Double : 2;\n",
    ));
    assert_eq!(
        decode(&decoder, &standard(16, &[0x2F, 0xFE, 0, 0, 0, 0, 0, 0])),
        "M.IntelByte=47 M.IntelSigned=-5 M.MotorolaSigned=-3 M.Motorola=55.19"
    );
    let mut data = [0; 8];
    data[..4].copy_from_slice(&1.25_f32.to_le_bytes());
    data[4..].copy_from_slice(&(-2.5_f32).to_be_bytes());
    assert_eq!(
        decode(&decoder, &standard(17, &data)),
        "F.Float=3.5 F.FloatBig=-2.5"
    );
    let data = 0.1_f64.to_le_bytes();
    assert_eq!(decode(&decoder, &standard(18, &data)), "D.Double=0.1");
    // What a table cannot hold makes no reading.
    assert_eq!(decode(&decoder, &standard(18, &f64::NAN.to_le_bytes())), "");
    assert_eq!(
        decode(&decoder, &standard(18, &f64::INFINITY.to_le_bytes())),
        ""
    );
}

#[test]
fn the_last_bytes_of_a_can_fd_frame_are_read() {
    let decoder = decoder(concat!(
        "BO_ 16 FD: 64 X\n",
        " SG_ First : 0|8@1+ (1,0) [0|0] \"\" X\n",
        " SG_ Last : 496|16@1+ (1,0) [0|0] \"\" X\n",
    ));
    let mut data = [0; 64];
    data[0] = 1;
    data[62..].copy_from_slice(&[0x34, 0x12]);
    assert_eq!(
        decode(&decoder, &standard(16, &data)),
        "FD.First=1 FD.Last=4660"
    );

    let mut out = Vec::new();
    let decoded = decoder.decode(&standard(16, &data[..48]), &mut out);
    assert_eq!(
        decoded,
        Decoded::Known {
            readings: 1,
            cut_short: 1
        }
    );
    assert_eq!(shown(&out), "FD.First=1");
}

#[test]
fn a_message_the_dbc_does_not_know_is_said_to_be_unknown() {
    let decoder = decoder("BO_ 16 M: 8 X\n SG_ S : 0|8@1+ (1,0) [0|0] \"\" X\n");
    let frames = [
        standard(16, &[1]),
        standard(17, &[1]),
        frame(CanId::Extended(16), &[1]), // the same number is another message
        standard(16, &[]),
    ];
    let mut out = Vec::new();
    let summary = decoder.decode_all(&frames, &mut out);
    assert_eq!(
        (summary.frames, summary.unknown, summary.cut_short),
        (4, 2, 1)
    );
    assert_eq!(shown(&out), "M.S=1");
    assert_eq!(out[0].time_us, 7);
}

#[test]
fn multiplexed_signals_are_there_only_when_selected() {
    let decoder = decoder(concat!(
        "BO_ 16 M: 8 X\n",
        " SG_ Always : 56|8@1+ (1,0) [0|0] \"\" X\n",
        " SG_ Mode M : 0|8@1+ (1,0) [0|0] \"\" X\n",
        " SG_ InZero m0 : 8|8@1+ (1,0) [0|0] \"\" X\n",
        " SG_ InOne m1 : 8|8@1- (1,0) [0|0] \"\" X\n",
    ));
    let read = |mode| decode(&decoder, &standard(16, &[mode, 200, 0, 0, 0, 0, 0, 9]));
    assert_eq!(read(0), "M.Always=9 M.Mode=0 M.InZero=200");
    assert_eq!(read(1), "M.Always=9 M.Mode=1 M.InOne=-56");
    assert_eq!(read(2), "M.Always=9 M.Mode=2");
}

#[test]
fn extended_multiplexing_nests_and_takes_ranges() {
    let decoder = decoder(concat!(
        "BO_ 16 M: 8 X\n",
        " SG_ Outer M : 0|8@1+ (1,0) [0|0] \"\" X\n",
        " SG_ Inner m1M : 8|8@1+ (1,0) [0|0] \"\" X\n",
        " SG_ Deep m2 : 16|8@1+ (1,0) [0|0] \"\" X\n",
        " SG_ Ranged m3 : 24|8@1+ (1,0) [0|0] \"\" X\n",
        "\n",
        "SG_MUL_VAL_ 16 Inner Outer 1-1;\n",
        "SG_MUL_VAL_ 16 Deep Inner 2-2;\n",
        "SG_MUL_VAL_ 16 Ranged Outer 3-5, 9-9;\n",
    ));
    let read = |outer, inner| decode(&decoder, &standard(16, &[outer, inner, 7, 8, 0, 0, 0, 0]));
    assert_eq!(read(1, 2), "M.Outer=1 M.Inner=2 M.Deep=7");
    assert_eq!(read(1, 3), "M.Outer=1 M.Inner=3");
    assert_eq!(read(0, 2), "M.Outer=0"); // the inner multiplexor is not selected, so nothing below it is
    assert_eq!(read(4, 2), "M.Outer=4 M.Ranged=8");
    assert_eq!(read(9, 0), "M.Outer=9 M.Ranged=8");
    assert_eq!(read(6, 0), "M.Outer=6");
}

const TRUCK: &str = concat!(
    "VERSION \"\"\n\nBU_:\n\n",
    "BO_ 2364540158 EEC1: 8 X\n",
    " SG_ EngineSpeed : 24|16@1+ (0.125,0) [0|8031.875] \"rpm\" X\n",
    "\n",
    "BO_ 2566844926 CCVS1: 8 X\n",
    " SG_ WheelBasedVehicleSpeed : 8|16@1+ (0.00390625,0) [0|250.996] \"km/h\" X\n",
    "\n",
    "BO_ 2348810494 TSC1: 8 X\n",
    " SG_ Mode : 0|2@1+ (1,0) [0|3] \"\" X\n",
    "\n",
    "BA_DEF_ BO_ \"VFrameFormat\" ENUM \"StandardCAN\",\"ExtendedCAN\",\"reserved\",\"J1939PG\";\n",
    "BA_DEF_DEF_ \"VFrameFormat\" \"J1939PG\";\n",
    "BA_ \"VFrameFormat\" BO_ 2364540158 3;\n",
    "BA_ \"VFrameFormat\" BO_ 2566844926 3;\n",
);

#[test]
fn j1939_messages_are_known_by_their_parameter_group() {
    let decoder = CanDecoder::new(TRUCK, Some(Mapping::builtin())).expect("a good DBC");
    let rows = [
        // Another source and priority than in the DBC.
        (
            0x0CF0_0400,
            [0xFF, 0xFF, 0xFF, 0x40, 0x1F, 0xFF, 0xFF, 0xFF],
            "Vehicle.Powertrain.CombustionEngine.Speed=1000",
        ),
        (
            0x18FE_F100,
            [0xFF, 0x00, 0x50, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
            "Vehicle.Speed=80",
        ),
        // PDU1 (TSC1, group 0): the destination address varies.
        (0x0C00_0021, [0x01, 0, 0, 0, 0, 0, 0, 0], "TSC1.Mode=1"),
        (0x0C00_FF03, [0x01, 0, 0, 0, 0, 0, 0, 0], "TSC1.Mode=1"),
        // Another group.
        (0x18FE_F200, [0; 8], ""),
        // Not available, error, and the greatest value there is.
        (0x0CF0_0400, [0, 0, 0, 0xFF, 0xFF, 0, 0, 0], ""),
        (0x0CF0_0400, [0, 0, 0, 0x00, 0xFE, 0, 0, 0], ""),
        (
            0x0CF0_0400,
            [0, 0, 0, 0xFF, 0xFA, 0, 0, 0],
            "Vehicle.Powertrain.CombustionEngine.Speed=8031.875",
        ),
        (0x0C00_FF03, [0x03, 0, 0, 0, 0, 0, 0, 0], ""),
    ];
    for (id, data, expected) in rows {
        assert_eq!(
            decode(&decoder, &frame(CanId::Extended(id), &data)),
            expected,
            "{id:08X}"
        );
    }
    assert_eq!(decode(&decoder, &standard(0x400, &[0; 8])), "");
}

#[test]
fn of_two_sources_of_a_group_each_is_decoded_by_its_own_message() {
    let dbc = concat!(
        "BO_ 2364539904 EEC1_A: 8 X\n SG_ S : 0|8@1+ (1,0) [0|0] \"\" X\n\n", // 0CF00400
        "BO_ 2364539907 EEC1_B: 8 X\n SG_ S : 0|8@1+ (1,0) [0|0] \"\" X\n\n", // 0CF00403
        "BA_DEF_ \"ProtocolType\" STRING ;\n",
        "BA_ \"ProtocolType\" \"J1939\";\n",
    );
    let decoder = decoder(dbc);
    let read = |id| decode(&decoder, &frame(CanId::Extended(id), &[5; 8]));
    assert_eq!(read(0x0CF0_0400), "EEC1_A.S=5");
    assert_eq!(read(0x18F0_0403), "EEC1_B.S=5"); // other priority
    assert_eq!(read(0x0CF0_0421), "EEC1_A.S=5"); // other source: the first there is
}

#[test]
fn without_the_j1939_mark_only_the_exact_identifier_counts() {
    let decoder = decoder("BO_ 2364540158 EEC1: 8 X\n SG_ S : 0|8@1+ (1,0) [0|0] \"\" X\n");
    assert_eq!(
        decode(&decoder, &frame(CanId::Extended(0x0CF0_04FE), &[255])),
        "EEC1.S=255"
    );
    assert_eq!(
        decode(&decoder, &frame(CanId::Extended(0x0CF0_0400), &[5])),
        ""
    );
}

#[test]
fn a_mapping_names_adds_scales_and_translates() {
    let mapping = Mapping::parse(
        r#"
        [[signal]]
        dbc = "M.Coarse"
        vss = "Vehicle.Angle"
        plus = ["M.Fine", "M.NotInThisDbc"]
        scale = -1
        [[signal]]
        dbc = "M.Light"
        vss = "Vehicle.Left"
        values = { 1 = true, 2 = false, 3 = false }
        [[signal]]
        dbc = "M.Light"
        vss = "Vehicle.Right"
        values = { 1 = false, 2 = true, 3 = false }
        [[signal]]
        dbc = "M.Speed"
        vss = "Vehicle.Speed"
        unit = "km/h"
        [[signal]]
        dbc = "Other.Signal"
        vss = "Vehicle.Other"
        "#,
    )
    .expect("a good mapping");
    let dbc = concat!(
        "BO_ 16 M: 8 X\n",
        " SG_ Coarse : 0|8@1- (1.5,0) [0|0] \"deg\" X\n",
        " SG_ Fine : 8|8@1- (0.25,0) [0|0] \"deg\" X\n",
        " SG_ Light : 16|8@1+ (1,0) [0|0] \"\" X\n",
        " SG_ Speed : 24|8@1+ (1,0) [0|0] \"mph\" X\n",
        "\n",
        "CM_ SG_ 16 Speed \"As shown.\";\n",
        "VAL_ 16 Speed 255 \"broken\" 0 \"stands\";\n",
    );
    let decoder = CanDecoder::new(dbc, Some(&mapping)).expect("a good DBC");
    assert_eq!(
        decode(&decoder, &standard(16, &[2, 1, 2, 50])),
        "Vehicle.Angle=-3.25 Vehicle.Left=false Vehicle.Right=true M.Speed=50"
    );
    // A number that the table does not list makes no reading.
    assert_eq!(
        decode(&decoder, &standard(16, &[2, 1, 0, 50])),
        "Vehicle.Angle=-3.25 M.Speed=50"
    );

    let listed: Vec<_> = decoder.catalogue().iter().collect();
    let [(name, info)] = listed[..] else {
        panic!("one signal keeps its name: {listed:?}");
    };
    assert_eq!((name, info.unit.as_deref()), ("M.Speed", Some("mph")));
    assert_eq!(info.description, "As shown.");
    assert_eq!(info.words[&255], "broken");
}

#[test]
fn a_wrong_dbc_is_refused_with_the_place_and_the_remedy() {
    let signal = |text: &str| format!("BO_ 16 M: 8 X\n SG_ {text} (1,0) [0|0] \"\" X\n");
    let rows = [
        (String::new(), "defines no message"),
        ("hello".to_owned(), "cannot be parsed"),
        (
            "BO_ 217056510 EEC1: 8 X\n".to_owned(),
            "message EEC1 has identifier 217056510",
        ),
        (
            "BO_ 16 A: 8 X\n\nBO_ 16 B: 8 X\n".to_owned(),
            "messages A and B both have identifier 010",
        ),
        (signal("S : 0|65@1+"), "signal M.S: it has 65 bits"),
        (signal("S : 0|0@1+"), "signal M.S: it has 0 bits"),
        (signal("S m0 : 0|8@1+"), "the message has no multiplexor"),
        (
            format!("{}\nSIG_VALTYPE_ 16 S : 1;\n", signal("S : 0|16@1-")),
            "needs 32 bits, but it has 16",
        ),
        (
            format!(
                "{} SG_ B m1M : 8|8@1+ (1,0) [0|0] \"\" X\n\nSG_MUL_VAL_ 16 A B 0-0;\nSG_MUL_VAL_ 16 B A 0-0;\n",
                signal("A m0M : 0|8@1+")
            ),
            "select each other in a circle",
        ),
        (
            format!(
                "{} SG_ S m0 : 8|8@1+ (1,0) [0|0] \"\" X\n\nSG_MUL_VAL_ 16 S Gone 0-0;\n",
                signal("A M : 0|8@1+")
            ),
            "names Gone, which the message does not have",
        ),
        (
            format!(
                "{} SG_ B M : 8|8@1+ (1,0) [0|0] \"\" X\n SG_ S m0 : 16|8@1+ (1,0) [0|0] \"\" X\n",
                signal("A M : 0|8@1+")
            ),
            "several multiplexors",
        ),
    ];
    for (dbc, expected) in rows {
        let error = CanDecoder::new(&dbc, None).expect_err(&dbc).to_string();
        assert!(error.contains(expected), "{dbc}\n  {error}");
    }
    let error = CanDecoder::new(&signal("S : 0|65@1+"), None).expect_err("65 bits");
    assert!(matches!(
        error,
        DbcError::Signal {
            problem: DbcProblem::Length(65),
            ..
        }
    ));
}

#[test]
fn signals_beyond_any_frame_are_passed_over_and_said_to_be() {
    let decoder = decoder(concat!(
        "BO_ 2566844926 Long: 100 X\n",
        " SG_ Here : 0|8@1+ (1,0) [0|0] \"\" X\n",
        " SG_ There : 600|8@1+ (1,0) [0|0] \"\" X\n",
    ));
    assert_eq!(decoder.passed_over(), ["Long.There"]);
    assert_eq!(
        decode(&decoder, &frame(CanId::Extended(0x18FE_F1FE), &[3])),
        "Long.Here=3"
    );
}

fn any_frame() -> impl Strategy<Value = CanFrame> {
    let id = prop_oneof![
        (0..=CanId::MAX_STANDARD).prop_map(CanId::Standard),
        (0..=CanId::MAX_EXTENDED).prop_map(CanId::Extended),
    ];
    let len = prop::sample::select(vec![
        0_usize, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64,
    ]);
    let data = len.prop_flat_map(|len| prop::collection::vec(any::<u8>(), len));
    (PLAUSIBLE, any::<u8>(), id, data).prop_map(|(time_us, bus, id, data)| CanFrame {
        time_us,
        bus,
        id,
        data: CanData::new(&data).expect("a length that frames have"),
    })
}

proptest! {
    #[test]
    fn frames_come_back_as_they_were(frames in prop::collection::vec(any_frame(), 0..50)) {
        let bytes = encode_frames(&frames).expect("encodes");
        prop_assert_eq!(decode_frames(&bytes).expect("decodes"), frames);
    }

    #[test]
    fn no_bytes_make_the_framing_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_frames(&bytes);
        let mut versioned = bytes;
        versioned.insert(0, 1);
        let _ = decode_frames(&versioned);
    }

    #[test]
    fn damage_is_noticed_or_harmless(frames in prop::collection::vec(any_frame(), 1..20), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encode_frames(&frames).expect("encodes");
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(found) = decode_frames(&bytes) {
            prop_assert_eq!(found.len(), frames.len());
        }
    }

    #[test]
    fn no_line_makes_the_log_reader_panic(line in "\\PC{0,60}") {
        let _ = candump::frame(&line);
    }

    #[test]
    fn nearly_right_lines_do_not_make_it_panic(line in "\\([0-9]{0,12}[.,]?[0-9]{0,8}\\) [a-zé]{0,5}[0-9]{0,4} [0-9A-G]{0,9}#{0,2}[0-9A-Fé_R]{0,20}( [RT])?") {
        let _ = candump::frame(&line);
    }

    #[test]
    fn logged_frames_come_back(frame in any_frame()) {
        let data = format!("{:?}", frame.data);
        let fd = if frame.data.len() > 8 { "#0" } else { "" };
        let (seconds, fraction) = (frame.time_us / 1_000_000, frame.time_us % 1_000_000);
        let line = format!("({seconds}.{fraction:06}) can{} {}#{fd}{data}", frame.bus, frame.id);
        // Bit 29 of an extended identifier marks SocketCAN's error frames, and `MAX_EXTENDED` excludes it.
        prop_assert_eq!(candump::frame(&line), Ok(Some(frame)));
    }

    #[test]
    fn no_text_makes_the_dbc_reader_panic(text in "(BO_|SG_|VAL_|SG_MUL_VAL_|[0-9 :|@+\\-(),\\[\\]\"M\n]|[a-z]){0,60}") {
        let _ = CanDecoder::new(&text, None);
    }
}
