#!/usr/bin/env bash
# Runs a cargo build; says beforehand how long the first one takes and what it waits for.
set -euo pipefail
target=${CARGO_TARGET_DIR:-target}
if [ ! -e "$target/demo/milepost" ]; then
    echo "First build: about 480 crates, 6 to 9 minutes on two cores; later ones take seconds." >&2
fi
# A bar where somebody looks, plain lines where not.
[ -t 2 ] && export CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=${COLUMNS:-80}
exec "$@"
