#!/usr/bin/env bash
# Builds the suites for file systems that the end-to-end tests run, where they are missing:
# pjdfstest and fsx, from crates.io, in fixed versions, in a minute or two. They have nothing to do
# with our own build: no RocksDB. `scripts/suites.sh FOLDER` puts them into FOLDER/bin.
set -euo pipefail
tools=$1

install() {
    local name=$1 version=$2
    local stamp=$tools/bin/$name-$version
    [ -x "$tools/bin/$name" ] && [ -e "$stamp" ] && return
    echo "building $name $version from crates.io"
    CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --force --root "$tools" --version "=$version" "$name"
    rm -f "$tools/bin/$name"-[0-9]*
    : > "$stamp"
    rm -rf "$tools/build"
}

mkdir -p "$tools"
install pjdfstest 0.2.2
install fsx 0.3.2
