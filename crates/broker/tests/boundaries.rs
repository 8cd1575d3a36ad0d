//! What the design keeps out of the machine stays out.

use std::fs;
use std::path::Path;

/// The machine is driven by simulations: it may not do IO, read a clock or roll dice. Types of
/// TLS certificates pass through it; TLS does not.
#[test]
fn the_machine_knows_no_sockets_runtime_clock_or_dice() {
    check("src/machine");
}

/// Admission is asked by the machine, and told the time as the machine is.
#[test]
fn admission_knows_no_sockets_runtime_clock_or_dice() {
    check("src/admission");
}

fn check(folder: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let forbidden = [
        "tokio",
        "Instant",
        "SystemTime",
        "std::io",
        "std::fs",
        "std::thread",
        "TcpStream",
        "TcpListener",
        "ServerConfig",
        "rand::",
        "getrandom",
        ".await",
    ];
    let mut files = 0;
    for entry in fs::read_dir(folder).expect("the folder exists") {
        let path = entry.expect("readable").path();
        let text = fs::read_to_string(&path).expect("readable");
        files += 1;
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in forbidden {
                assert!(
                    !code.contains(word),
                    "{}:{}: `{word}` belongs into src/shell",
                    path.display(),
                    number + 1
                );
            }
        }
    }
    assert!(files >= 10, "only {files} files were looked at");
}
