//! Rules of the tree that no compiler checks: layering, import fences, banned calls, proportions,
//! and documents that must stay true. Runs with the other tests; needs no network and no cargo.
//!
//! Every rule says what it forbids, where it found it, and what to do instead. The lists named
//! `RATCHET` hold what was accepted with a reason; they may shrink freely and grow only with one.

#![allow(
    clippy::unwrap_used,
    reason = "tests, and a file of the tree that cannot be read should fail them"
)]

mod documents;
mod report;
mod text;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use report::Report;
use text::{code_only, has_call, has_path, has_word, without_tests};
use tree::{
    files_ending, is_test_file, is_under, locked_dependencies, manifest_dependencies,
    manifest_lines, normal_dependencies, root, sources, tree,
};

/// Who may use whom: folder, and the member crates it may depend on. Nothing depends on testbed.
const LAYERS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("net", &["atoll-proto"]),
    ("client", &["atoll-proto", "atoll-net"]),
    ("master", &["atoll-proto", "atoll-net"]),
    ("chunkserver", &["atoll-proto", "atoll-net"]),
    ("edge", &["atoll-proto", "atoll-net", "atoll-client"]),
    ("fuse", &["atoll-proto", "atoll-net", "atoll-client"]),
    (
        "cli",
        &[
            "atoll-proto",
            "atoll-net",
            "atoll-client",
            "atoll-master",
            "atoll-chunkserver",
            "atoll-edge",
            "atoll-fuse",
        ],
    ),
    (
        "testbed",
        &[
            "atoll-proto",
            "atoll-net",
            "atoll-client",
            "atoll-master",
            "atoll-chunkserver",
            "atoll-edge",
            "atoll-fuse",
            "atoll",
        ],
    ),
];

/// `proto` is what is said, not how it travels: none of these below it, however indirectly.
const NOT_UNDER_PROTO: &[&str] =
    &["tokio", "mio", "quinn", "quinn-proto", "rustls", "hyper", "socket2", "rocksdb", "openraft"];

/// A crate that shapes a part lives behind these files; elsewhere the part speaks its own words.
struct Fence {
    /// What gives the crate away in code.
    marks: &'static [&'static str],
    /// Files, or folders ending in `/`, that may use it.
    inside: &'static [&'static str],
    instead: &'static str,
}

const FENCES: &[Fence] = &[
    Fence {
        marks: &["fuser::", "use fuser;"],
        inside: &["fuse/src/kernel/"],
        instead: "give the file system behind it plain types; kernel/ translates",
    },
    Fence {
        marks: &["rocksdb::", "use rocksdb;"],
        inside: &["master/src/store/rocks.rs", "chunkserver/src/store/rocks/db.rs"],
        instead: "add the operation to the file of the store that knows the library, and call that",
    },
    Fence {
        marks: &["rs_merkle::", "use rs_merkle;"],
        inside: &["proto/src/tree.rs"],
        instead: "compare by the trees of atoll-proto",
    },
    Fence {
        marks: &["openraft::", "use openraft;"],
        // The tests and the metadata family name log ids as the protocol does.
        inside: &[
            "master/src/raft/",
            "master/src/ops/tests.rs",
            "master/src/ops/walk.rs",
            "master/src/store/meta.rs",
        ],
        instead: "propose and read through master/src/raft",
    },
    Fence {
        marks: &["h3_quinn::", "use h3::", "h3::server", "h3::client", "h3::quic", "h3::error"],
        inside: &["edge/src/http/h3.rs", "cli/src/", "testbed/"],
        instead: "speak the edge's own request and response types; h3.rs translates",
    },
    Fence {
        marks: &["hickory_proto::", "use hickory_proto;"],
        inside: &["edge/src/dns/", "testbed/"],
        instead: "keep DNS messages inside edge/src/dns",
    },
    Fence {
        marks: &["maxminddb::", "use maxminddb;"],
        inside: &["edge/src/dns/geo/database.rs"],
        instead: "read geographic databases through Database",
    },
    Fence {
        marks: &["quinn::", "use quinn;"],
        inside: &["net/", "edge/src/http/", "cli/src/", "testbed/"],
        instead: "links between nodes are atoll-net's: call, pool, server loop",
    },
    Fence {
        marks: &["rcgen::", "use rcgen;", "x509_parser::"],
        inside: &["net/src/", "edge/src/"],
        instead: "certificates of the cluster come from atoll-net",
    },
    Fence {
        marks: &["metrics_exporter_prometheus::", "tracing_subscriber::"],
        inside: &["net/src/"],
        instead: "telemetry is set up in one place for every role, in atoll-net",
    },
];

/// Calls with a better replacement.
struct Ban {
    calls: &'static [&'static str],
    /// Files, or folders ending in `/`, where the call is the right one.
    home: &'static [&'static str],
    instead: &'static str,
}

const BANS: &[Ban] = &[
    Ban {
        calls: &["todo!(", "unimplemented!(", "dbg!("],
        home: &[],
        instead: "build it, or leave it out and say so in the documents",
    },
    Ban {
        calls: &[".unwrap()", ".unwrap_err()"],
        home: &["testbed/", "net/examples/", "chunkserver/examples/"],
        instead: "return an error, or use expect(\"the reason why it holds\")",
    },
    Ban {
        calls: &["tokio::spawn(", "tokio::task::spawn("],
        home: &["net/src/task.rs", "testbed/"],
        instead: "use atoll-net's task module: counted, named, ended at shutdown",
    },
    Ban {
        calls: &["unbounded_channel", "mpsc::channel()"],
        home: &["testbed/"],
        instead: "every queue has a bound: mpsc::channel(n), sync_channel(n)",
    },
    Ban {
        calls: &["SystemTime::now("],
        // Each role reads the wall clock in one place; the leader stamps log entries with it.
        home: &[
            "net/src/",
            "cli/src/",
            "client/src/deploy.rs",
            "chunkserver/src/tasks/clock.rs",
            "edge/src/clock.rs",
            "fuse/src/fs/file.rs",
            "fuse/src/kernel/convert.rs",
            "master/src/raft/propose.rs",
            "master/src/server.rs",
            "testbed/",
        ],
        instead: "take `now` as an argument; the border (net, the role's tasks) reads the clock",
    },
    Ban {
        calls: &["println!(", "print!(", "eprintln!(", "eprint!("],
        home: &["cli/", "testbed/", "net/examples/", "chunkserver/examples/"],
        instead: "roles log through tracing; only the command line writes to the terminal",
    },
    Ban {
        calls: &["process::exit("],
        home: &["cli/src/", "testbed/"],
        instead: "return an error, so that destructors run and the caller decides",
    },
];

/// Accepted uses outside their home: (file, call, how many, reason).
const BANS_RATCHET: &[(&str, &str, usize, &str)] = &[];

/// Lines of a source file, tests included. STYLE: median 200, cut by verb at about 600.
const LINES_MAX: usize = 800;

/// Files accepted above `LINES_MAX`: (file, lines, reason).
const LINES_RATCHET: &[(&str, usize, &str)] = &[];

/// Dependencies that no source line names: (folder, crate, reason).
const UNUSED_RATCHET: &[(&str, &str, &str)] = &[];

/// Folders and modules of these names collect what has no home.
const NAMES_WITHOUT_A_HOME: &[&str] = &["utils", "util", "common", "helpers", "misc", "types"];

#[test]
fn layers_are_respected() {
    let mut report = Report::new(
        "layering",
        "depend downwards only (docs/ARCHITECTURE.md); move what both need into proto or net",
    );
    for (folder, allowed) in LAYERS {
        for dependency in manifest_dependencies(folder) {
            let ours = dependency == "atoll" || dependency.starts_with("atoll-");
            if ours && !allowed.contains(&dependency.as_str()) {
                report.add(&format!("{folder}/Cargo.toml"), &format!("depends on {dependency}"));
            }
        }
    }
    report.finish();
}

#[test]
fn every_member_has_a_layer() {
    let known: BTreeSet<String> = LAYERS.iter().map(|(folder, _)| (*folder).to_owned()).collect();
    let members: BTreeSet<String> = tree()
        .iter()
        .filter_map(|path| path.strip_suffix("/Cargo.toml"))
        .filter(|folder| !folder.contains('/'))
        .map(str::to_owned)
        .collect();
    assert_eq!(known, members, "LAYERS in this file must name exactly the workspace's members");
}

#[test]
fn proto_is_free_of_input_and_output() {
    let mut report = Report::new(
        "proto knows no sockets, runtime or disk",
        "move the code that needs the crate into net or into the role that uses it",
    );
    let lock = locked_dependencies();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut queue: Vec<String> = Vec::new();
    for name in normal_dependencies("proto") {
        seen.insert(name.clone(), format!("atoll-proto -> {name}"));
        queue.push(name);
    }
    while let Some(name) = queue.pop() {
        let way = seen[&name].clone();
        for next in lock.get(&name).into_iter().flatten() {
            if !seen.contains_key(next) {
                seen.insert(next.clone(), format!("{way} -> {next}"));
                queue.push(next.clone());
            }
        }
    }
    assert!(seen.len() > 5, "Cargo.lock was not understood: only {seen:?}");
    for banned in NOT_UNDER_PROTO {
        if let Some(way) = seen.get(*banned) {
            report.add("proto/Cargo.toml", way);
        }
    }
    report.finish();
}

#[test]
fn versions_are_in_one_place() {
    let mut report = Report::new(
        "versions live in the root Cargo.toml",
        "name the crate in [workspace.dependencies] and write `name.workspace = true`",
    );
    for (folder, _) in LAYERS {
        let file = format!("{folder}/Cargo.toml");
        for (section, line) in manifest_lines(folder) {
            let ours = line.contains(".workspace = true") || line.contains("workspace = true");
            if section.ends_with("dependencies") && !ours {
                report.add(&file, &line);
            }
        }
    }
    report.finish();
}

#[test]
fn dependencies_are_used() {
    let mut report = Report::new("unused dependency", "remove the line from Cargo.toml");
    for (folder, _) in LAYERS {
        let code: String = sources()
            .filter(|(path, _)| path.starts_with(&format!("{folder}/")))
            .map(|(_, source)| code_only(&source))
            .collect();
        for dependency in manifest_dependencies(folder) {
            let accepted =
                UNUSED_RATCHET.iter().any(|(f, name, _)| f == folder && *name == dependency);
            if !accepted && !has_word(&code, &dependency.replace('-', "_")) {
                report.add(&format!("{folder}/Cargo.toml"), &dependency);
            }
        }
    }
    report.finish();
}

#[test]
fn crates_stay_behind_their_fences() {
    let mut reports = Vec::new();
    for fence in FENCES {
        let mut report = Report::new(
            &format!("{} only in {}", fence.marks[0], fence.inside.join(", ")),
            fence.instead,
        );
        for (path, source) in sources().filter(|(path, _)| !is_under(path, fence.inside)) {
            for (number, line) in code_only(&source).lines().enumerate() {
                if let Some(mark) = fence.marks.iter().find(|mark| has_path(line, mark)) {
                    report.add(&format!("{path}:{}", number + 1), mark);
                }
            }
        }
        reports.push(report);
    }
    Report::finish_all(reports);
}

#[test]
fn banned_calls_stay_out() {
    let mut reports = Vec::new();
    for ban in BANS {
        for call in ban.calls {
            let mut report = Report::new(&format!("banned: {call}"), ban.instead);
            for (path, source) in sources().filter(|(path, _)| !is_under(path, ban.home)) {
                if is_test_file(&path) {
                    continue;
                }
                let code = without_tests(&code_only(&source));
                let lines: Vec<usize> = code
                    .lines()
                    .enumerate()
                    .filter(|(_, line)| has_call(line, call))
                    .map(|(number, _)| number + 1)
                    .collect();
                let accepted = BANS_RATCHET
                    .iter()
                    .find(|(file, what, _, _)| *file == path && what == call)
                    .map_or(0, |(_, _, count, _)| *count);
                if lines.len() > accepted {
                    for line in &lines {
                        report.add(&format!("{path}:{line}"), call);
                    }
                } else if lines.len() < accepted {
                    report
                        .add("BANS_RATCHET", &format!("{path} has {} now: lower it", lines.len()));
                }
            }
            reports.push(report);
        }
    }
    Report::finish_all(reports);
}

#[test]
fn ratchets_name_files_that_exist() {
    let tree = tree();
    let mut report = Report::new("stale ratchet entry", "remove it");
    for file in BANS_RATCHET.iter().map(|r| r.0).chain(LINES_RATCHET.iter().map(|r| r.0)) {
        if !tree.iter().any(|path| path == file) {
            report.add("testbed/tests/tidy/main.rs", file);
        }
    }
    report.finish();
}

#[test]
fn files_stay_small() {
    let mut report = Report::new(
        &format!("a source file has at most {LINES_MAX} lines"),
        "cut it by verb: one operation, one file",
    );
    for (path, source) in files_ending(".rs") {
        let most = LINES_RATCHET
            .iter()
            .find(|(file, _, _)| *file == path)
            .map_or(LINES_MAX, |(_, lines, _)| *lines);
        let lines = source.lines().count();
        if lines > most {
            report.add(&path, &format!("{lines} lines, {most} allowed"));
        }
    }
    report.finish();
}

#[test]
fn every_file_says_what_it_is() {
    let mut report = Report::new(
        "a module starts with //! and says what it is, who calls it, what it does not do",
        "write it",
    );
    for (path, source) in files_ending(".rs") {
        if !source.trim_start().starts_with("//!") {
            report.add(&path, "no module documentation");
        }
    }
    report.finish();
}

#[test]
fn names_mean_something() {
    let mut report = Report::new(
        &format!("no file or folder named {}", NAMES_WITHOUT_A_HOME.join(", ")),
        "name it after the noun of the design that it is about",
    );
    for path in tree() {
        let homeless = Path::new(&path).components().any(|part| {
            let name = part.as_os_str().to_string_lossy();
            let stem = name.strip_suffix(".rs").unwrap_or(&name);
            NAMES_WITHOUT_A_HOME.contains(&stem)
        });
        if homeless {
            report.add(&path, "a name without a home");
        }
    }
    report.finish();
}

#[test]
fn nothing_of_the_authors_machine_is_in_the_tree() {
    // Put together here, so that this file does not find itself.
    let foreign = [
        ["/wo", "rk/"].concat(),
        ["/ro", "ot/"].concat(),
        ["registry", "/src/"].concat(),
        ["index.crates", ".io"].concat(),
    ];
    let mut report = Report::new(
        "a path or host of one machine",
        "write what holds on every machine: a relative path, $HOME, a setting",
    );
    for path in tree().into_iter().filter(|path| path != "Cargo.lock") {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else {
            continue; // not text, or a dangling link: nothing to read
        };
        for (number, line) in text.lines().enumerate() {
            for word in foreign.iter().filter(|word| line.contains(word.as_str())) {
                report.add(&format!("{path}:{}", number + 1), word);
            }
        }
    }
    report.finish();
}
