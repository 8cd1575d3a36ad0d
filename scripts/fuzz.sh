#!/usr/bin/env bash
# Fuzzes every target for SECONDS over the kept corpus: `fuzz.sh SECONDS`. Coverage-guided fuzzing needs
# a nightly compiler; where there is none, the kept corpus is replayed on stable instead, and said so.
set -euo pipefail
seconds=${1:?seconds per target}
cd "$(dirname "$0")/.."
tools=${CARGO_TARGET_DIR:-target}/tools
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "warning: no nightly compiler: replaying the kept corpus instead of fuzzing" >&2
    cargo test --locked --profile demo -p mqtt -p broker --test corpus --test websocket_corpus
    exec cargo test --locked --profile demo -p broker --lib strangers
fi
fuzz=$tools/bin/cargo-fuzz
[ -x "$fuzz" ] || CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --root "$tools" cargo-fuzz@0.13.2
for target in $(cd fuzz && sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | tail -n +2); do
    echo "fuzzing $target for ${seconds}s" >&2
    # Longer inputs say nothing new: a meeting of the broker is over after 1,500 steps.
    case $target in broker_*) longest=2048 ;; *) longest=65536 ;; esac
    # New inputs go to a scratch folder: the kept corpus changes only by a commit.
    scratch=$(mktemp -d)
    CARGO_TARGET_DIR=$tools/fuzz RUSTUP_TOOLCHAIN=nightly "$fuzz" run --fuzz-dir fuzz "$target" "$scratch" "fuzz/corpus/$target" \
        -- -max_total_time="$seconds" -rss_limit_mb=2048 -max_len="$longest" -print_final_stats=1 2>&1 | tail -n 12
    rm -rf "$scratch"
done
