//! Nothing of the namespace can take the name under which mounts show the deploys of sites.

#![allow(clippy::unwrap_used, reason = "tests")]

use atoll_proto::namespace::{NamespaceOp, NamespaceReply, RenameMode};
use atoll_proto::{ByteName, Code, Content, InodeId};

use crate::ops::tests::{CALLER, Machine};
use crate::store::dentries;

const ROOT: InodeId = InodeId::ROOT;

fn name(text: &str) -> ByteName {
    text.into()
}

fn mkdir(parent: InodeId, text: &str) -> NamespaceOp {
    NamespaceOp::Mkdir { parent, name: name(text), mode: 0o755, caller: CALLER }
}

fn create(parent: InodeId, text: &str) -> NamespaceOp {
    let exclusive = false;
    NamespaceOp::Create { parent, name: name(text), mode: 0o644, caller: CALLER, exclusive }
}

fn rename(from: (InodeId, &str), to: (InodeId, &str), mode: RenameMode) -> NamespaceOp {
    NamespaceOp::Rename {
        parent: from.0,
        name: name(from.1),
        new_parent: to.0,
        new_name: name(to.1),
        mode,
    }
}

fn made(machine: &mut Machine, op: NamespaceOp) -> InodeId {
    match machine.namespace(op).unwrap() {
        NamespaceReply::Attr { attr, .. } => attr.inode,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_way_to_the_reserved_name_is_refused_and_says_why() {
    let mut machine = Machine::new();
    let file = made(&mut machine, create(ROOT, "file"));
    let directory = made(&mut machine, mkdir(ROOT, "directory"));
    let up = NamespaceOp::Symlink {
        parent: directory,
        name: name("up"),
        target: name(".."),
        caller: CALLER,
    };
    machine.namespace(up).unwrap();
    let put = |path: &str| NamespaceOp::PutFile {
        path: name(path),
        mode: 0o644,
        caller: CALLER,
        content: Content::Empty,
        mtime_ns: None,
        receipts: Vec::new(),
    };
    let dirs = |path: &str| NamespaceOp::MakeDirs { path: name(path), mode: 0o755, caller: CALLER };
    let symlink = NamespaceOp::Symlink {
        parent: ROOT,
        name: name(".sites"),
        target: name("x"),
        caller: CALLER,
    };
    let link = NamespaceOp::Link { inode: file, parent: ROOT, name: name(".sites") };
    let mut refused = vec![
        create(ROOT, ".sites"),
        mkdir(ROOT, ".sites"),
        symlink,
        link,
        put("/.sites"),
        put("/.sites/blog/index.html"),
        put("/directory/up/.sites"),
        dirs("/.sites"),
        dirs("//.sites/blog"),
        dirs("/directory/up/.sites"),
    ];
    for mode in [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange] {
        refused.push(rename((ROOT, "file"), (ROOT, ".sites"), mode));
        refused.push(rename((ROOT, "directory"), (ROOT, ".sites"), mode));
    }
    for op in refused {
        let shown = format!("{op:?}");
        let error = machine.namespace(op).unwrap_err();
        assert_eq!(error.code, Code::Denied, "{shown}: {error}");
        assert!(error.message.contains("/.sites"), "{shown}: {error}");
        assert_eq!(dentries::get(&machine.store.rocks, ROOT, b".sites").unwrap(), None, "{shown}");
    }
    // Only that name, and only in the root.
    for op in [create(directory, ".sites"), mkdir(ROOT, ".sites2"), mkdir(ROOT, "sites")] {
        made(&mut machine, op);
    }
    machine.namespace(rename((directory, ".sites"), (ROOT, "away"), RenameMode::Replace)).unwrap();
}
