//! Prepared statements on the PostgreSQL door: what drivers (JDBC, psycopg, Grafana) use and psql
//! does not. A client of twenty lines, so that no driver hides what goes over the wire.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::read_only::FORBIDDEN;
use crate::world::{drives, number};

struct Client(TcpStream);

/// A message of the server, as far as the stories here need it.
#[derive(Debug, PartialEq)]
enum Reply {
    Row(Vec<Option<String>>),
    Error(String),
    Done(String),
    Other,
}

impl Client {
    async fn connect(address: SocketAddr) -> Client {
        let mut client = Client(TcpStream::connect(address).await.expect("connects"));
        let parameters = b"user\0anyone\0database\0milepost\0\0";
        let mut startup = 196_608_u32.to_be_bytes().to_vec();
        startup.extend_from_slice(parameters);
        let length = u32::try_from(startup.len() + 4).expect("short");
        client
            .0
            .write_all(&length.to_be_bytes())
            .await
            .expect("writes");
        client.0.write_all(&startup).await.expect("writes");
        client.until_ready().await;
        client
    }

    async fn send(&mut self, kind: u8, body: &[u8]) {
        let length = u32::try_from(body.len() + 4).expect("short");
        let mut packet = vec![kind];
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(body);
        self.0.write_all(&packet).await.expect("writes");
    }

    async fn prepare(&mut self, name: &str, sql: &str) -> Vec<Reply> {
        self.send(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
            .await;
        self.send(b'D', format!("S{name}\0").as_bytes()).await;
        self.send(b'S', &[]).await;
        self.until_ready().await
    }

    async fn execute(&mut self, name: &str, parameters: &[&str]) -> Vec<Reply> {
        let mut bind = format!("\0{name}\0\0\0").into_bytes();
        bind.extend_from_slice(&u16::try_from(parameters.len()).expect("few").to_be_bytes());
        for parameter in parameters {
            bind.extend_from_slice(&u32::try_from(parameter.len()).expect("short").to_be_bytes());
            bind.extend_from_slice(parameter.as_bytes());
        }
        bind.extend_from_slice(&[0, 0]);
        self.send(b'B', &bind).await;
        self.send(b'D', b"P\0").await;
        self.send(b'E', &[0, 0, 0, 0, 0]).await;
        self.send(b'S', &[]).await;
        self.until_ready().await
    }

    async fn until_ready(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            let kind = self.0.read_u8().await.expect("reads");
            let length = self.0.read_u32().await.expect("reads") as usize - 4;
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.expect("reads");
            match kind {
                b'Z' => return replies,
                b'D' => replies.push(Reply::Row(row(&body))),
                b'E' => replies.push(Reply::Error(String::from_utf8_lossy(&body).into_owned())),
                b'C' => replies.push(Reply::Done(
                    String::from_utf8_lossy(&body)
                        .trim_end_matches('\0')
                        .to_owned(),
                )),
                _ => replies.push(Reply::Other),
            }
        }
    }
}

fn row(mut body: &[u8]) -> Vec<Option<String>> {
    let mut take = |count: usize| {
        let (head, tail) = body.split_at(count);
        body = tail;
        head
    };
    let columns = u16::from_be_bytes(take(2).try_into().expect("two bytes"));
    (0..columns)
        .map(|_| {
            let length = i32::from_be_bytes(take(4).try_into().expect("four bytes"));
            let length = usize::try_from(length).ok()?;
            Some(String::from_utf8_lossy(take(length)).into_owned())
        })
        .collect()
}

fn rows(replies: &[Reply]) -> Vec<Vec<&str>> {
    replies
        .iter()
        .filter_map(|reply| match reply {
            Reply::Row(row) => Some(
                row.iter()
                    .map(|cell| cell.as_deref().unwrap_or("null"))
                    .collect(),
            ),
            _ => None,
        })
        .collect()
}

fn error(replies: &[Reply]) -> Option<&str> {
    replies.iter().find_map(|reply| match reply {
        Reply::Error(text) => Some(text.as_str()),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_sees_the_moment_it_is_executed() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = crate::world::open(dir.path()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let server = tokio::spawn({
        let lake = lake.clone();
        async move {
            lake.serve_postgres(listener, CancellationToken::new())
                .await
        }
    });
    let mut client = Client::connect(address).await;
    let replies = client
        .prepare(
            "count",
            "select count(*), max(value) from signals where vehicle_id = $1 and value >= $2",
        )
        .await;
    assert_eq!(error(&replies), None);
    assert_eq!(
        rows(&client.execute("count", &["car-0", "0"]).await),
        [["0", "null"]]
    );
    lake.ingest(drives(0, 0..10)).await.expect("ingests");
    assert_eq!(
        rows(&client.execute("count", &["car-0", "0"]).await),
        [["20", "9.0"]]
    );
    lake.flush().await.expect("commits");
    lake.ingest(drives(0, 10..20)).await.expect("ingests");
    assert_eq!(
        rows(&client.execute("count", &["car-0", "5.5"]).await),
        [["14", "19.0"]]
    );
    assert_eq!(
        rows(&client.execute("count", &["car-7", "0"]).await),
        [["0", "null"]]
    );

    for (name, sql, says) in [
        ("set", "set extra_float_digits = 3", "SET"),
        ("begin", "begin", "BEGIN"),
        ("commit", "commit", "COMMIT"),
    ] {
        client.prepare(name, sql).await;
        let replies = client.execute(name, &[]).await;
        assert!(
            replies.contains(&Reply::Done(says.to_owned())),
            "{sql}: {replies:?}"
        );
    }
    for (index, sql) in FORBIDDEN.iter().enumerate() {
        let name = format!("forbidden{index}");
        let sql = sql.replace("{dir}", dir.path().to_str().expect("plain"));
        let mut replies = client.prepare(&name, &sql).await;
        if error(&replies).is_none() {
            replies = client.execute(&name, &[]).await;
        }
        assert!(error(&replies).is_some(), "{sql}: {replies:?}");
    }
    assert_eq!(number(&lake, "select count(*) from signals").await, 40);
    server.abort();
}
