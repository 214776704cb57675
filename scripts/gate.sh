#!/usr/bin/env bash
# The gate: every check a change must pass, as named steps. Stops at the first red one and prints
# a table with seconds. Never edits a file of the tree. `scripts/gate.sh STEP…` runs only those.
#
# Everything uses the release profile and `--workspace`, so that all steps share one build of the
# dependencies (docs/decisions/0003-one-build-profile.md). RUSTFLAGS stays untouched for the same reason:
# warnings become errors through clippy's and rustdoc's own flags.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all_steps=(tools fmt clippy doc deny typos build test doctest demo)
target=${CARGO_TARGET_DIR:-target}
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
table=()
started=$SECONDS
tree_before=$(git status --porcelain 2>/dev/null || true)

# ---- the steps -----------------------------------------------------------------------------------

# What the tests run. A missing program fails here, by name, instead of deep inside a test.
step_tools() {
    local missing=()
    for program in cargo c++ git curl python3 tar rsync ip nft diff; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    cargo clippy --version >/dev/null 2>&1 || missing+=("clippy (rustup component add clippy)")
    cargo fmt --version >/dev/null 2>&1 || missing+=("rustfmt (rustup component add rustfmt)")
    [ "$(id -u)" -eq 0 ] || command -v fusermount3 >/dev/null || missing+=("fusermount3 (Debian: fuse3)")
    if [ ! -c /dev/fuse ]; then
        missing+=("/dev/fuse (load the kernel module: modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN)")
    elif ! (: <>/dev/fuse) 2>/dev/null; then
        missing+=("permission to open /dev/fuse")
    fi
    # Disks whose power can be cut. Who is not root skips those tests, and they say so.
    if [ "$(id -u)" -eq 0 ]; then
        for program in mkfs.ext4 mkfs.xfs; do
            command -v "$program" >/dev/null || missing+=("$program (Debian: e2fsprogs, xfsprogs)")
        done
        [ -c /dev/loop-control ] || missing+=("/dev/loop-control (load the kernel module: modprobe loop; in a container: --privileged)")
    fi
    python3 -c 'import mmap, sqlite3' 2>/dev/null || missing+=("Python's module sqlite3 (Debian: python3)")
    # The suites that the mount must pass.
    scripts/suites.sh "$target/tools" >&2 || missing+=("pjdfstest and fsx (scripts/suites.sh builds them from crates.io)")
    [ ${#missing[@]} -eq 0 ] && return
    printf 'missing, and the tests need it: %s\n' "${missing[@]}" >&2
    return 1
}

step_fmt() { cargo fmt --all -- --check; }

step_clippy() { cargo clippy --release --locked --workspace --all-targets -- -D warnings; }

# Private items are documented too, so links to them are right; help texts name <SITE> and the like.
step_doc() {
    RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links -A rustdoc::invalid_html_tags" cargo doc --release --locked --workspace --no-deps --document-private-items
}

step_deny() { cargo deny --locked --log-level error check bans licenses sources; }

step_typos() { typos --config typos.toml; }

step_build() { cargo build --release --locked --workspace --all-targets; }

# Unit, layering ("tidy") and end-to-end tests. The latter run the binary `atoll` and load a library
# into it, which building the tests need not build: without this they would pass or fail by old ones.
step_test() {
    cargo build --release --locked --workspace --bins --example atoll_shim
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --release --locked --workspace 2>&1 | tee "$log/test"
    else
        echo "cargo-nextest is not installed: using cargo test"
        local host
        host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
        env "CARGO_TARGET_${host}_RUNNER=$PWD/scripts/run-test-binary.sh" \
            cargo test --release --locked --workspace --lib --bins --tests --no-fail-fast 2>&1 | tee "$log/test"
    fi
}

step_doctest() { cargo test --release --locked --workspace --doc 2>&1 | tee "$log/doctest"; }

# What a newcomer types first: a cluster, a deploy, and every file back over HTTP/3.
step_demo() { ATOLL="$target/release/atoll" ONCE=1 SITE='' DATA='' scripts/demo.sh; }

# ---- running them --------------------------------------------------------------------------------

# Optional tools: their absence is shown, not hidden.
skip_reason() {
    case $1 in
        deny) cargo deny --version >/dev/null 2>&1 || echo "cargo-deny is not installed" ;;
        typos) command -v typos >/dev/null || echo "typos is not installed" ;;
    esac
}

# What the runners said last: nextest's or cargo test's lines, and the sum of the latter.
closing_lines() {
    local kind
    for kind in doctest test; do
        [ -f "$log/$kind" ] || continue
        printf '\n%s\n' "$kind"
        grep -E '^ *Summary \[|^ +(FAIL|TIMEOUT|SIG[A-Z]+) |^test .* FAILED$|^test result:' "$log/$kind" | sort | uniq
        awk '/^test result:/ { binaries++; passed += $4; failed += $6; ignored += $8 }
             END { if (binaries) printf "in all: %d passed; %d failed; %d ignored; %d binaries\n", passed, failed, ignored, binaries }' "$log/$kind"
    done
}

summary() {
    printf '\n%-10s %-6s %7s\n' step result seconds
    printf '%s\n' "${table[@]}"
    printf '%-10s %-6s %7d\n' total "$1" $((SECONDS - started))
    # The runner's closing lines once more, at the very end, where readers and machines look.
    closing_lines
}

run_step() {
    local step=$1 reason begin=$SECONDS
    reason=$(skip_reason "$step")
    if [ -n "$reason" ]; then
        printf '\n==> %s: SKIP (%s)\n' "$step" "$reason"
        table+=("$(printf '%-10s %-6s %7s  %s' "$step" SKIP - "$reason")")
        return
    fi
    printf '\n==> %s\n' "$step"
    # A subshell of its own, because `set -e` is off inside anything tested by `if` or `||`.
    set +e
    (set -e; "step_$step")
    local status=$?
    set -e
    if [ $status -ne 0 ]; then
        table+=("$(printf '%-10s %-6s %7d' "$step" RED $((SECONDS - begin)))")
        summary RED
        printf '\ngate: RED at "%s". Only this step again: scripts/gate.sh %s\n' "$step" "$step" >&2
        exit 1
    fi
    table+=("$(printf '%-10s %-6s %7d' "$step" ok $((SECONDS - begin)))")
}

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=("${all_steps[@]}")
for step in "${steps[@]}"; do
    declare -F "step_$step" >/dev/null || {
        printf 'gate: no step "%s"; there are: %s\n' "$step" "${all_steps[*]}" >&2
        exit 2
    }
done
for step in "${steps[@]}"; do
    run_step "$step"
done

# Nobody edits while CI runs, so there a changed tree means that a check left something behind.
if [ -n "${CI:-}" ] && [ "$tree_before" != "$(git status --porcelain 2>/dev/null || true)" ]; then
    git status --short
    summary RED
    echo 'gate: RED, the checks changed the tree (above)' >&2
    exit 1
fi
summary ok
