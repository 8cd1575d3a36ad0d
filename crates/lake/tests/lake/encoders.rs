//! Answers as JSON and as Arrow IPC.

use arrow::ipc::reader::StreamReader;
use lake::{Column, QueryLimits};
use serde_json::json;

use crate::world::{drives, open, rows};

#[tokio::test(flavor = "multi_thread")]
async fn every_type_has_its_json() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    let cases = [
        (
            "9223372036854775807",
            "bigint",
            json!(9_223_372_036_854_775_807_i64),
        ),
        ("1.5::double", "double", json!(1.5)),
        ("'NaN'::double", "double", json!(null)),
        ("0.25::real", "real", json!(0.25)),
        ("1::smallint", "smallint", json!(1)),
        ("true", "boolean", json!(true)),
        ("null", "null", json!(null)),
        ("'a\"b\\c' || chr(10) || 'ü'", "text", json!("a\"b\\c\nü")),
        ("'abc'::bytea", "bytes", json!("YWJj")),
        (
            "timestamp '2026-11-20T10:00:00.5'",
            "timestamp",
            json!("2026-11-20T10:00:00.5Z"),
        ),
        (
            "timestamptz '2026-11-20T12:00:00+02:00'",
            "timestamp",
            json!("2026-11-20T10:00:00Z"),
        ),
        ("date '1969-12-31'", "date", json!("1969-12-31")),
        ("1.10::decimal(10, 2)", "decimal", json!("1.10")),
        ("make_array(1, null, 3)", "bigint[]", json!([1, null, 3])),
        (
            "named_struct('a', 1, 'b', 'x')",
            "struct",
            json!({"a": 1, "b": "x"}),
        ),
        (
            "arrow_cast('x', 'Dictionary(Int32, Utf8)')",
            "text",
            json!("x"),
        ),
    ];
    for (sql, data_type, value) in cases {
        let answer = lake
            .query(&format!("select {sql} as c"), QueryLimits::default())
            .await;
        let answer = answer.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let column = Column {
            name: "c".to_owned(),
            data_type: data_type.to_owned(),
        };
        assert_eq!(answer.columns(), [column], "{sql}");
        let found: serde_json::Value =
            serde_json::from_slice(&answer.to_json_rows().expect("encodes")).expect("JSON");
        assert_eq!(found, json!([[value]]), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_forms_say_the_same() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    lake.ingest(drives(0, 0..20)).await.expect("ingests");
    lake.flush().await.expect("commits");
    lake.ingest(drives(0, 20..30)).await.expect("ingests");
    let sql = "select vehicle_id, \"offset\", value from signals order by \"offset\", seq";
    let answer = lake
        .query(sql, QueryLimits::default())
        .await
        .expect("answers");
    let whole: serde_json::Value =
        serde_json::from_slice(&answer.to_json().expect("encodes")).expect("JSON");
    assert_eq!(whole["row_count"], 60);
    assert_eq!(
        whole["columns"][1],
        json!({"name": "offset", "type": "bigint"})
    );
    assert_eq!(whole["rows"], rows(&lake, sql).await);
    let ipc = answer.to_arrow_ipc().expect("encodes");
    let reader = StreamReader::try_new(ipc.as_slice(), None).expect("is IPC");
    assert_eq!(reader.schema(), answer.schema);
    let batches: Vec<_> = reader.map(|batch| batch.expect("reads")).collect();
    assert_eq!(
        batches.iter().map(|batch| batch.num_rows()).sum::<usize>(),
        60
    );
    // No rows is an answer too.
    let empty = lake
        .query("select 1 where false", QueryLimits::default())
        .await
        .expect("answers");
    assert_eq!(empty.to_json_rows().expect("encodes"), b"[]");
    let ipc = empty.to_arrow_ipc().expect("encodes");
    assert_eq!(
        StreamReader::try_new(ipc.as_slice(), None)
            .expect("is IPC")
            .count(),
        0
    );
}
