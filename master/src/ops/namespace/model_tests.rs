//! A reference model: random operations on the state machine and on plain maps must agree.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use atoll_proto::namespace::{Attr, FileKind, NamespaceOp, NamespaceReply, RenameMode};
use atoll_proto::{ByteName, Code, InodeId};
use proptest::prelude::*;

use crate::ops::tests::{CALLER, Machine};
use crate::store::counters::{self, Counter};
use crate::store::{dentries, inodes};

/// What the model knows of an inode: children for a directory.
#[derive(Debug, Clone)]
enum Node {
    Other { kind: FileKind, names: u32 },
    Directory { children: BTreeMap<Vec<u8>, u64>, parent: u64 },
}

#[derive(Debug, Clone)]
struct Model {
    nodes: BTreeMap<u64, Node>,
}

/// The directory, and a name in it, by small numbers: collisions are what matters.
type Place = (usize, u8);

#[derive(Debug, Clone)]
enum Step {
    Create(Place, bool),
    Mkdir(Place),
    Symlink(Place),
    Link(usize, Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, RenameMode),
}

fn place() -> impl Strategy<Value = Place> {
    (0usize..8, 0u8..4)
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![
        4 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        2 => Just(RenameMode::Exchange),
    ];
    prop_oneof![
        3 => (place(), any::<bool>()).prop_map(|(place, exclusive)| Step::Create(place, exclusive)),
        5 => place().prop_map(Step::Mkdir),
        1 => place().prop_map(Step::Symlink),
        2 => (0usize..12, place()).prop_map(|(inode, place)| Step::Link(inode, place)),
        2 => place().prop_map(Step::Unlink),
        2 => place().prop_map(Step::Rmdir),
        6 => (place(), place(), mode).prop_map(|(from, to, mode)| Step::Rename(from, to, mode)),
    ]
}

fn name(number: u8) -> Vec<u8> {
    vec![b'a' + number]
}

impl Model {
    fn new() -> Model {
        let root = Node::Directory { children: BTreeMap::new(), parent: 1 };
        Model { nodes: BTreeMap::from([(1, root)]) }
    }

    /// The n-th inode there is (of directories mostly, so that operations meet).
    fn pick(&self, n: usize) -> u64 {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        ids[n % ids.len()]
    }

    fn children(&self, id: u64) -> Result<&BTreeMap<Vec<u8>, u64>, Code> {
        match &self.nodes[&id] {
            Node::Directory { children, .. } => Ok(children),
            Node::Other { .. } => Err(Code::NotADirectory),
        }
    }

    fn children_mut(&mut self, id: u64) -> &mut BTreeMap<Vec<u8>, u64> {
        match self.nodes.get_mut(&id).unwrap() {
            Node::Directory { children, .. } => children,
            Node::Other { .. } => panic!("no directory"),
        }
    }

    fn is_dir(&self, id: u64) -> bool {
        matches!(self.nodes[&id], Node::Directory { .. })
    }

    fn inside(&self, mut at: u64, top: u64) -> bool {
        loop {
            if at == top {
                return true;
            }
            match &self.nodes[&at] {
                Node::Directory { parent, .. } if *parent != at => at = *parent,
                _ => return false,
            }
        }
    }

    fn drop_name(&mut self, id: u64) {
        if let Node::Other { names, .. } = self.nodes.get_mut(&id).unwrap() {
            *names -= 1;
            if *names > 0 {
                return;
            }
        }
        self.nodes.remove(&id);
    }

    fn add(&mut self, (dir, n): (u64, u8), id: u64, node: Node) -> Result<(), Code> {
        if self.children(dir)?.contains_key(&name(n)) {
            return Err(Code::Exists);
        }
        self.children_mut(dir).insert(name(n), id);
        self.nodes.insert(id, node);
        Ok(())
    }

    fn set_parent(&mut self, id: u64, to: u64) {
        if let Node::Directory { parent, .. } = self.nodes.get_mut(&id).unwrap() {
            *parent = to;
        }
    }

    fn rename(
        &mut self,
        (from, f): (u64, u8),
        (to, t): (u64, u8),
        mode: RenameMode,
    ) -> Result<(), Code> {
        self.children(from)?;
        self.children(to)?;
        let source = *self.children(from)?.get(&name(f)).ok_or(Code::NotFound)?;
        let target = self.children(to)?.get(&name(t)).copied();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Code::Exists),
            (RenameMode::Exchange, None) => return Err(Code::NotFound),
            (_, Some(target)) if target == source => return Ok(()),
            _ => {}
        }
        if self.is_dir(source) && self.inside(to, source) {
            return Err(Code::Invalid);
        }
        if mode == RenameMode::Exchange {
            let target = target.unwrap();
            if self.is_dir(target) && self.inside(from, target) {
                return Err(Code::Invalid);
            }
            self.children_mut(from).insert(name(f), target);
            self.children_mut(to).insert(name(t), source);
            self.set_parent(target, from);
            self.set_parent(source, to);
            return Ok(());
        }
        if let Some(target) = target {
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Err(Code::NotADirectory),
                (false, true) => return Err(Code::IsADirectory),
                (true, true) if !self.children(target)?.is_empty() => return Err(Code::NotEmpty),
                _ => self.drop_name(target),
            }
        }
        self.children_mut(from).remove(&name(f));
        self.children_mut(to).insert(name(t), source);
        self.set_parent(source, to);
        Ok(())
    }
}

/// Runs one step on both; they must agree on success, code and attributes.
fn run(machine: &mut Machine, model: &mut Model, step: Step) {
    let at = |model: &Model, (dir, n): Place| (model.pick(dir), n);
    let byte_name = |n: u8| ByteName(name(n));
    let (op, expected): (NamespaceOp, Result<Option<u64>, Code>) = match step {
        Step::Create(place, exclusive) => {
            let (dir, n) = at(model, place);
            let op = NamespaceOp::Create {
                parent: InodeId(dir),
                name: byte_name(n),
                mode: 0o644,
                caller: CALLER,
                exclusive,
            };
            let there = model.children(dir).map(|children| children.get(&name(n)).copied());
            let expected = match there {
                Err(code) => Err(code),
                Ok(None) => Ok(None),
                Ok(Some(_)) if exclusive => Err(Code::Exists),
                Ok(Some(id)) => match &model.nodes[&id] {
                    Node::Directory { .. } => Err(Code::IsADirectory),
                    Node::Other { kind: FileKind::File, .. } => Ok(Some(id)),
                    Node::Other { .. } => Err(Code::Exists),
                },
            };
            (op, expected)
        }
        Step::Mkdir(place) => {
            let (dir, n) = at(model, place);
            let op = NamespaceOp::Mkdir {
                parent: InodeId(dir),
                name: byte_name(n),
                mode: 0o755,
                caller: CALLER,
            };
            (op, free(model, dir, n))
        }
        Step::Symlink(place) => {
            let (dir, n) = at(model, place);
            let op = NamespaceOp::Symlink {
                parent: InodeId(dir),
                name: byte_name(n),
                target: "target".into(),
                caller: CALLER,
            };
            (op, free(model, dir, n))
        }
        Step::Link(inode, place) => {
            let (inode, (dir, n)) = (model.pick(inode), at(model, place));
            let op = NamespaceOp::Link {
                inode: InodeId(inode),
                parent: InodeId(dir),
                name: byte_name(n),
            };
            let expected =
                if model.is_dir(inode) { Err(Code::Denied) } else { free(model, dir, n) };
            if expected.is_ok() {
                model.children_mut(dir).insert(name(n), inode);
                if let Node::Other { names, .. } = model.nodes.get_mut(&inode).unwrap() {
                    *names += 1;
                }
            }
            (op, expected.map(|_| Some(inode)))
        }
        Step::Unlink(place) => {
            let (dir, n) = at(model, place);
            let op = NamespaceOp::Unlink { parent: InodeId(dir), name: byte_name(n) };
            (op, remove(model, dir, n, false))
        }
        Step::Rmdir(place) => {
            let (dir, n) = at(model, place);
            let op = NamespaceOp::Rmdir { parent: InodeId(dir), name: byte_name(n) };
            (op, remove(model, dir, n, true))
        }
        Step::Rename(from, to, mode) => {
            let (from, to) = (at(model, from), at(model, to));
            let op = NamespaceOp::Rename {
                parent: InodeId(from.0),
                name: byte_name(from.1),
                new_parent: InodeId(to.0),
                new_name: byte_name(to.1),
                mode,
            };
            (op, model.rename(from, to, mode).map(|()| None))
        }
    };
    let reply = machine.namespace(op.clone());
    match (&reply, &expected) {
        (Err(error), Err(code)) => assert_eq!(error.code, *code, "{op:?}: {error}"),
        (Ok(NamespaceReply::Attr { attr, created: true }), Ok(None)) => made(model, &op, attr),
        (Ok(NamespaceReply::Attr { attr, created: false }), Ok(Some(id))) => {
            assert_eq!(attr.inode.0, *id, "{op:?}");
        }
        (Ok(NamespaceReply::Done), Ok(_)) => {}
        _ => panic!("{op:?}: {reply:?}, the model says {expected:?}"),
    }
}

fn free(model: &Model, dir: u64, n: u8) -> Result<Option<u64>, Code> {
    match model.children(dir)?.contains_key(&name(n)) {
        true => Err(Code::Exists),
        false => Ok(None),
    }
}

fn remove(model: &mut Model, dir: u64, n: u8, directory: bool) -> Result<Option<u64>, Code> {
    let id = *model.children(dir)?.get(&name(n)).ok_or(Code::NotFound)?;
    match (directory, model.is_dir(id)) {
        (true, false) => return Err(Code::NotADirectory),
        (false, true) => return Err(Code::IsADirectory),
        (true, true) if !model.children(id)?.is_empty() => return Err(Code::NotEmpty),
        _ => {}
    }
    model.children_mut(dir).remove(&name(n));
    model.drop_name(id);
    Ok(None)
}

/// The inode's number is the machine's choice; the model takes it over.
fn made(model: &mut Model, op: &NamespaceOp, attr: &Attr) {
    let (parent, name) = match op {
        NamespaceOp::Create { parent, name, .. }
        | NamespaceOp::Mkdir { parent, name, .. }
        | NamespaceOp::Symlink { parent, name, .. } => (parent.0, name.0[0] - b'a'),
        other => panic!("{other:?}"),
    };
    let node = match attr.kind {
        FileKind::Directory => Node::Directory { children: BTreeMap::new(), parent },
        kind => Node::Other { kind, names: 1 },
    };
    assert!(!model.nodes.contains_key(&attr.inode.0), "a number was used twice");
    model.add((parent, name), attr.inode.0, node).unwrap();
}

/// The whole tree, with link counts, must be the model's.
fn compare(machine: &Machine, model: &Model) {
    let rocks = &machine.store.rocks;
    for (id, node) in &model.nodes {
        let inode = inodes::get(rocks, InodeId(*id)).unwrap().unwrap();
        match node {
            Node::Directory { children, parent } => {
                assert_eq!(inode.body, inodes::Body::Directory { parent: InodeId(*parent) });
                let (found, end) = dentries::list(rocks, InodeId(*id), None, 999).unwrap();
                assert!(end);
                let found: BTreeMap<Vec<u8>, u64> =
                    found.into_iter().map(|(name, dentry)| (name.0, dentry.inode.0)).collect();
                assert_eq!(&found, children);
                let below = children.values().filter(|child| model.is_dir(**child)).count();
                assert_eq!(usize::try_from(inode.nlink).unwrap(), 2 + below, "nlink of {id}");
            }
            Node::Other { kind, names } => {
                assert_eq!(inode.kind(), *kind);
                assert_eq!(inode.nlink, *names, "nlink of {id}");
            }
        }
    }
    let count = counters::get(rocks, Counter::Inodes).unwrap();
    assert_eq!(usize::try_from(count).unwrap(), model.nodes.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn the_namespace_agrees_with_plain_maps(steps in proptest::collection::vec(step(), 1..60)) {
        let mut machine = Machine::new();
        let mut model = Model::new();
        for step in steps {
            run(&mut machine, &mut model, step);
        }
        compare(&machine, &model);
    }
}
