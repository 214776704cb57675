//! What is made and changed follows the rules of POSIX: groups, masks, access lists, privileges.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use atoll_proto::namespace::{
    Attr, Caller, FileKind, NamespaceOp, NamespaceReply, NewNode, RenameMode, SetAttr, Special,
    XattrMode,
};
use atoll_proto::{Code, Content, InodeId, Retry, WireError, limits};

use super::acl;
use super::acl::testing::{minimal, named};
use crate::ops::tests::{CALLER, Machine, commit, data};
use crate::store::{inodes, xattrs};

const ROOT: InodeId = InodeId::ROOT;

fn attr(reply: Result<NamespaceReply, WireError>) -> Attr {
    match reply.unwrap() {
        NamespaceReply::Attr { attr, .. } => attr,
        other => panic!("{other:?}"),
    }
}

fn make(parent: InodeId, name: &str, node: NewNode, mode: u32, umask: u32) -> NamespaceOp {
    let (name, caller, exclusive) = (name.into(), CALLER, false);
    NamespaceOp::Make { parent, name, node, mode, umask, caller, exclusive }
}

fn chmod(inode: InodeId, mode: u32) -> NamespaceOp {
    NamespaceOp::SetAttr { inode, set: SetAttr { mode: Some(mode), ..SetAttr::default() } }
}

fn set(inode: InodeId, name: &str, value: Vec<u8>) -> NamespaceOp {
    let (name, value, mode) = (name.into(), value.into(), XattrMode::Set);
    NamespaceOp::SetXattr { inode, name, value, mode, drop_group_id: false }
}

fn xattr(machine: &Machine, inode: InodeId, name: &[u8]) -> Option<Vec<u8>> {
    xattrs::get(&machine.store.rocks, inode, name).unwrap()
}

fn list(bytes: &[u8]) -> acl::Acl {
    acl::Acl::decode(bytes).unwrap()
}

#[test]
fn special_files_are_kept_as_they_were_made() {
    let mut machine = Machine::new();
    for (name, special) in [
        ("pipe", Special::Fifo),
        ("socket", Special::Socket),
        ("null", Special::CharDevice(0x103)),
        ("disk", Special::BlockDevice(0xffff_ffff)),
    ] {
        let made =
            attr(machine.namespace(make(ROOT, name, NewNode::Special(special), 0o666, 0o022)));
        assert_eq!((made.kind, made.mode, made.size), (FileKind::Special(special), 0o644, 0));
        let error = machine.namespace(commit(made.inode, &[], None)).unwrap_err();
        assert_eq!(error.code, Code::Invalid);
        // A file that must be a regular one is not opened by chance.
        let error = machine.namespace(make(ROOT, name, NewNode::File, 0o666, 0)).unwrap_err();
        assert_eq!(error.code, Code::Exists);
        machine.namespace(NamespaceOp::Unlink { parent: ROOT, name: name.into() }).unwrap();
        assert_eq!(inodes::get(&machine.store.rocks, made.inode).unwrap(), None);
    }
}

#[test]
fn the_group_of_a_directory_with_the_bit_is_passed_on() {
    let mut machine = Machine::new();
    let plain = attr(machine.namespace(make(ROOT, "plain", NewNode::Directory, 0o777, 0o022)));
    assert_eq!((plain.gid, plain.mode), (CALLER.gid, 0o755));
    let set_gid = SetAttr { gid: Some(77), mode: Some(0o2775), ..SetAttr::default() };
    machine.namespace(NamespaceOp::SetAttr { inode: plain.inode, set: set_gid }).unwrap();
    let below = attr(machine.namespace(make(plain.inode, "d", NewNode::Directory, 0o777, 0o022)));
    assert_eq!((below.gid, below.mode), (77, 0o2755));
    let file = attr(machine.namespace(make(below.inode, "f", NewNode::File, 0o666, 0o022)));
    assert_eq!((file.uid, file.gid, file.mode), (CALLER.uid, 77, 0o644));
    let link = NewNode::Symlink("f".into());
    let link = attr(machine.namespace(make(below.inode, "l", link, 0, 0o777)));
    assert_eq!((link.gid, link.mode), (77, 0o777));
    // No program for a group that the caller is not in; whoever is may, and so may root.
    let mut program = |name: &str, mode, caller| {
        let (name, node) = (name.into(), NewNode::File);
        let parent = below.inode;
        let op = NamespaceOp::Make { parent, name, node, mode, umask: 0, caller, exclusive: true };
        attr(machine.namespace(op)).mode
    };
    let (member, root) = (Caller { uid: 1, gid: 77 }, Caller { uid: 0, gid: 0 });
    assert_eq!(program("a", 0o2755, CALLER), 0o755);
    assert_eq!(program("b", 0o2745, CALLER), 0o2745);
    assert_eq!(program("c", 0o2755, member), 0o2755);
    assert_eq!(program("e", 0o2755, root), 0o2755);
    // What earlier versions logged means what it meant.
    let op = NamespaceOp::Mkdir {
        parent: plain.inode,
        name: "old".into(),
        mode: 0o755,
        caller: Caller { uid: 1, gid: 5 },
    };
    let old = attr(machine.namespace(op));
    assert_eq!((old.gid, old.mode), (5, 0o755));
}

#[test]
fn default_lists_become_those_of_what_is_made() {
    let mut machine = Machine::new();
    let top = attr(machine.namespace(make(ROOT, "top", NewNode::Directory, 0o755, 0))).inode;
    let default = named([7, 7, 5, 5, 7, 5]);
    machine.namespace(set(top, "system.posix_acl_default", default.clone())).unwrap();
    // The mask of the caller does not count where the directory has rules.
    let file = attr(machine.namespace(make(top, "f", NewNode::File, 0o664, 0o077)));
    assert_eq!(file.permissions(), 0o664);
    let own = xattr(&machine, file.inode, acl::ACCESS).unwrap();
    assert_eq!(list(&own), list(&named([6, 7, 5, 5, 6, 4])));
    assert_eq!(xattr(&machine, file.inode, acl::DEFAULT), None);
    let below = attr(machine.namespace(make(top, "d", NewNode::Directory, 0o700, 0)));
    assert_eq!((below.permissions(), below.has_xattrs()), (0o700, true));
    assert_eq!(xattr(&machine, below.inode, acl::DEFAULT), Some(default));
    // A link has no rules of its own.
    let link = attr(machine.namespace(make(top, "l", NewNode::Symlink("f".into()), 0, 0)));
    assert_eq!((link.mode, xattr(&machine, link.inode, acl::ACCESS)), (0o777, None));
    // They stay with the last name, and go with what is replaced.
    let op = NamespaceOp::Link { inode: file.inode, parent: top, name: "second".into() };
    machine.namespace(op).unwrap();
    machine.namespace(NamespaceOp::Unlink { parent: top, name: "second".into() }).unwrap();
    assert!(xattr(&machine, file.inode, acl::ACCESS).is_some());
    for (node, name) in [(NewNode::File, "f"), (NewNode::Directory, "d")] {
        let old = inodes_with_xattrs(&machine).len();
        machine.namespace(make(top, "new", node, 0o770, 0)).unwrap();
        assert_eq!(inodes_with_xattrs(&machine).len(), old + 1);
        machine
            .namespace(NamespaceOp::Rename {
                parent: top,
                name: "new".into(),
                new_parent: top,
                new_name: name.into(),
                mode: RenameMode::Replace,
            })
            .unwrap();
        assert_eq!(inodes_with_xattrs(&machine).len(), old);
    }
    // Nothing is left of them when they are gone.
    for (parent, name) in [(top, "f"), (top, "l")] {
        machine.namespace(NamespaceOp::Unlink { parent, name: name.into() }).unwrap();
    }
    machine.namespace(NamespaceOp::Rmdir { parent: top, name: "d".into() }).unwrap();
    machine.namespace(NamespaceOp::Rmdir { parent: ROOT, name: "top".into() }).unwrap();
    assert!(inodes_with_xattrs(&machine).is_empty());
}

fn inodes_with_xattrs(machine: &Machine) -> BTreeSet<Vec<u8>> {
    let of = crate::store::Family::Xattr as u8;
    let dump = machine.store.dump().into_iter().filter(|(key, _)| key[0] == of);
    dump.map(|(key, _)| key[1..9].to_vec()).collect()
}

#[test]
fn lists_and_permission_bits_follow_each_other() {
    let mut machine = Machine::new();
    let file = attr(machine.namespace(make(ROOT, "f", NewNode::File, 0o644, 0))).inode;
    let shown =
        attr(machine.namespace(set(file, "system.posix_acl_access", named([7, 6, 5, 4, 6, 1]))));
    assert_eq!((shown.permissions(), shown.has_xattrs()), (0o761, true));
    machine.namespace(chmod(file, 0o640)).unwrap();
    let own = xattr(&machine, file, acl::ACCESS).unwrap();
    assert_eq!(list(&own), list(&named([6, 6, 5, 4, 4, 0])));
    // A list that says no more than the bits is not kept.
    let shown = attr(machine.namespace(set(file, "system.posix_acl_access", minimal([6, 0, 4]))));
    assert_eq!((shown.mode, xattr(&machine, file, acl::ACCESS)), (0o604, None));
    let error =
        machine.namespace(set(file, "system.posix_acl_access", b"rwx".to_vec())).unwrap_err();
    assert_eq!(error.code, Code::Invalid);
    let error = machine.namespace(set(file, "system.posix_acl_default", minimal([7, 7, 7])));
    assert_eq!(error.unwrap_err().code, Code::Denied);
}

#[test]
fn privileges_are_for_the_owner_and_content_they_were_given_for() {
    let mut machine = Machine::new();
    let file = attr(machine.namespace(make(ROOT, "f", NewNode::File, 0o755, 0))).inode;
    let drop = |set| NamespaceOp::DropPrivileges { inode: file, set };
    let owner = SetAttr { uid: Some(9), ..SetAttr::default() };
    for (before, after) in [(0o6755, 0o755), (0o6745, 0o2745), (0o4700, 0o700), (0o1777, 0o1777)] {
        machine.namespace(chmod(file, before)).unwrap();
        assert_eq!(attr(machine.namespace(drop(owner))).mode, after, "{before:o}");
    }
    machine.namespace(chmod(file, 0o755)).unwrap();
    let asked = SetAttr { mode: Some(0o4755), uid: Some(8), ..SetAttr::default() };
    assert_eq!(attr(machine.namespace(drop(asked))).mode, 0o4755);
    let capability = || set(file, "security.capability", b"all".to_vec());
    let by_an_older_mount = NamespaceOp::SetAttr { inode: file, set: owner };
    for op in [drop(SetAttr::default()), commit(file, &[data("new")], None), by_an_older_mount] {
        assert!(attr(machine.namespace(capability())).has_xattrs());
        let after = attr(machine.namespace_with(op, &[data("new")]));
        assert!(!after.has_xattrs());
        assert_eq!(xattr(&machine, file, b"security.capability"), None);
    }
    // In the entry that gives the content, by what the mode is then.
    let write = |drop_privileges| NamespaceOp::Write {
        inode: file,
        content: Content::Empty,
        mtime_ns: Some(7),
        if_version: None,
        drop_privileges,
        receipts: vec![],
    };
    machine.namespace(chmod(file, 0o6755)).unwrap();
    assert_eq!(attr(machine.namespace(write(false))).mode, 0o6755);
    let written = attr(machine.namespace(write(true)));
    assert_eq!((written.mode, written.mtime_ns), (0o755, 7));
    machine.namespace(chmod(file, 0o2745)).unwrap();
    assert_eq!(attr(machine.namespace(write(true))).mode, 0o2745);
    let dir = attr(machine.namespace(make(ROOT, "d", NewNode::Directory, 0o2775, 0))).inode;
    let op = NamespaceOp::DropPrivileges { inode: dir, set: owner };
    assert_eq!(attr(machine.namespace(op)).mode, 0o2775);
}

#[test]
fn attributes_are_set_replaced_removed_and_bounded() {
    let mut machine = Machine::new();
    let file = attr(machine.namespace(make(ROOT, "f", NewNode::File, 0o644, 0))).inode;
    let with = |name: &str, mode| {
        let (name, value) = (name.into(), vec![1].into());
        NamespaceOp::SetXattr { inode: file, name, value, mode, drop_group_id: false }
    };
    let reply = machine.namespace(with("user.a", XattrMode::Replace)).unwrap();
    assert_eq!(reply, NamespaceReply::Xattr(None));
    let before = inodes::get(&machine.store.rocks, file).unwrap().unwrap();
    let after = attr(machine.namespace(with("user.a", XattrMode::Create)));
    assert!(after.version > before.version && after.ctime_ns > before.ctime_ns);
    assert_eq!(after.mtime_ns, before.mtime_ns);
    let error = machine.namespace(with("user.a", XattrMode::Create)).unwrap_err();
    assert_eq!(error.code, Code::Exists);
    // Another change of the mode leaves them.
    assert!(attr(machine.namespace(chmod(file, 0o600))).has_xattrs());
    for bad in ["user.", "system.other", "a", &format!("user.{}", "x".repeat(251))] {
        let error = machine.namespace(with(bad, XattrMode::Set)).unwrap_err();
        assert_eq!(error.code, Code::Invalid, "{bad}");
    }
    let full = |machine: &mut Machine, name: &str, bytes| {
        let error = machine.namespace(set(file, name, vec![7; bytes])).unwrap_err();
        assert_eq!(error.retry, Retry::Never, "to ask again does not make room");
        error.code == Code::Full
    };
    assert!(full(&mut machine, "user.b", limits::XATTR_BYTES_MAX + 1));
    machine.namespace(set(file, "user.b", vec![7; limits::XATTR_BYTES_MAX])).unwrap();
    assert!(full(&mut machine, "user.c", limits::XATTR_BYTES_MAX));
    machine.namespace(set(file, "user.b", vec![7; limits::XATTR_BYTES_MAX])).unwrap();
    let remove = |name: &str| NamespaceOp::RemoveXattr { inode: file, name: name.into() };
    assert!(attr(machine.namespace(remove("user.b"))).has_xattrs());
    assert!(!attr(machine.namespace(remove("user.a"))).has_xattrs());
    assert_eq!(machine.namespace(remove("user.a")).unwrap(), NamespaceReply::Xattr(None));
    for n in 0..limits::XATTRS_MAX {
        machine.namespace(set(file, &format!("user.{n}"), vec![])).unwrap();
    }
    assert!(full(&mut machine, "user.more", 0));
}
