//! A journal against a map: random batches, restarts and idle times.

mod common;

use std::time::Duration;

use common::*;
use journal::{Batch, GarbageRule, Options, RecordId};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Submit(Vec<(u64, Option<u16>)>),
    /// Wait until all is durable.
    Wait,
    /// Close and open again.
    Reopen,
    /// Let compaction run until it has nothing to do.
    Idle,
}

fn step() -> impl Strategy<Value = Step> {
    let operation = (0..50u64, proptest::option::weighted(0.6, 0..900u16));
    prop_oneof![
        20 => vec(operation, 0..12).prop_map(Step::Submit),
        3 => Just(Step::Wait),
        1 => Just(Step::Reopen),
        1 => Just(Step::Idle),
    ]
}

fn options() -> Options {
    Options {
        compact_at: GarbageRule {
            factor: 2,
            idle_after: Duration::from_micros(100),
        },
        ..small()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn it_is_a_map(steps in vec(step(), 1..120)) {
        let dir = tempfile::tempdir().unwrap();
        let mut model = State::new();
        let mut store = open(dir.path(), options());
        let mut submitted = 0u64;
        for step in steps {
            match step {
                Step::Submit(operations) => {
                    let mut batch = Batch::new();
                    for (id, length) in operations {
                        match length {
                            Some(length) => {
                                let value = vec![submitted as u8; usize::from(length)];
                                batch.put(RecordId(id), &value);
                                model.insert(id, value);
                            }
                            None => {
                                batch.delete(RecordId(id));
                                model.remove(&id);
                            }
                        }
                    }
                    submitted += u64::from(!batch.is_empty());
                    let position = store.journal.submit(batch);
                    prop_assert_eq!(position.get(), submitted);
                }
                Step::Wait => store.wait(store.journal.submit(Batch::new())),
                Step::Reopen => {
                    store.journal.close().unwrap();
                    let stats = store.journal.stats();
                    prop_assert_eq!(stats.batches, submitted);
                    prop_assert_eq!(stats.live_records, model.len() as u64);
                    let bytes: usize = model.values().map(|value| 12 + value.len()).sum();
                    prop_assert_eq!(stats.live_bytes, bytes as u64);
                    prop_assert_eq!(stats.disk_bytes, disk_bytes(dir.path()));
                    submitted = 0;
                    store = open(dir.path(), options());
                    prop_assert_eq!(&store.found, &model);
                }
                Step::Idle => {
                    store.wait(store.journal.submit(Batch::new()));
                    loop {
                        let stats = store.journal.stats();
                        if stats.disk_bytes <= 2 * stats.live_bytes + 4096 {
                            break;
                        }
                        std::thread::yield_now();
                    }
                }
            }
        }
        store.journal.close().unwrap();
        prop_assert_eq!(&open(dir.path(), options()).found, &model);
    }
}
