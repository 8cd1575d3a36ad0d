//! The command line as scripts see it: exit status, what goes where, errors with remedies.

mod harness;

use std::{net::TcpListener, process::Output};

use harness::{Serving, config_on_free_ports, milepost};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(arguments: &[&str]) -> Output {
    milepost().args(arguments).output().expect("runs")
}

#[test]
fn wrong_usage_exits_2_and_a_failed_request_1() {
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["fly"]).status.code(), Some(2));
    assert_eq!(
        run(&["vehicle", "create", "--attribute", "novalue"])
            .status
            .code(),
        Some(2)
    );
    // Port 9 (discard) has no API.
    let failed = run(&["vehicle", "list", "--api", "http://127.0.0.1:9"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        text(&failed.stderr).contains("milepost serve"),
        "{}",
        text(&failed.stderr)
    );
    assert!(failed.stdout.is_empty());
}

#[test]
fn help_and_version_go_to_stdout() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        let output = run(arguments);
        assert!(output.status.success());
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn check_names_every_problem_and_opens_no_port() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("milepost.toml");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    std::fs::write(
        &file,
        "[mqtt]\nmax_inflght = 3\n[http]\nbind = \"nowhere\"\n",
    )
    .expect("written");
    let checked = run(&["check", "--config", file.to_str().expect("UTF-8")]);
    let said = text(&checked.stderr);
    assert_eq!(checked.status.code(), Some(1));
    assert!(
        said.contains(":2: mqtt.max_inflght: unknown key; did you mean `max_inflight`?"),
        "{said}"
    );
    assert!(
        said.contains(":4: http.bind: \"nowhere\" is not an address"),
        "{said}"
    );

    let config = config_on_free_ports("").replace(
        "[sql]\nbind = \"127.0.0.1:0\"",
        &format!("[sql]\nbind = \"{address}\""),
    );
    std::fs::write(&file, config).expect("written");
    for command in ["check", "serve"] {
        let refused = run(&[
            command,
            "--config",
            file.to_str().expect("UTF-8"),
            "--data-dir",
            folder.path().join("data").to_str().expect("UTF-8"),
        ]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{command}: {said}");
        assert!(
            said.contains(&format!("sql.bind: cannot listen on {address}")),
            "{command}: {said}"
        );
        assert!(!said.contains("listening on"), "{command}: {said}");
    }
    drop(taken);
    let fine = run(&["check", "--config", file.to_str().expect("UTF-8")]);
    assert_eq!(fine.status.code(), Some(0), "{}", text(&fine.stderr));

    let missing = run(&["check", "--config", "/nowhere/milepost.toml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nowhere/milepost.toml"));
}

#[test]
fn serve_prints_an_address_a_line_then_ready_and_ends_in_order_on_sigterm() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = Serving::start(&folder.path().join("data"), &config_on_free_ports(""));
    let listening: Vec<&String> = serving
        .start_up
        .iter()
        .filter(|line| line.starts_with("listening on "))
        .collect();
    assert_eq!(listening.len(), 3, "{listening:?}");
    // A second server on the same data folder is refused by name.
    let second = milepost()
        .args(["serve", "--config"])
        .arg(folder.path().join("data.toml"))
        .arg("--data-dir")
        .arg(&serving.data_dir)
        .output()
        .expect("runs");
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains("another process"),
        "{}",
        text(&second.stderr)
    );
    assert_eq!(serving.terminate().code(), Some(0));
}
