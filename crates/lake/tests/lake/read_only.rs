//! SQL only reads, through every door.

use lake::QueryErrorKind;

use crate::world::{drives, number, open, refused};

/// What must not work. `{dir}` is a folder that exists.
pub const FORBIDDEN: &[&str] = &[
    "insert into signals (vehicle_id) values ('x')",
    "insert into silver.signals select * from signals",
    "update signals set value = 0",
    "delete from signals",
    "truncate table signals",
    "merge into signals using messages on true when matched then delete",
    "create table t (a int)",
    "create table t as select 1",
    "create or replace view signals as select 1",
    "create schema s",
    "create database d",
    "create function f() returns int return 1",
    "drop table signals",
    "drop view signals",
    "drop schema silver cascade",
    "alter table signals rename to s",
    "copy signals to '{dir}/out.parquet'",
    "copy (select 1) to '{dir}/out.csv'",
    "copy signals from '{dir}/in.csv'",
    "explain insert into signals (vehicle_id) values ('x')",
    "explain analyze delete from signals",
    "select * into t from signals",
    "with gone as (delete from signals returning *) select * from gone",
    "prepare p as select 1",
    "execute p",
    "deallocate p",
    "declare c cursor for select 1",
    "set datafusion.execution.batch_size = 1",
    "set datafusion.runtime.memory_limit = '100G'",
    "vacuum",
    "call f()",
    "grant all on signals to public",
];

/// What reads, but not from the lake.
const NO_FILES: &[&str] = &[
    "select * from '{dir}/in.csv'",
    "select * from \"{dir}/in.csv\"",
    "select * from read_csv('{dir}/in.csv')",
    "select * from read_parquet('{dir}/in.parquet')",
    "select * from parquet_metadata('{dir}/in.parquet')",
    "select pg_read_file('{dir}/in.csv')",
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_changed_and_no_file_be_read() {
    let dir = tempfile::tempdir().expect("temp dir");
    let files = tempfile::tempdir().expect("temp dir");
    std::fs::write(files.path().join("in.csv"), "a\n1\n").expect("writes");
    let lake = open(dir.path()).await;
    lake.ingest(drives(0, 0..5)).await.expect("ingests");
    lake.flush().await.expect("commits");
    let path = files.path().to_str().expect("a plain path");
    for sql in FORBIDDEN {
        let error = refused(&lake, &sql.replace("{dir}", path)).await;
        assert!(
            matches!(
                error.kind(),
                // Some never get as far as a statement.
                QueryErrorKind::NotReadOnly | QueryErrorKind::Syntax
            ),
            "{sql}: {error}"
        );
    }
    for sql in NO_FILES {
        let error = refused(&lake, &sql.replace("{dir}", path)).await;
        assert!(
            matches!(
                error.kind(),
                QueryErrorKind::NotFound | QueryErrorKind::Syntax
            ),
            "{sql}: {error}"
        );
    }
    assert_eq!(number(&lake, "select count(*) from signals").await, 10);
    let left: Vec<_> = std::fs::read_dir(files.path()).expect("lists").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
