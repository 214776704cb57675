//! What belongs to the project: its files, its sources, its manifests and its lock file.
//! Reads only; the tidy rules call it. Needs git where there is one, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("testbed is a folder of the workspace")
}

/// Paths of all files that belong to the project, relative to its root, sorted: what git tracks or
/// would track. Without git (a tarball) every file outside the folders of results.
pub(crate) fn tree() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let mut paths: Vec<String> = match listed {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout)
            .unwrap()
            .split_terminator('\0')
            .filter(|path| root().join(path).is_file())
            .map(str::to_owned)
            .collect(),
        _ => {
            let mut found = Vec::new();
            walk(root(), &mut found);
            found
        }
    };
    paths.sort();
    assert!(
        paths.iter().any(|path| path == "Cargo.toml"),
        "not the tree of the project: {paths:?}"
    );
    paths
}

pub(crate) fn walk(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if [".git", "target", ".atoll"].contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            walk(&path, found);
        } else {
            found.push(path.strip_prefix(root()).unwrap().to_string_lossy().into_owned());
        }
    }
}

/// Rust sources with their text, the tidy test left out (it names all it forbids).
pub(crate) fn sources() -> impl Iterator<Item = (String, String)> {
    files_ending(".rs").filter(|(path, _)| !path.starts_with("testbed/tests/tidy/"))
}

pub(crate) fn documents() -> impl Iterator<Item = (String, String)> {
    files_ending(".md")
}

pub(crate) fn files_ending(end: &'static str) -> impl Iterator<Item = (String, String)> {
    tree().into_iter().filter(move |path| path.ends_with(end)).map(|path| {
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        (path, text)
    })
}

pub(crate) fn is_under(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path == *place || place.ends_with('/') && path.starts_with(place))
}

/// Files that are compiled for tests only.
pub(crate) fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
        || ["/tests/", "/benches/"].iter().any(|part| path.contains(part))
}

/// The path without `.` and `..`, as the tree names it.
pub(crate) fn normalized(path: &Path) -> String {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean.to_string_lossy().into_owned()
}

// ---- manifests -----------------------------------------------------------------------------------

/// Lines of a member's manifest with the section they stand in, comments and blanks left out.
pub(crate) fn manifest_lines(folder: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let mut section = String::new();
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if !line.is_empty() && !line.starts_with('#') {
            lines.push((section.clone(), line.to_owned()));
        }
    }
    lines
}

pub(crate) fn dependency_name(line: &str) -> String {
    line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned()
}

/// Dependencies of every kind.
pub(crate) fn manifest_dependencies(folder: &str) -> BTreeSet<String> {
    manifest_lines(folder)
        .iter()
        .filter(|(section, _)| section.ends_with("dependencies"))
        .map(|(_, line)| dependency_name(line))
        .collect()
}

pub(crate) fn normal_dependencies(folder: &str) -> BTreeSet<String> {
    manifest_lines(folder)
        .iter()
        .filter(|(section, _)| section.ends_with("dependencies") && !section.contains("dev-"))
        .map(|(_, line)| dependency_name(line))
        .collect()
}

/// Cargo.lock: package to what it depends on, by name; versions of one name are taken together.
pub(crate) fn locked_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut package = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("name = ") {
            package = name.trim_matches('"').to_owned();
        } else if let Some(item) = line.strip_prefix(" \"") {
            let name = item.trim_end_matches(['"', ',']).split(' ').next().unwrap_or_default();
            packages.entry(package.clone()).or_default().insert(name.to_owned());
        }
    }
    packages
}
