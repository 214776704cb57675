#!/usr/bin/env bash
# A site online, on this machine: starts a local cluster, deploys a site, fetches every file back
# over HTTP/3 and compares it with its source, then shows the URLs and serves until Ctrl-C.
#   SITE=dir    the site to serve                    (default: demo/site)
#   DATA=dir    the cluster's data, kept and resumed (default: .atoll; with ONCE=1 a temporary folder)
#   ONCE=1      stop after the comparison; status 0 only if every step worked
#   ATOLL=file  the binary                           (default: target/release/atoll)
# Called by `make demo` and by the gate.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
atoll=$(realpath -m "${ATOLL:-$root/target/release/atoll}")
site=$(realpath -m "${SITE:-$root/demo/site}")
name=demo
start_seconds=120
compare_max=300

# Colours only on a terminal.
bold='' red='' green='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'; fi
step() { printf '%s==>%s %s\n' "$bold" "$plain" "$*"; }
fail() { printf '%sdemo failed:%s %s\n' "$red" "$plain" "$*" >&2; exit 1; }

[ -x "$atoll" ] || fail "$atoll is not there; run 'make build' first"
[ -d "$site" ] || fail "SITE=$site is not a directory"

temporary=''
if [ -n "${DATA:-}" ]; then
    data=$(realpath -m "$DATA")
elif [ -n "${ONCE:-}" ]; then
    temporary=$(mktemp -d)
    data=$temporary/data
else
    data=$root/.atoll
fi
mkdir -p "$data"
ready=$data/demo-ready.json
cluster_log=$data/demo.log
cluster=''

# ---- the end, whatever its cause -----------------------------------------------------------------

stop_cluster() {
    [ -n "$cluster" ] || return 0
    local pid=$cluster
    cluster=''
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 150); do
        kill -0 "$pid" 2>/dev/null || { wait "$pid" 2>/dev/null; return $?; }
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    echo "the cluster did not stop within 15 s and was killed" >&2
    return 1
}

at_exit() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    stop_cluster || [ $status -ne 0 ] || status=1
    if [ -n "$temporary" ]; then
        rm -rf "$temporary"
    fi
    exit $status
}
trap at_exit EXIT
trap 'exit ${interrupted:-130}' INT # once the site is online, Ctrl-C is the way to end, not an error
trap 'exit 143' TERM HUP

# ---- a cluster -----------------------------------------------------------------------------------

show_log() {
    printf -- '--- the last lines of %s ---\n' "$cluster_log" >&2
    tail -n 30 "$cluster_log" >&2 || true
}

step "starting a cluster on this machine (data in $data)"
rm -f "$ready"
"$atoll" dev --data "$data" --ready "$ready" </dev/null >"$cluster_log" 2>&1 &
cluster=$!
deadline=$((SECONDS + start_seconds))
while [ ! -f "$ready" ]; do
    if ! kill -0 "$cluster" 2>/dev/null; then
        cluster=''
        show_log
        fail "the cluster stopped while starting"
    fi
    if [ $SECONDS -ge $deadline ]; then
        show_log
        fail "the cluster was not ready after $start_seconds s"
    fi
    sleep 0.1
done

# The keys of the ready file are the contract of `atoll dev`.
mapfile -t facts < <(python3 - "$ready" <<'PYTHON'
import json, sys
ready = json.load(open(sys.argv[1]))
dns = (ready["dns"] or [{"addr": "", "zone": ""}])[0]
print(ready["config"], ready["ca"], dns["addr"], dns["zone"], sep="\n")
for edge in ready["edges"]:
    if edge["role"] == "edge":
        print(edge["name"], edge["https"].rpartition(":")[2])
PYTHON
)
[ ${#facts[@]} -gt 4 ] || fail "the ready file is not as promised, or names no edge: $ready"
config=${facts[0]} ca=${facts[1]} dns=${facts[2]} zone=${facts[3]}
edges=("${facts[@]:4}") # "name port" each
export ATOLL_CONFIG=$config

# ---- a deploy ------------------------------------------------------------------------------------

step "deploying $site"
"$atoll" deploy "$site" --site "$name" --create >"$data/demo.url" || fail "the deploy did not work (messages above)"

# ---- every file back, over HTTP/3 ----------------------------------------------------------------

# Lines of "URL path <TAB> file", at most $compare_max spread over the tree. A folder's index.html
# is asked for by the folder's name. Left out: hidden files, and the rule files that are never served.
paths=$data/demo.paths
python3 - "$site" "$compare_max" >"$paths" <<'PYTHON'
import os, sys, urllib.parse
site, most = sys.argv[1], int(sys.argv[2])
found = []
for folder, folders, files in os.walk(site):
    folders[:] = sorted(f for f in folders if not f.startswith("."))
    for file in sorted(files):
        path = os.path.relpath(os.path.join(folder, file), site)
        if file.startswith(".") or path in ("_headers", "_redirects") or "\n" in path or "\t" in path:
            continue
        url = path[: -len("index.html")] if os.path.basename(path) == "index.html" else path
        found.append((urllib.parse.quote("/" + url), path))
every = max(1, -(-len(found) // most))
for url, path in found[::every]:
    print(url, path, sep="\t")
PYTHON
[ -s "$paths" ] || fail "there is no file to serve in $site"

step "fetching $(wc -l <"$paths") files over HTTP/3 from every edge and comparing them with their source"
body=$data/demo.body
for edge in "${edges[@]}"; do
    base=https://$name.localhost:${edge##* }
    while IFS=$'\t' read -r url path; do
        "$atoll" get "$base$url" --http3 --ca "$ca" >"$body" </dev/null || fail "${edge%% *}: could not fetch $base$url"
        cmp -s "$body" "$site/$path" || fail "${edge%% *}: $base$url differs from $site/$path"
    done <"$paths"
    printf '    %s%-8s%s every byte as in the source\n' "$green" "${edge%% *}" "$plain"
done
rm -f "$body"

# ---- where it is ---------------------------------------------------------------------------------

first_port=${edges[0]##* }
if [ -n "${ONCE:-}" ]; then
    step "stopping the cluster"
    stop_cluster || fail "the cluster did not stop cleanly; see $cluster_log"
    printf '%severy step worked%s\n' "$green" "$plain"
    exit 0
fi

interrupted=0
printf '\n%sonline%s\n' "$bold" "$plain"
for edge in "${edges[@]}"; do
    printf '  %-8s https://%s.localhost:%s/\n' "${edge%% *}" "$name" "${edge##* }"
done
cat <<TEXT

  The certificates are signed by this cluster's own authority; browsers ask once, or import
    $ca
  With curl:
    curl --cacert $ca --resolve $name.localhost:$first_port:127.0.0.1 https://$name.localhost:$first_port/
  Ask its DNS:
    dig @${dns%:*} -p ${dns##*:} $name.$zone
  Change a file and deploy again; only what changed travels:
    export ATOLL_CONFIG=$config
    $atoll deploy $site --site $name
    $atoll status

Ctrl-C stops the cluster; its data stays in $data and the next 'make demo' resumes it.
TEXT
# Wakes up for a signal at once, and when the cluster ends by itself.
wait "$cluster" || true
cluster=''
show_log
fail "the cluster stopped by itself"
