#!/usr/bin/env bash
# Licences, sources, banned crates and known vulnerabilities of every dependency (deny.toml).
set -euo pipefail
version=0.20.2
tools=${CARGO_TARGET_DIR:-target}/tools
deny=$tools/bin/cargo-deny
[ -x "$deny" ] || CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --root "$tools" "cargo-deny@$version"
"$deny" --locked check --hide-inclusion-graph licenses bans sources
# The advisory database is a Git repository elsewhere: where it can not be reached, say so.
if "$deny" --locked check --hide-inclusion-graph advisories 2>"$tools/advisories.log"; then
    cat "$tools/advisories.log"
elif grep -qiE 'failed to (fetch|clone)|could not (connect|resolve)|failed to connect|failed to update' "$tools/advisories.log"; then
    echo "warning: the advisory database could not be reached; vulnerabilities were NOT checked" >&2
else
    cat "$tools/advisories.log" >&2
    exit 1
fi
