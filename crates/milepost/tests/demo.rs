//! `milepost demo --duration` runs the whole road, ends by itself and says whether all is there.

mod harness;

use harness::milepost;

#[test]
fn the_demo_ends_by_itself_and_every_acknowledged_message_is_in_the_lake() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = milepost()
        .args([
            "demo",
            "--vehicles",
            "5",
            "--duration",
            "4s",
            "--json",
            "--data-dir",
        ])
        .arg(folder.path().join("data"))
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("verified: every acknowledged message of every vehicle is in the lake, once"),
        "{said}"
    );
    assert!(said.contains("SELECT"), "it invites to ask: {said}");
    let totals: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    let acknowledged = totals["acknowledged"].as_u64().expect("a number");
    assert!(acknowledged >= 5, "{totals}");
    assert_eq!(
        totals["messages_in_lake"].as_u64(),
        Some(acknowledged),
        "{totals}"
    );
    assert!(
        totals["signals_in_lake"].as_u64() > Some(acknowledged),
        "{totals}"
    );
    assert!(
        folder.path().join("data/lake").is_dir(),
        "the data is kept where it was asked to be"
    );
}
