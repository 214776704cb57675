//! Finds the files of a directory that is to be deployed.
//!
//! `deploy` and `dev` call [`scan`]; what it returns is handed to the client library, which reads
//! the bytes. Anything that cannot be served as it is (a socket, a link that leaves the tree, a
//! file that cannot be read) is an error by name, found before anything is uploaded.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use atoll_client::SourceFile;
use atoll_proto::name::{NEVER_SERVED, check_site_path};
use atoll_proto::{ByteName, content_type};
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::report::Failure;
use crate::text;

/// A file of patterns, in any directory of the tree.
const IGNORE_FILE: &str = ".atollignore";
/// Problems shown; the rest is counted.
const PROBLEMS_SHOWN: usize = 10;
/// Problems kept in memory.
const PROBLEMS_KEPT: usize = 1000;
/// Links to directories within links to directories, as the kernel's own bound.
const LINKS_MAX: usize = 40;
/// Directories read at the same time: enough to hide a disk's latency.
const THREADS: usize = 8;

/// How to scan.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScanOptions {
    /// A file of patterns (gitignore syntax) beside those in the tree.
    pub(crate) exclude_from: Option<PathBuf>,
    /// Follow links that leave the tree too.
    pub(crate) follow_symlinks: bool,
}

/// What there is to deploy.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    /// The files, in path order.
    pub(crate) files: Vec<SourceFile>,
    /// What the user should know, though it is no error.
    pub(crate) warnings: Vec<String>,
}

/// Something in the tree that cannot be deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    path: PathBuf,
    reason: String,
}

/// Finds all files under `root`.
///
/// # Errors
/// When `root` is no directory, a pattern is wrong, or something in it cannot be deployed: the
/// text names up to ten of them.
pub(crate) fn scan(root: &Path, options: &ScanOptions) -> Result<Scanned, Failure> {
    let canonical = fs::canonicalize(root).map_err(Failure::file("read", root))?;
    let meta = fs::metadata(&canonical).map_err(Failure::file("read", root))?;
    if !meta.is_dir() {
        return Err(Failure::Failed(format!(
            "{} is not a directory; name the directory that holds the site's files",
            root.display()
        )));
    }
    let mut patterns = Vec::new();
    if let Some(file) = &options.exclude_from {
        fs::metadata(file).map_err(Failure::file("read", file))?;
        patterns.push(Arc::new(read_patterns(root, file)?));
    }
    let first = Directory {
        disk: root.to_owned(),
        site: Vec::new(),
        ancestors: vec![(meta.dev(), meta.ino())],
        links: 0,
        patterns,
    };
    let walk = Walk {
        root: root.to_owned(),
        canonical,
        follow: options.follow_symlinks,
        state: Mutex::new(State { queue: vec![first], open: 1, ..State::default() }),
        more: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| walk.work());
        }
    });
    walk.finish()
}

/// A directory still to be read.
struct Directory {
    disk: PathBuf,
    /// Its path within the site, without a final slash; empty for the root.
    site: Vec<u8>,
    /// Device and inode of itself and the directories above, to notice links that go in circles.
    ancestors: Vec<(u64, u64)>,
    /// How many of those were reached through a link.
    links: usize,
    /// From the root's downwards.
    patterns: Vec<Arc<Gitignore>>,
}

#[derive(Default)]
struct State {
    queue: Vec<Directory>,
    /// Directories queued or being read.
    open: usize,
    files: Vec<SourceFile>,
    problems: Vec<Problem>,
    problems_more: usize,
    warnings: Vec<String>,
    fatal: Option<Failure>,
}

/// What one directory holds.
#[derive(Default)]
struct Found {
    files: Vec<SourceFile>,
    directories: Vec<Directory>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

struct Walk {
    root: PathBuf,
    canonical: PathBuf,
    follow: bool,
    state: Mutex<State>,
    more: Condvar,
}

impl Walk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(directory) = self.next() {
            let found = self.read(&directory);
            let mut state = self.lock();
            match found {
                Ok(found) => state.add(found),
                Err(failure) => {
                    state.fatal.get_or_insert(failure);
                    state.open -= state.queue.len();
                    state.queue.clear();
                }
            }
            state.open -= 1;
            drop(state);
            self.more.notify_all();
        }
    }

    fn next(&self) -> Option<Directory> {
        let mut state = self.lock();
        loop {
            if let Some(directory) = state.queue.pop() {
                return Some(directory);
            }
            if state.open == 0 {
                return None;
            }
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reads one directory. Only wrong patterns end the walk; the rest is gathered.
    fn read(&self, directory: &Directory) -> Result<Found, Failure> {
        let mut found = Found::default();
        let mut patterns = directory.patterns.clone();
        let own = directory.disk.join(IGNORE_FILE);
        if own.is_file() {
            patterns.push(Arc::new(read_patterns(&directory.disk, &own)?));
        }
        let entries = match fs::read_dir(&directory.disk) {
            Ok(entries) => entries,
            Err(error) => {
                found.problem(&directory.disk, error.to_string());
                return Ok(found);
            }
        };
        for entry in entries {
            match entry {
                Ok(entry) => self.entry(directory, &patterns, &entry.file_name(), &mut found),
                Err(error) => found.problem(&directory.disk, error.to_string()),
            }
        }
        Ok(found)
    }

    fn entry(
        &self,
        directory: &Directory,
        patterns: &[Arc<Gitignore>],
        name: &OsStr,
        found: &mut Found,
    ) {
        if NEVER_SERVED.contains(&name.as_bytes()) {
            return;
        }
        let disk = directory.disk.join(name);
        let link_meta = match fs::symlink_metadata(&disk) {
            Ok(meta) => meta,
            Err(error) => return found.problem(&disk, error.to_string()),
        };
        let linked = link_meta.file_type().is_symlink();
        // A link counts as what it points at; one that leads nowhere may still be excluded.
        let meta = if linked { fs::metadata(&disk) } else { Ok(link_meta) };
        let is_dir = meta.as_ref().is_ok_and(Metadata::is_dir);
        if excluded(patterns, &disk, is_dir) {
            return;
        }
        let meta = match meta {
            Ok(meta) => meta,
            Err(error) => {
                return found.problem(&disk, format!("symbolic link that leads nowhere: {error}"));
            }
        };
        if linked
            && !self.follow
            && let Err(reason) = self.stays_inside(&disk)
        {
            return found.problem(&disk, reason);
        }
        let site = join(&directory.site, name);
        if meta.is_dir() {
            found.descend(directory, patterns, Entry { disk, site, meta, linked });
        } else {
            found.file(Entry { disk, site, meta, linked });
        }
    }

    fn stays_inside(&self, link: &Path) -> Result<(), String> {
        let target = fs::canonicalize(link).map_err(|error| error.to_string())?;
        if target.starts_with(&self.canonical) {
            return Ok(());
        }
        Err(format!(
            "symbolic link that leaves the tree, to {}; --follow-symlinks follows it",
            target.display()
        ))
    }

    fn finish(self) -> Result<Scanned, Failure> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = state.fatal {
            return Err(failure);
        }
        if !state.problems.is_empty() {
            state.problems.sort_by(|a, b| a.path.cmp(&b.path));
            return Err(refusal(&self.root, &state.problems, state.problems_more));
        }
        state.files.sort_by(|a, b| a.site_path.cmp(&b.site_path));
        Ok(Scanned { files: state.files, warnings: state.warnings })
    }
}

impl State {
    fn add(&mut self, found: Found) {
        self.open += found.directories.len();
        self.queue.extend(found.directories);
        self.files.extend(found.files);
        let room = PROBLEMS_KEPT.saturating_sub(self.problems.len());
        self.problems_more += found.problems.len().saturating_sub(room);
        self.problems.extend(found.problems.into_iter().take(room));
        self.warnings.extend(found.warnings);
    }
}

struct Entry {
    disk: PathBuf,
    site: Vec<u8>,
    meta: Metadata,
    linked: bool,
}

impl Found {
    fn problem(&mut self, path: &Path, reason: String) {
        self.problems.push(Problem { path: path.to_owned(), reason });
    }

    fn descend(&mut self, above: &Directory, patterns: &[Arc<Gitignore>], entry: Entry) {
        let identity = (entry.meta.dev(), entry.meta.ino());
        let links = above.links + usize::from(entry.linked);
        if above.ancestors.contains(&identity) {
            let path = entry.disk.display();
            self.warnings
                .push(format!("{path}: left out, this link leads to a directory above it"));
            return;
        }
        if links > LINKS_MAX {
            return self.problem(&entry.disk, "too many links within links".to_owned());
        }
        let mut ancestors = above.ancestors.clone();
        ancestors.push(identity);
        let Entry { disk, site, .. } = entry;
        self.directories.push(Directory {
            disk,
            site,
            ancestors,
            links,
            patterns: patterns.to_vec(),
        });
    }

    fn file(&mut self, entry: Entry) {
        let Entry { disk, site, meta, .. } = entry;
        if let Some(kind) = special(&meta) {
            return self.problem(&disk, format!("is a {kind}; only files can be served"));
        }
        if let Err(error) = check_site_path(&site) {
            return self.problem(&disk, error.to_string());
        }
        if let Err(error) = nix::unistd::eaccess(&disk, nix::unistd::AccessFlags::R_OK) {
            return self.problem(&disk, error.desc().to_lowercase());
        }
        self.files.push(SourceFile {
            content_type: content_type::of(&site),
            site_path: ByteName(site),
            disk_path: disk,
            size: meta.len(),
            mtime_ns: mtime_ns(&meta),
            mode: meta.permissions().mode() & 0o7777,
        });
    }
}

/// When the content of a local file was last changed, nanoseconds since the Unix epoch.
pub(crate) fn mtime_ns(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}

/// What kind of special file it is, if it is one.
pub(crate) fn special(meta: &Metadata) -> Option<&'static str> {
    let kind = meta.file_type();
    if kind.is_socket() {
        Some("socket")
    } else if kind.is_fifo() {
        Some("named pipe")
    } else if kind.is_block_device() || kind.is_char_device() {
        Some("device")
    } else {
        None
    }
}

fn join(directory: &[u8], name: &OsStr) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    path
}

fn read_patterns(base: &Path, file: &Path) -> Result<Gitignore, Failure> {
    let mut builder = GitignoreBuilder::new(base);
    if let Some(error) = builder.add(file) {
        return Err(Failure::Failed(format!("pattern in {error}")));
    }
    builder.build().map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))
}

/// The deepest file of patterns that says anything decides, as in git.
fn excluded(patterns: &[Arc<Gitignore>], path: &Path, is_dir: bool) -> bool {
    for patterns in patterns.iter().rev() {
        match patterns.matched(path, is_dir) {
            Match::Ignore(_) => return true,
            Match::Whitelist(_) => return false,
            Match::None => {}
        }
    }
    false
}

fn refusal(root: &Path, problems: &[Problem], more: usize) -> Failure {
    let total = problems.len() + more;
    let mut lines = vec![format!(
        "{} of {} cannot be deployed; nothing was uploaded:",
        text::count(total as u64, "entry").replace("entrys", "entries"),
        root.display()
    )];
    for problem in problems.iter().take(PROBLEMS_SHOWN) {
        let path = text::name(problem.path.as_os_str().as_bytes());
        lines.push(format!("  {path}: {}", problem.reason));
    }
    if total > PROBLEMS_SHOWN {
        lines.push(format!("  and {} more", total - PROBLEMS_SHOWN));
    }
    lines.push("remove them, or exclude them in a .atollignore or with --exclude-from".to_owned());
    Failure::Failed(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        dir
    }

    fn paths(root: &Path, options: &ScanOptions) -> Vec<String> {
        let scanned = scan(root, options).unwrap();
        scanned.files.iter().map(|file| file.site_path.lossy().into_owned()).collect()
    }

    #[test]
    fn all_files_in_order_without_what_never_belongs_to_a_site() {
        let dir = tree(&["b/c.html", "a.txt", "z", ".git/x", "b/.DS_Store", ".atoll/k", ".hidden"]);
        fs::create_dir(dir.path().join("empty")).unwrap();
        let found = paths(dir.path(), &ScanOptions::default());
        assert_eq!(found, [".hidden", "a.txt", "b/c.html", "z"]);
        let scanned = scan(dir.path(), &ScanOptions::default()).unwrap();
        assert_eq!(scanned.files[2].size, 8);
        assert_eq!(scanned.files[2].content_type, "text/html; charset=utf-8");
    }

    #[test]
    fn patterns_exclude_and_deeper_ones_decide() {
        let dir = tree(&["x.map", "a/y.map", "a/keep.map", "drafts/1", "b/drafts", "s.txt"]);
        fs::write(dir.path().join(".atollignore"), "*.map\ndrafts/\n").unwrap();
        fs::write(dir.path().join("a/.atollignore"), "!keep.map\n").unwrap();
        assert_eq!(paths(dir.path(), &ScanOptions::default()), ["a/keep.map", "b/drafts", "s.txt"]);

        let extra = tree(&["more"]);
        let file = extra.path().join("more");
        fs::write(&file, "/s.txt\n").unwrap();
        let options = ScanOptions { exclude_from: Some(file), ..ScanOptions::default() };
        assert_eq!(paths(dir.path(), &options), ["a/keep.map", "b/drafts"]);
        let absent = ScanOptions { exclude_from: Some("/absent".into()), ..options };
        assert!(scan(dir.path(), &absent).unwrap_err().to_string().contains("/absent"));
    }

    #[test]
    fn links_within_the_tree_are_followed_and_circles_end() {
        let dir = tree(&["real/a", "real/deep/b"]);
        symlink("real", dir.path().join("alias")).unwrap();
        symlink("../..", dir.path().join("real/deep/up")).unwrap();
        symlink("real/a", dir.path().join("file-link")).unwrap();
        let found = paths(dir.path(), &ScanOptions::default());
        let expected = ["alias/a", "alias/deep/b", "file-link", "real/a", "real/deep/b"];
        assert_eq!(found, expected);
        let scanned = scan(dir.path(), &ScanOptions::default()).unwrap();
        assert_eq!(scanned.warnings.len(), 2, "{:?}", scanned.warnings);
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let outside = tree(&["secret"]);
        let dir = tree(&["ok"]);
        symlink(outside.path().join("secret"), dir.path().join("leak")).unwrap();
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = scan(dir.path(), &ScanOptions::default()).unwrap_err();
        let text = error.to_string();
        for part in ["3 entries", "leak: symbolic link that leaves", "dangling", "pipe: is a named"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        fs::remove_file(dir.path().join("pipe")).unwrap();
        fs::remove_file(dir.path().join("dangling")).unwrap();
        let follow = ScanOptions { follow_symlinks: true, ..ScanOptions::default() };
        assert_eq!(paths(dir.path(), &follow), ["leak", "ok"]);
    }

    #[test]
    fn at_most_ten_problems_are_listed() {
        let dir = tree(&[]);
        for number in 0..14 {
            symlink("nowhere", dir.path().join(format!("l{number:02}"))).unwrap();
        }
        let text = scan(dir.path(), &ScanOptions::default()).unwrap_err().to_string();
        assert!(text.contains("l09") && !text.contains("l10"), "{text}");
        assert!(text.contains("and 4 more"), "{text}");
    }

    #[test]
    fn names_are_bytes() {
        let dir = tree(&["a#b?c%d e"]);
        fs::write(dir.path().join(OsStr::from_bytes(b"\xff\n.html")), "x").unwrap();
        let scanned = scan(dir.path(), &ScanOptions::default()).unwrap();
        let names: Vec<&[u8]> = scanned.files.iter().map(|f| f.site_path.as_bytes()).collect();
        assert_eq!(names, [&b"a#b?c%d e"[..], b"\xff\n.html"]);
        assert!(scan(&dir.path().join("a#b?c%d e"), &ScanOptions::default()).is_err());
    }
}
