#!/usr/bin/env bash
# Installs what the build and the tests need and this machine lacks. Does nothing, quickly, when
# everything is there. Called by the Makefile.
set -euo pipefail

# libclang reads RocksDB's C header at build time; fuse3 lets ordinary users mount; the rest is
# what the tests and scripts run. aws-lc needs neither cmake nor nasm on x86-64 and ARM64 Linux.
packages=(g++ libclang-dev pkg-config make git curl ca-certificates python3 fuse3 iproute2 nftables procps rsync mount e2fsprogs xfsprogs)

say() { printf 'deps: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

installed() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# On a system without apt we cannot install, only look for the programs.
check_programs() {
    local missing=()
    for program in c++ make git curl python3 fusermount3 ip rsync; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    [ ${#missing[@]} -eq 0 ] && return
    say "this is not a Debian or Ubuntu system; install these yourself (Debian's names):"
    say "  ${packages[*]}"
    fail "not found: ${missing[*]}"
}

install_packages() {
    local missing=() sudo=()
    for package in "${packages[@]}"; do
        installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "run this as root: apt-get install ${missing[*]}"
        sudo=(sudo)
    fi
    say "installing ${missing[*]}"
    local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    # The package lists of a fresh machine may be empty or stale: refresh them, and if that fails
    # (no network, but a filled cache) try all the same.
    "${apt[@]}" update >&2 || say "apt-get update failed; going on with the lists there are"
    "${apt[@]}" install --no-install-recommends "${missing[@]}" >&2 || fail "apt-get could not install: ${missing[*]}"
}

check_rust() {
    command -v cargo >/dev/null || fail "cargo not found: install Rust from https://rustup.rs, then run this again"
    if cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1; then
        return
    fi
    # rustup's minimal profile leaves both out. Only `make test` needs them; it says so itself.
    if command -v rustup >/dev/null; then
        say "adding clippy and rustfmt to the toolchain"
        rustup component add clippy rustfmt >&2 || say "could not add them; 'make test' will stop there"
    fi
}

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
    install_packages
else
    check_programs
fi
check_rust

# The device appears when the module is loaded; containers have it or do not.
if [ ! -c /dev/fuse ] && [ "$(id -u)" -eq 0 ]; then
    modprobe fuse 2>/dev/null || true
fi
