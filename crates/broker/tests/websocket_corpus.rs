//! Replays the corpus kept for fuzzing the WebSocket side (`fuzz/corpus`, see its README) on a stable
//! compiler.

#[path = "support/websocket_oracle.rs"]
mod oracle;

use std::fs;
use std::path::PathBuf;

use broker::websocket::frame::End;
use broker::websocket::upgrade::Head;

/// Name and content of every file of a target's corpus.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut corpus: Vec<_> = files
        .map(|file| {
            let path = file.expect("the folder is readable").path();
            let name = path
                .file_name()
                .expect("a file")
                .to_string_lossy()
                .into_owned();
            (name, fs::read(&path).expect("the file is readable"))
        })
        .collect();
    corpus.sort();
    assert!(!corpus.is_empty(), "{} is empty", folder.display());
    corpus
}

#[test]
fn frames_do_what_their_names_promise() {
    for (name, bytes) in corpus("websocket_frames") {
        let end = oracle::check_frames(&bytes).end;
        match name.split('-').next() {
            Some("ok") => assert!(!matches!(end, Some(End::Violation(_))), "{name}: {end:?}"),
            Some("bad") => assert!(matches!(end, Some(End::Violation(_))), "{name}: {end:?}"),
            _ => {} // found by fuzzing, kept for what it covers
        }
    }
}

#[test]
fn requests_do_what_their_names_promise() {
    for (name, bytes) in corpus("websocket_upgrade") {
        let head = oracle::check_upgrade(&bytes);
        match name.split('-').next() {
            Some("ok") => assert!(matches!(head, Head::Upgrade { .. }), "{name}: {head:?}"),
            Some("part") => assert_eq!(head, Head::Incomplete, "{name}"),
            Some("bad") => {
                let refused = matches!(head, Head::Refused(_) | Head::Elsewhere(_));
                assert!(refused, "{name}: {head:?}");
            }
            _ => {} // found by fuzzing, kept for what it covers
        }
    }
}
