//! Invariants of ARCHITECTURE.md that can be read off the sources.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("crates/")
        .to_owned()
}

/// Names in the `[dependencies]` table of a crate.
fn dependencies(name: &str) -> Vec<String> {
    let manifest = fs::read_to_string(crates().join(name).join("Cargo.toml")).expect("a manifest");
    manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn only_the_lake_knows_datafusion_delta_and_arrow() {
    let engines = [
        "datafusion",
        "datafusion-postgres",
        "deltalake",
        "arrow",
        "parquet",
        "pgwire",
    ];
    for entry in fs::read_dir(crates()).expect("crates/") {
        let name = entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("UTF-8");
        let found: Vec<_> = dependencies(&name)
            .into_iter()
            .filter(|d| engines.contains(&d.as_str()))
            .collect();
        assert_eq!(found.is_empty(), name != "lake", "{name}: {found:?}");
    }
}

#[test]
fn arrows_point_downwards_only() {
    // Each crate with the own crates it may know.
    let allowed: [(&str, &[&str]); 11] = [
        ("mqtt", &[]),
        ("eventlog", &[]),
        ("journal", &[]),
        ("signals", &[]),
        ("fleet", &[]),
        ("broker", &["journal", "mqtt"]),
        ("pipeline", &["eventlog", "signals"]),
        ("lake", &["eventlog", "pipeline", "signals"]),
        ("fleet-sim", &["mqtt", "signals"]),
        (
            "server",
            &[
                "broker", "eventlog", "fleet", "lake", "mqtt", "pipeline", "signals",
            ],
        ),
        ("milepost", &["fleet-sim", "server", "signals"]),
    ];
    let own: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
    for entry in fs::read_dir(crates()).expect("crates/") {
        let name = entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("UTF-8");
        assert!(
            own.contains(&name.as_str()),
            "{name} has no place in the map yet"
        );
    }
    for (name, may_know) in allowed {
        for dependency in dependencies(name) {
            let is_own = own.contains(&dependency.as_str());
            assert!(
                !is_own || may_know.contains(&dependency.as_str()),
                "{name} must not know {dependency}"
            );
        }
    }
}

#[test]
fn the_codec_and_the_state_machine_have_no_io_and_no_clock() {
    let mut files = Vec::new();
    sources(&crates().join("mqtt/src"), &mut files);
    sources(&crates().join("broker/src/machine"), &mut files);
    assert!(files.len() > 10, "looked in the wrong place");
    let foreign = [
        "tokio",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "std::fs",
        "std::thread",
        "Instant::now",
        "SystemTime",
    ];
    for file in files {
        let text = fs::read_to_string(&file).expect("a source");
        // What a test does is its own affair.
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in product.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in foreign {
                assert!(
                    !code.contains(word),
                    "{}:{}: {word}",
                    file.display(),
                    number + 1
                );
            }
        }
    }
}
