//! What a message costs between broker and lake, on one core, without log and lake:
//! `cargo run -p pipeline --release --example rate`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use eventlog::{Offset, Record};
use pipeline::{Incoming, Processor, route};
use signals::can::encode_frames;
use signals::{CAN_CONTENT_TYPE, CanData, CanDecoder, CanFrame, CanId, Mapping};

const DBC: &str = concat!(
    "BO_ 170 WHEEL_SPEEDS: 8 X\n",
    " SG_ WHEEL_SPEED_FR : 7|16@0+ (0.01,-67.67) [0|250] \"km/h\" X\n",
    " SG_ WHEEL_SPEED_FL : 23|16@0+ (0.01,-67.67) [0|250] \"km/h\" X\n",
    " SG_ WHEEL_SPEED_RR : 39|16@0+ (0.01,-67.67) [0|250] \"km/h\" X\n",
    " SG_ WHEEL_SPEED_RL : 55|16@0+ (0.01,-67.67) [0|250] \"km/h\" X\n",
);

const NATIVE: &str = r#"{"time":"2026-11-20T10:00:00.25Z","signals":{"Vehicle.Speed":87.2,"Vehicle.CurrentLocation.Latitude":37.7209977,"Vehicle.CurrentLocation.Longitude":-122.4723053,"Vehicle.IsMoving":true,"Vehicle.Powertrain.Transmission.CurrentGear":4}}"#;

const VISS: &str = r#"{"values":[{"path":"Vehicle.Speed","dp":[{"value":"87.2","ts":"2026-11-20T10:00:00.25Z"}]},{"path":"Vehicle.IsMoving","dp":[{"value":"true","ts":"2026-11-20T10:00:00.25Z"}]}]}"#;

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    const ROUNDS: u32 = 300_000;
    let decoder = Arc::new(CanDecoder::new(DBC, Some(Mapping::builtin()))?);
    let processor = Processor::new(Arc::new(move |_| Some(decoder.clone())));
    let frame = |n: i64| CanFrame {
        time_us: 1_763_632_800_000_000 + n * 12_000,
        bus: 0,
        id: CanId::Standard(170),
        data: CanData::new(&[0x25, 0xB5, 0x25, 0xB5, 0x25, 0xA0, 0x25, 0x8D])
            .unwrap_or_else(|| unreachable!()),
    };
    let frames: Vec<_> = (0..50).map(frame).collect();
    let rows = [
        ("native JSON", Bytes::from_static(NATIVE.as_bytes()), None),
        ("VISS", Bytes::from_static(VISS.as_bytes()), None),
        (
            "50 CAN frames",
            Bytes::from(encode_frames(&frames)?),
            Some(CAN_CONTENT_TYPE),
        ),
    ];
    println!(
        "{:<14} {:>6} {:>9} {:>14} {:>16} {:>15}",
        "payload", "bytes", "readings", "route, ns", "process, ns", "ns per reading"
    );
    for (name, payload, content_type) in rows {
        let bytes = payload.len();
        let publish = Incoming {
            content_type,
            ..Incoming::new(
                "dt/telemetry/prod/car-000123/signals",
                "car-000123",
                "tcu-000123",
                payload,
                1_763_632_800_000_000,
            )
        };
        let start = Instant::now();
        for _ in 0..ROUNDS {
            black_box(route(black_box(&publish)));
        }
        let routing = start.elapsed() / ROUNDS;
        let new = route(&publish).ok_or("an uplink topic")?.record;
        let record = Record {
            partition: 0,
            offset: Offset::ZERO,
            time_us: new.time_us,
            key: new.key,
            headers: new.headers,
            value: new.value,
        };
        let readings = processor.process(&record).readings.len();
        let start = Instant::now();
        for _ in 0..ROUNDS / 10 {
            black_box(processor.process(black_box(&record)));
        }
        let processing = start.elapsed() / (ROUNDS / 10);
        println!(
            "{name:<14} {bytes:>6} {readings:>9} {:>14} {:>16} {:>15}",
            routing.as_nanos(),
            processing.as_nanos(),
            processing.as_nanos() / readings.max(1) as u128,
        );
    }
    Ok(())
}
