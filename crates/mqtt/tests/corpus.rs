//! Replays the corpus kept for fuzzing (`fuzz/corpus`, see its README) on a stable compiler.

mod support;

use std::{fs, path::PathBuf};

use support::oracle::{check_match, check_stream};

/// Name and content of every file of a target's corpus.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut corpus: Vec<_> = files
        .map(|file| {
            let path = file.expect("folder is readable").path();
            let name = path
                .file_name()
                .expect("is a file")
                .to_string_lossy()
                .into_owned();
            (name, fs::read(&path).expect("file is readable"))
        })
        .collect();
    corpus.sort();
    assert!(!corpus.is_empty(), "{} is empty", folder.display());
    corpus
}

#[test]
fn streams_do_what_their_names_promise() {
    for (name, bytes) in corpus("mqtt_stream") {
        let outcome = check_stream(&bytes);
        let refused = outcome.error.is_some();
        match name.split('-').next() {
            Some("ok") => assert!(!refused && outcome.left == 0, "{name}: {outcome:?}"),
            Some("part") => assert!(!refused && outcome.left > 0, "{name}: {outcome:?}"),
            Some("bad") => assert!(refused, "{name}: {outcome:?}"),
            _ => {} // found by fuzzing, kept for what it covers
        }
    }
}

#[test]
fn topics_match_as_the_specification_reads() {
    for (name, bytes) in corpus("mqtt_topic") {
        let text = String::from_utf8(bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        check_match(&text);
    }
}
