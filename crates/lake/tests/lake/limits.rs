//! Every limit refuses, names itself, and leaves the lake working.

use std::time::Duration;

use lake::{Lake, LakeOptions, QueryErrorKind, QueryLimits};

use crate::world::{by_hand, drives, number, open, refused, refused_within};

/// Pairs of every row with every row with every row: never done.
const ENDLESS: &str = "select count(*) from generate_series(1, 1000000) a, \
                       generate_series(1, 1000000) b where a.value + b.value = 7";

#[tokio::test(flavor = "multi_thread")]
async fn each_limit_names_itself() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    lake.ingest(drives(0, 0..50)).await.expect("ingests");
    let limits = QueryLimits {
        rows: 99,
        ..QueryLimits::default()
    };
    let error = refused_within(&lake, "select * from signals", limits).await;
    assert_eq!(error.kind(), QueryErrorKind::RowLimit);
    assert!(error.to_string().contains("more than 99 rows"), "{error}");
    let limits = QueryLimits {
        rows: 100,
        ..limits
    };
    assert_eq!(
        lake.query("select * from signals", limits)
            .await
            .expect("fits")
            .rows(),
        100
    );

    let limits = QueryLimits {
        time: Duration::from_millis(200),
        ..QueryLimits::default()
    };
    let error = refused_within(&lake, ENDLESS, limits).await;
    assert_eq!(error.kind(), QueryErrorKind::TimeLimit);
    assert!(error.to_string().contains("200ms"), "{error}");

    let limits = QueryLimits {
        memory: 2 << 20,
        ..QueryLimits::default()
    };
    let hungry = "select count(*) from (select value, count(*) from generate_series(1, 200000) \
                  group by value) g";
    let error = refused_within(&lake, hungry, limits).await;
    assert_eq!(error.kind(), QueryErrorKind::MemoryLimit, "{error}");
    assert!(error.to_string().contains("2 MiB"), "{error}");
    // An answer counts as well, even if making it needs nothing.
    let wide = "select repeat('x', 1000) from generate_series(1, 9000)";
    let error = refused_within(&lake, wide, limits).await;
    assert_eq!(error.kind(), QueryErrorKind::MemoryLimit, "{error}");

    // Nor can a function make gigabytes out of a number.
    for sql in [
        "select length(repeat('x', 2000000000))",
        "select rpad('x', 2000000000)",
        "select array_repeat(1, 2000000000)",
        "select array_length(range(0, 10000000000))",
        "select array_length(generate_series(1, value::bigint * 100000000)) from signals",
    ] {
        let error = refused(&lake, sql).await;
        assert!(
            error.to_string().contains("at most 100000"),
            "{sql}: {error}"
        );
    }

    assert_eq!(number(&lake, "select count(*) from signals").await, 100);
}

/// Joins that compare for ever without a row to show for it, and a recursion without an end: over
/// at the deadline, and the threads free again for the next query.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_out_of_time_stops() {
    let dir = tempfile::tempdir().expect("temp dir");
    let options = LakeOptions {
        query_threads: 1,
        concurrent_queries: 1,
        ..by_hand()
    };
    let lake = Lake::open(dir.path(), options).await.expect("opens");
    let limits = QueryLimits {
        time: Duration::from_millis(200),
        ..QueryLimits::default()
    };
    for sql in [
        ENDLESS,
        "select count(*) from generate_series(1, 3000) a, generate_series(1, 3000) b, \
         generate_series(1, 3000) c",
        "with recursive t as (select 1 as n union all select n + 1 from t) select count(*) from t",
        "select count(*) from (select value % 2 as k, value from generate_series(1, 200000)) a \
         join (select value % 2 as k, value from generate_series(1, 200000)) b \
         on a.k = b.k and a.value + b.value = -7",
    ] {
        let error = refused_within(&lake, sql, limits).await;
        assert_eq!(error.kind(), QueryErrorKind::TimeLimit, "{sql}: {error}");
        assert_eq!(number(&lake, "select 1").await, 1, "after {sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sort_that_does_not_fit_is_refused_not_spilled() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    let limits = QueryLimits {
        memory: 2 << 20,
        rows: 10_000_000,
        ..QueryLimits::default()
    };
    let sort = "select value from generate_series(1, 300000) order by value % 1000, value";
    let error = refused_within(&lake, sort, limits).await;
    assert_eq!(error.kind(), QueryErrorKind::MemoryLimit, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_queries_at_once_are_busy() {
    let dir = tempfile::tempdir().expect("temp dir");
    let options = LakeOptions {
        concurrent_queries: 1,
        ..by_hand()
    };
    let lake = Lake::open(dir.path(), options).await.expect("opens");
    let endless = tokio::spawn({
        let lake = lake.clone();
        async move {
            lake.query(ENDLESS, QueryLimits::default())
                .await
                .map(|answer| answer.rows())
        }
    });
    // Until the first one has the slot, the second may get it and be answered.
    loop {
        match lake.query("select 1", QueryLimits::default()).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => {
                assert_eq!(error.kind(), QueryErrorKind::Busy);
                assert!(error.to_string().contains("1 queries"), "{error}");
                break;
            }
        }
    }
    // Its client goes away: the slot is free again.
    endless.abort();
    assert!(endless.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(number(&lake, "select 1").await, 1);
    let cancelled = lake
        .metrics()
        .queries
        .into_iter()
        .find(|(name, _)| *name == "cancelled");
    assert_eq!(cancelled, Some(("cancelled", 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_apart() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    lake.ingest(drives(0, 0..5)).await.expect("ingests");
    let deep = format!("select {}1{}", "(".repeat(5_000), ")".repeat(5_000));
    // Ended the process by a stack overflow.
    let chain = format!("select {}", vec!["1"; 10_000].join("+"));
    let long = format!("select '{}'", "x".repeat(300_000));
    let cases = [
        ("selct 1", QueryErrorKind::Syntax, "selct"),
        ("", QueryErrorKind::Syntax, "one statement"),
        (
            "select 1; select 2",
            QueryErrorKind::Syntax,
            "one statement",
        ),
        (
            "select vehicle_id, count(*) from signals",
            QueryErrorKind::Syntax,
            "GROUP BY",
        ),
        ("select * from nowhere", QueryErrorKind::NotFound, "nowhere"),
        (
            "select colour from signals",
            QueryErrorKind::NotFound,
            "colour",
        ),
        (
            "select 1 / (value - value)::int from signals",
            QueryErrorKind::Execution,
            "zero",
        ),
        (
            "select signal::int from signals",
            QueryErrorKind::Execution,
            "Vehicle",
        ),
        (&deep, QueryErrorKind::Syntax, "recursion"),
        (&chain, QueryErrorKind::Syntax, "10000 operators"),
        (&long, QueryErrorKind::Syntax, "300009 bytes"),
    ];
    // As deep as it may be.
    let unions = vec!["select 1"; 490].join(" union all ");
    let casts = format!("1{}", "::int".repeat(990));
    for deepest in [
        vec!["1"; 990].join("+"),
        vec!["true"; 990].join(" and "),
        vec!["''"; 990].join("||"),
        format!("count(*) from ({unions}) as many"),
        casts,
    ] {
        let answered = lake
            .query(&format!("select {deepest}"), QueryLimits::default())
            .await;
        let start: String = deepest.chars().take(60).collect();
        assert_eq!(
            answered.map(|answer| answer.rows()).ok(),
            Some(1),
            "{start}"
        );
    }
    for (sql, kind, says) in cases {
        let error = refused(&lake, sql).await;
        let start: String = sql.chars().take(60).collect();
        assert_eq!(error.kind(), kind, "{start}: {error}");
        assert!(error.to_string().contains(says), "{start}: {error}");
    }
}
