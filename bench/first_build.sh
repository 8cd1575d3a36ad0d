#!/usr/bin/env bash
# How long a new user waits: `make demo` with nothing built, until vehicles drive, and what it leaves on disk.
# Sources of dependencies that Cargo has already downloaded are used.
set -euo pipefail
cd "$(dirname "$0")/.."
CARGO_TARGET_DIR=$(mktemp -d)
export CARGO_TARGET_DIR
trap 'rm -rf "$CARGO_TARGET_DIR"' EXIT
start=$SECONDS
log=$CARGO_TARGET_DIR/log
make demo DURATION=10s 2>&1 | tee "$log" | while read -r line; do
    case "$line" in
    *Finished*) echo "built after $((SECONDS - start)) s: $line" ;;
    *"they drive now"*) echo "driving after $((SECONDS - start)) s: $line" ;;
    *verified*) echo "verified after $((SECONDS - start)) s" ;;
    esac
done
du -sh "$CARGO_TARGET_DIR" "$CARGO_TARGET_DIR/demo/milepost"
