#!/usr/bin/env bash
# Cargo's test runner where cargo-nextest is absent: runs one test binary. Tests that start a whole
# cluster go one at a time, as the `cluster` group in .config/nextest.toml does.
set -euo pipefail
binary=$1
shift
case "$(basename "$binary")" in
    e2e-* | e2e_*) exec "$binary" "$@" --test-threads=1 ;;
    *) exec "$binary" "$@" ;;
esac
