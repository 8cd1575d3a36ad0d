#!/usr/bin/env bash
# Installs what is missing from the distribution's packages: `setup.sh build`, `setup.sh test PYTHON_ENV`;
# and `setup.sh clients FOLDER`: the MQTT clients that the tests run, at their pinned versions.
set -euo pipefail

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

need() { # need COMMAND PACKAGE…
    command -v "$1" >/dev/null && return
    local command=$1
    shift
    echo "installing $* (for $command)" >&2
    if [ -z "${apt_updated:-}" ]; then as_root apt-get update -qq && apt_updated=1; fi
    DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    command -v "$command" >/dev/null || { echo "error: $command is missing and could not be installed" >&2; exit 1; }
}

virtual_env() { # virtual_env FOLDER
    python3 -m venv "$1" 2>/dev/null || { as_root apt-get install -y -qq python3-venv >/dev/null && python3 -m venv "$1"; }
}

case "${1:-build}" in
build)
    command -v cargo >/dev/null || { echo "error: Rust is missing; install it from https://rustup.rs" >&2; exit 1; }
    need cc gcc libc6-dev
    need make make
    ;;
test)
    need psql postgresql-client
    need mosquitto_pub mosquitto-clients
    need openssl openssl
    need python3 python3 python3-venv
    python_env=${2:?the folder of the Python environment}
    if ! "$python_env/bin/python" -c 'import deltalake, duckdb' 2>/dev/null; then
        echo "installing the Python packages deltalake and duckdb into $python_env" >&2
        virtual_env "$python_env"
        # Only the test that reads the tables with other engines needs them.
        "$python_env/bin/pip" install --quiet -r "$(dirname "$0")/python-engines.txt" ||
            echo "warning: the Python packages could not be installed; the test of other engines will be skipped" >&2
    fi
    ;;
clients)
    need python3 python3 python3-venv
    need npm nodejs npm
    folder=${2:?the folder to install into}
    here=$(cd "$(dirname "$0")" && pwd)
    mkdir -p "$folder"
    rm -f "$folder/complete"
    # The copies of both lists say what is installed.
    if ! cmp -s "$here/python-clients.txt" "$folder/python-clients.txt"; then
        echo "installing the Python MQTT clients into $folder/python" >&2
        rm -rf "$folder/python"
        virtual_env "$folder/python"
        "$folder/python/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: -r "$here/python-clients.txt"
        cp "$here/python-clients.txt" "$folder/"
    fi
    programs=$here/../crates/milepost/tests/clients
    if [ ! -d "$folder/node_modules" ] || ! cmp -s "$programs/package-lock.json" "$folder/package-lock.json"; then
        echo "installing MQTT.js into $folder/node_modules" >&2
        rm -f "$folder/package-lock.json"
        cp "$programs/package.json" "$programs/package-lock.json" "$folder/"
        npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --silent || { rm -f "$folder/package-lock.json"; exit 1; }
    fi
    touch "$folder/complete"
    ;;
*)
    echo "error: setup.sh knows build, test and clients, not $1" >&2
    exit 2
    ;;
esac
