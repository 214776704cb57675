//! Looks through what is known find what a first look finds, whatever happened in between; and a
//! sealed directory holds the files a deploy of it would hold.
#![allow(clippy::unwrap_used, reason = "tests")]

use atoll_proto::manifest::build::build;
use atoll_proto::namespace::{Caller, NamespaceOp, RenameMode};
use atoll_proto::{ByteName, Content, InodeId, SiteName};
use proptest::prelude::*;

use super::known::{Known, Look};
use super::marks::Marks;
use super::walk::{Walked, walk};
use crate::operation::{Now, RootFacts, Seal};
use crate::ops::{namespace, site};
use crate::store::testing::TestStore;
use crate::store::{Transaction, aliases, deploys, live, objects};

const CALLER: Caller = Caller { uid: 0, gid: 0 };

struct Rig {
    store: TestStore,
    marks: Marks,
    index: u64,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self { store: TestStore::new(), marks: Marks::default(), index: 0 };
        rig.entry(|tx, now| namespace::init(tx, now).unwrap());
        rig
    }

    /// One log entry.
    fn entry<T>(&mut self, change: impl FnOnce(&mut Transaction<'_>, Now) -> T) -> T {
        self.index += 1;
        let now = Now { index: self.index, at_ns: self.index * 1_000_000 };
        let mut tx = Transaction::new(&self.store.rocks);
        tx.savepoint();
        let done = change(&mut tx, now);
        self.marks.note(self.index, &tx).unwrap();
        tx.commit().unwrap();
        done
    }

    /// Does it, if it is allowed.
    fn op(&mut self, op: NamespaceOp) -> bool {
        self.entry(|tx, now| {
            let done = namespace::apply(tx, now, op, &[]).is_ok();
            if !done {
                tx.rollback();
            }
            done
        })
    }

    fn put(&mut self, path: &str) -> bool {
        self.op(NamespaceOp::PutFile {
            path: path.into(),
            mode: 0o644,
            caller: CALLER,
            content: Content::Empty,
            mtime_ns: None,
            receipts: Vec::new(),
        })
    }

    fn find(&self, path: &str) -> Option<InodeId> {
        namespace::resolve(&self.store.rocks, &ByteName::from(path)).ok()
    }

    fn link(&mut self, path: &str, target: &str) -> bool {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() { "/" } else { parent };
        let Some(parent) = self.find(parent) else { return false };
        let target = target.into();
        self.op(NamespaceOp::Symlink { parent, name: name.into(), target, caller: CALLER })
    }

    fn look(&self, known: &mut Known, path: &str) -> (Walked, u64) {
        known.refresh(&self.marks, self.index);
        let mut look = Look::new(&self.store.rocks, known);
        let mut walked = walk(&mut look, path).unwrap();
        if let Walked::Files(files) = &mut walked {
            files.sort_by(|a, b| a.path.cmp(&b.path));
        }
        let reads = look.reads;
        look.finish();
        (walked, reads)
    }

    fn paths(&self, path: &str) -> Vec<String> {
        match self.look(&mut Known::default(), path).0 {
            Walked::Files(files) => {
                files.iter().map(|file| file.path.lossy().into_owned()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn problems(&self, path: &str) -> String {
        match self.look(&mut Known::default(), path).0 {
            Walked::Problems(text) => text,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_live_directory_holds_what_a_deploy_of_it_would() {
    let mut rig = Rig::new();
    assert_eq!(rig.look(&mut Known::default(), "/live").0, Walked::Absent);
    for path in ["/live/real/a", "/live/real/deep/b", "/live/.git/x", "/live/z", "/out/secret"] {
        assert!(rig.put(path));
    }
    for path in ["/live/_redirects", "/live/_headers", "/live/real/_headers", "/live/.hidden"] {
        assert!(rig.put(path));
    }
    let empty = NamespaceOp::MakeDirs { path: "/live/empty".into(), mode: 0o755, caller: CALLER };
    assert!(rig.op(empty));
    assert!(rig.link("/live/alias", "real"));
    assert!(rig.link("/live/real/deep/up", "../.."));
    assert!(rig.link("/live/file-link", "/live/real/a"));
    let expected = [
        ".hidden",
        "_headers",
        "_redirects",
        "alias/_headers",
        "alias/a",
        "alias/deep/b",
        "file-link",
        "real/_headers",
        "real/a",
        "real/deep/b",
        "z",
    ];
    assert_eq!(rig.paths("/live"), expected);

    assert!(rig.link("/live/leak", "../out/secret"));
    assert!(rig.link("/live/dangling", "nowhere"));
    let problems = rig.problems("/live");
    for part in ["\"leak\": symbolic link that leaves", "\"dangling\": symbolic link that leads"] {
        assert!(problems.contains(part), "{part} in {problems}");
    }
    assert!(rig.problems("/live/z").contains("is a file"));
}

#[test]
fn only_what_changed_is_read_again() {
    let mut rig = Rig::new();
    for number in 0..300 {
        rig.put(&format!("/live/d{}/f{number}", number % 7));
    }
    rig.put("/other/x");
    let mut known = Known::default();
    assert!(rig.look(&mut known, "/live").1 > 300);
    assert_eq!(rig.look(&mut known, "/live").1, 0);
    let before = rig.index;
    rig.put("/live/d3/f3");
    assert!(known.depends_on(&rig.marks.between(before, rig.index).unwrap()));
    let reads = rig.look(&mut known, "/live").1;
    assert!((1..4).contains(&reads), "{reads} inodes were read");
    let before = rig.index;
    rig.put("/other/y");
    assert!(!known.depends_on(&rig.marks.between(before, rig.index).unwrap()));
}

fn step() -> impl Strategy<Value = (u8, String, String)> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let path = prop::collection::vec(name, 1..4)
        .prop_map(|names| format!("/{}", [&["live"][..], &names].concat().join("/")));
    (0u8..8, path.clone(), path)
}

fn carry_out(rig: &mut Rig, (kind, path, other): (u8, String, String)) {
    let place = |rig: &Rig, path: &str| {
        let (parent, name) = path.rsplit_once('/').unwrap();
        Some((rig.find(parent)?, ByteName::from(name)))
    };
    match kind {
        0 | 1 => drop(rig.put(&path)),
        2 => drop(rig.link(&path, &other)),
        3 => {
            let made =
                NamespaceOp::MakeDirs { path: path.as_str().into(), mode: 7, caller: CALLER };
            rig.op(made);
        }
        4 | 5 => {
            let (Some(from), Some(to)) = (place(rig, &path), place(rig, &other)) else { return };
            let mode = if kind == 4 { RenameMode::Replace } else { RenameMode::Exchange };
            let ((parent, name), (new_parent, new_name)) = (from, to);
            rig.op(NamespaceOp::Rename { parent, name, new_parent, new_name, mode });
        }
        6 => {
            let Some((parent, name)) = place(rig, &path) else { return };
            if !rig.op(NamespaceOp::Unlink { parent, name: name.clone() }) {
                rig.op(NamespaceOp::Rmdir { parent, name });
            }
        }
        _ => {
            let (Some(inode), Some(to)) = (rig.find(&path), place(rig, &other)) else { return };
            rig.op(NamespaceOp::Link { inode, parent: to.0, name: to.1 });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn sealing_incrementally_is_sealing_anew(
        rounds in prop::collection::vec(prop::collection::vec(step(), 1..12), 1..8),
    ) {
        let mut rig = Rig::new();
        let mut known = Known::default();
        let mut before = rig.look(&mut known, "/live").0;
        for steps in rounds {
            let index = rig.index;
            for step in steps {
                carry_out(&mut rig, step);
            }
            let concerned = known.depends_on(&rig.marks.between(index, rig.index).unwrap());
            let again = rig.look(&mut known, "/live").0;
            let anew = rig.look(&mut Known::default(), "/live").0;
            prop_assert_eq!(&again, &anew);
            // What is not noticed must not have changed anything.
            prop_assert!(concerned || again == before);
            if let Walked::Files(files) = &again {
                build(files.clone(), None).unwrap();
            }
            before = again;
        }
    }
}

/// A site that follows `/live`, and the states that its directory is sealed as.
struct Sealing {
    rig: Rig,
    site: SiteName,
}

impl Sealing {
    fn new() -> Self {
        let (mut rig, site) = (Rig::new(), "blog".parse::<SiteName>().unwrap());
        let name = site.clone();
        rig.entry(|tx, now| {
            let live = Some("/live".to_owned());
            let settings = atoll_proto::site::SiteSettings { live, ..Default::default() };
            let domains = Vec::new();
            let op = atoll_proto::publish::SiteOp::CreateWith { site: name, domains, settings };
            site::apply(tx, now, op, None).unwrap()
        });
        Self { rig, site }
    }

    fn current(&self) -> Option<atoll_proto::DeployId> {
        let production = atoll_proto::AliasName::production();
        let record = aliases::get(&self.rig.store.rocks, &self.site, &production).unwrap();
        record.map(|record| record.alias.deploy)
    }

    fn seal(
        &mut self,
        text: &str,
        current: Option<atoll_proto::DeployId>,
        forced: bool,
    ) -> Result<atoll_proto::DeployId, String> {
        let (site, live) = (self.site.clone(), "/live".to_owned());
        let deploy = atoll_proto::ChunkId::of(text.as_bytes());
        self.rig.entry(|tx, now| {
            let page = atoll_proto::master::ObjectKind::Page;
            objects::set_kind(tx, now, &deploy, 9, page).unwrap();
            let root = RootFacts { files: 1, bytes: 9 };
            let seal = Seal { site, live, deploy, root, current, forced };
            match site::seal(tx, now, seal) {
                Ok(published) => Ok(published.deploy.unwrap()),
                Err(failure) => {
                    tx.rollback();
                    Err(format!("{failure:?}"))
                }
            }
        })
    }
}

#[test]
fn a_seal_moves_the_alias_unless_somebody_moved_it_meanwhile() {
    let mut sealing = Sealing::new();
    let first = sealing.seal("1", None, false).unwrap();
    let second = sealing.seal("2", Some(first), false).unwrap();
    assert_eq!(sealing.current(), Some(second));
    // Twice is once.
    assert_eq!(sealing.seal("2", Some(first), false).unwrap(), second);
    // Somebody went back after the directory was read as 3.
    let to = Some(first);
    let (site, alias) = (sealing.site.clone(), atoll_proto::AliasName::production());
    sealing.rig.entry(|tx, now| {
        let if_current = None;
        let op = atoll_proto::publish::SiteOp::MoveAlias { site, alias, deploy: to, if_current };
        site::apply(tx, now, op, None).unwrap()
    });
    assert_eq!(sealing.seal("3", Some(second), false).unwrap(), first);
    assert_eq!(sealing.current(), Some(first));
    let third = sealing.seal("3", Some(second), true).unwrap();
    assert_eq!(sealing.current(), Some(third));
    let sealed = live::sealed(&sealing.rig.store.rocks, &sealing.site).unwrap();
    assert_eq!(sealed, Some(third));
}

#[test]
fn a_seal_of_a_directory_that_is_not_followed_any_more_is_void() {
    let mut sealing = Sealing::new();
    let first = sealing.seal("1", None, false).unwrap();
    let site = sealing.site.clone();
    sealing.rig.entry(|tx, now| {
        let changes = atoll_proto::site::SiteChanges { live: Some(None), ..Default::default() };
        let op = atoll_proto::publish::SiteOp::Configure { site, changes };
        site::apply(tx, now, op, None).unwrap()
    });
    assert!(sealing.seal("2", Some(first), false).unwrap_err().contains("does not follow"));
    assert_eq!(sealing.current(), Some(first));
    assert_eq!(live::sealed(&sealing.rig.store.rocks, &sealing.site).unwrap(), None);
}

#[test]
fn deploys_of_a_live_site_are_bounded() {
    let mut sealing = Sealing::new();
    let kept = atoll_proto::limits::LIVE_DEPLOYS_KEPT;
    let mut current = None;
    for number in 0..kept + 20 {
        current = Some(sealing.seal(&number.to_string(), current, false).unwrap());
    }
    let all = deploys::list(&sealing.rig.store.rocks, &sealing.site, None, usize::MAX).unwrap();
    assert_eq!(all.len(), kept);
    assert_eq!(all.first().map(|deploy| deploy.id), current);
}
