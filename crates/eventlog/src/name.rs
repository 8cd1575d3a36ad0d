//! Names of streams and groups: they are file names too, so few characters are allowed.

/// May a stream or a group be called this?
pub(crate) fn is_allowed(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn only_what_is_a_file_name_everywhere() {
        let long = "x".repeat(129);
        for (name, allowed) in [
            ("raw.telemetry", true),
            ("dead_letters-2", true),
            (&long[1..], true),
            (&long, false),
            ("", false),
            (".", false),
            ("..", false),
            (".hidden", false),
            ("a/b", false),
            ("a b", false),
            ("größe", false),
            ("nul\0", false),
        ] {
            assert_eq!(is_allowed(name), allowed, "{name:?}");
        }
    }
}
