//! The PostgreSQL door, through the real `psql`.

use std::net::SocketAddr;
use std::process::Stdio;

use lake::{Lake, LakeOptions};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::read_only::FORBIDDEN;
use crate::world::{by_hand, drives, number};

struct Served {
    _dir: tempfile::TempDir,
    lake: Lake,
    address: SocketAddr,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn serve(options: LakeOptions) -> Served {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = Lake::open(dir.path(), options).await.expect("opens");
    lake.ingest(drives(0, 0..40)).await.expect("ingests");
    lake.flush().await.expect("commits");
    lake.ingest(drives(1, 0..10)).await.expect("ingests");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let stop = CancellationToken::new();
    let server = tokio::spawn({
        let (lake, stop) = (lake.clone(), stop.clone());
        async move { lake.serve_postgres(listener, stop).await }
    });
    Served {
        _dir: dir,
        lake,
        address,
        stop,
        server,
    }
}

/// What psql prints for `commands`, and whether it was content; `None` if there is no psql.
async fn psql(address: SocketAddr, commands: &[&str]) -> Option<(bool, String, String)> {
    let mut psql = Command::new("psql");
    psql.args([
        "-X",
        "-A",
        "-t",
        "-w",
        "-h",
        "127.0.0.1",
        "-p",
        &address.port().to_string(),
    ])
    .args(["-U", "anyone", "-d", "milepost"])
    .env_remove("PGSERVICE")
    .env("PGCONNECT_TIMEOUT", "10")
    .stdin(Stdio::null());
    for command in commands {
        psql.args(["-c", command]);
    }
    match psql.output().await {
        Ok(output) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
            Some((
                output.status.success(),
                text(&output.stdout),
                text(&output.stderr),
            ))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no psql on this machine (Debian: postgresql-client)");
            None
        }
        Err(error) => panic!("cannot run psql: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_gets_the_same_answers() {
    let served = serve(by_hand()).await;
    let cases = [
        ("select count(*) from signals", "100"),
        (
            "select vehicle_id, count(*), max(value) from signals \
             where signal = 'Vehicle.Speed' group by vehicle_id order by 1",
            "car-0|40|39.0\ncar-1|10|9.0",
        ),
        (
            "select count(*) from signals s join messages m \
             on s.\"partition\" = m.\"partition\" and s.\"offset\" = m.\"offset\"",
            "100",
        ),
        (
            "select value, text, unit from last_known_state where signal = 'Vehicle.Speed' \
          and vehicle_id = 'car-1'",
            "9.0||km/h",
        ),
        ("select min(time) from signals", "2026-11-20 10:00:00+00"),
        (
            "select payload from messages where \"offset\" = 3 and vehicle_id = 'car-1'",
            "\\x7b226e223a337d",
        ),
        (
            "select (select count(*) from signals s where s.vehicle_id = v.vehicle_id) \
          from (select 'car-1' as vehicle_id) v",
            "20",
        ),
        ("show statement_timeout", "0"),
        ("begin; select 1; commit", "BEGIN\n1\nCOMMIT"),
        ("select current_database()", "milepost"),
    ];
    for (sql, expected) in cases {
        let Some((ok, out, error)) = psql(served.address, &[sql]).await else {
            return;
        };
        assert!(ok, "{sql}: {error}");
        if sql.starts_with("select min(time)") {
            assert!(out.starts_with("2026-11-20 10:00:00"), "{out}");
        } else if !sql.starts_with("show") {
            assert_eq!(out, expected, "{sql}");
        }
    }
    served.stop.cancel();
    served.server.await.expect("ends").expect("without error");
}

#[tokio::test(flavor = "multi_thread")]
async fn psqls_own_commands_work() {
    let served = serve(by_hand()).await;
    let Some((ok, out, error)) = psql(served.address, &["\\dt *.*"]).await else {
        return;
    };
    assert!(ok, "{error}");
    for table in ["silver|signals", "bronze|messages", "fleet|vehicles"] {
        assert!(out.contains(table), "{table} in {out}");
    }
    for (command, expected) in [("\\dt", ""), ("\\dn", "silver"), ("\\l", "milepost")] {
        let (ok, out, error) = psql(served.address, &[command])
            .await
            .expect("was there before");
        assert!(ok, "{command}: {error}");
        assert!(out.contains(expected), "{command}: {out}");
    }
    let (ok, out, error) = psql(served.address, &["\\d silver.signals"])
        .await
        .expect("was there before");
    assert!(ok, "{error}");
    assert!(
        out.contains("vehicle_id") && out.contains("received_time"),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_is_refused_like_everybody() {
    let mut options = by_hand();
    options.postgres_limits.rows = 50;
    let served = serve(options).await;
    let files = tempfile::tempdir().expect("temp dir");
    let path = files.path().to_str().expect("a plain path");
    for sql in FORBIDDEN {
        let sql = sql.replace("{dir}", path);
        let Some((ok, out, error)) = psql(served.address, &[&sql]).await else {
            return;
        };
        assert!(!ok && error.contains("ERROR"), "{sql}: {out} {error}");
    }
    assert_eq!(std::fs::read_dir(files.path()).expect("lists").count(), 0);
    assert_eq!(
        number(&served.lake, "select count(*) from signals").await,
        100
    );

    let verbose = "\\set VERBOSITY verbose";
    for (sql, code, says) in [
        ("select * from nowhere", "42P01", "nowhere"),
        ("selct 1", "42601", "selct"),
        (
            "insert into signals (vehicle_id) values ('x')",
            "25006",
            "INSERT",
        ),
        ("select * from signals", "54000", "more than 50 rows"),
    ] {
        let (ok, _, error) = psql(served.address, &[verbose, sql])
            .await
            .expect("was there before");
        assert!(
            !ok && error.contains(code) && error.contains(says),
            "{sql}: {error}"
        );
    }
    let endless = "select count(*) from generate_series(1, 1000000) a, \
                   generate_series(1, 1000000) b where a.value + b.value = 7";
    let (ok, _, error) = psql(
        served.address,
        &[verbose, "set statement_timeout = 200", endless],
    )
    .await
    .expect("was there before");
    assert!(
        !ok && error.contains("57014") && error.contains("200ms"),
        "{error}"
    );
    // A setting of one connection is not one of the next.
    let (ok, out, _) = psql(served.address, &["show statement_timeout"])
        .await
        .expect("psql");
    assert!(ok && !out.contains("200"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_and_end_on_stop() {
    let options = LakeOptions {
        postgres_connections: 2,
        ..by_hand()
    };
    let served = serve(options).await;
    let _first = TcpStream::connect(served.address).await.expect("connects");
    let _second = TcpStream::connect(served.address).await.expect("connects");
    let mut third = TcpStream::connect(served.address).await.expect("connects");
    let mut refusal = Vec::new();
    third.read_to_end(&mut refusal).await.expect("reads");
    let text = String::from_utf8_lossy(&refusal);
    assert!(
        refusal.first() == Some(&b'E') && text.contains("53300"),
        "{text}"
    );
    assert!(text.contains("at most 2"), "{text}");
    served.stop.cancel();
    served.server.await.expect("ends").expect("without error");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_loopback_is_served() {
    let served = serve(by_hand()).await;
    let open = TcpListener::bind("0.0.0.0:0").await.expect("binds");
    let error = served
        .lake
        .serve_postgres(open, CancellationToken::new())
        .await;
    assert!(error.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied));
}
