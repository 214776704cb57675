//! Erasing and lifting, at the state machine.

#![allow(clippy::unwrap_used, reason = "tests")]
use atoll_proto::erase::Named;
use atoll_proto::master::Changed;
use atoll_proto::namespace::NamespaceOp;
use atoll_proto::publish::SiteOp;
use atoll_proto::{AliasName, Content, DeployId, InodeId, PgId};

use super::*;
use crate::operation::{
    Admission, AdmittedPage, Child, Collected, Covered, LoggedChange, Operation, RootFacts, Seal,
};
use crate::ops::tests::{Machine, commit, content, data};
use crate::store::{deltas, group_states};

fn blog() -> SiteName {
    "blog".parse().unwrap()
}

fn request(chunks: &[(Covered, u64)], parents: Vec<Parent>) -> Erase {
    let doomed = |(chunk, refs): &(Covered, u64)| Doomed { id: chunk.id, refs: *refs };
    let named = chunks.iter().map(|(chunk, _)| chunk.id).collect();
    Erase {
        site: blog(),
        chunks: chunks.iter().map(doomed).collect(),
        withheld: vec![],
        parents,
        named: vec![Named { path: "secret".into(), chunks: named }],
    }
}

fn page(id: ChunkId, refs: u64, below: &[ChunkId]) -> Parent {
    Parent::Page { id, refs, below: below.to_vec() }
}

fn file(inode: InodeId, chunks: &[Covered]) -> Parent {
    Parent::File { inode, content: content(chunks).id() }
}

fn deploy(id: DeployId) -> Parent {
    Parent::Deploy { site: blog(), deploy: id }
}

impl Machine {
    fn with_blog() -> Machine {
        let mut machine = Machine::new();
        machine.site(SiteOp::Create { site: blog(), domains: vec![] }).unwrap();
        machine
    }

    fn take_down(&mut self, request: Erase) -> Result<Published, WireError> {
        self.site(SiteOp::Erase(Box::new(request)))
    }

    fn unerase(&mut self, chunks: &[ChunkId], lists: &[ChunkId]) {
        let (chunks, lists) = (chunks.to_vec(), lists.to_vec());
        self.site(SiteOp::Unerase { site: blog(), chunks, lists }).unwrap();
    }

    fn file(&mut self, name: &str, chunk: Covered) -> InodeId {
        let file = self.create(InodeId::ROOT, name);
        self.namespace_with(commit(file, &[chunk], None), &[chunk]).unwrap();
        file
    }

    fn admit(
        &mut self,
        id: ChunkId,
        kind: ObjectKind,
        children: &[(ChunkId, u32, ObjectKind)],
        covered: &[Covered],
    ) -> Result<Changed, WireError> {
        let mut children: Vec<Child> = children
            .iter()
            .map(|(id, len, kind)| Child { id: *id, len: *len, kind: *kind })
            .collect();
        children.sort_by_key(|child| child.id);
        let mut all = vec![Covered { id, len: 50 }];
        all.extend(covered);
        let page = AdmittedPage { id, len: 50, kind, children };
        self.change(LoggedChange::Admit(Admission { pages: vec![page], covered: all }))
    }

    /// Whether the chunkservers keep the chunk, by what they are told and compared with.
    fn is_kept(&self, chunk: Covered) -> bool {
        let store = &self.store.rocks;
        let mut last = false;
        deltas::after(store, 0, &mut |delta| {
            last = if delta.id == chunk.id { delta.live } else { last };
            true
        })
        .unwrap();
        let pg: PgId = chunk.id.pg();
        let bucket = atoll_proto::tree::bucket_of(&chunk.id);
        let ids = objects::bucket_ids(store, pg, bucket).unwrap();
        assert_eq!(ids.contains(&chunk.id), last);
        let chunks = group_states::get(store, pg).unwrap().chunks;
        assert_eq!(chunks, u64::from(last));
        last
    }

    fn what(&self, id: &ChunkId) -> Option<Erasure> {
        erased::get(&self.store.rocks, id).unwrap().map(|record| record.what)
    }

    /// Everything but what every request changes.
    fn erasure_state(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let of = [crate::store::Family::Erased, crate::store::Family::Below];
        let of = of.map(|family| family as u8);
        self.store.dump().into_iter().filter(|(key, _)| of.contains(&key[0])).collect()
    }
}

#[test]
fn an_erased_chunk_is_kept_by_nobody_and_may_not_come_back() {
    let (mut machine, a) = (Machine::with_blog(), data("a"));
    let one = machine.file("one", a);
    assert!(machine.is_kept(a));
    machine.take_down(request(&[(a, 1)], vec![file(one, &[a])])).unwrap();
    assert!(!machine.is_kept(a));
    assert_eq!(machine.refs(&a.id), Some((1, false)));
    // Again, as when not all had confirmed: nobody has to do it again, but all have to say so.
    let before = machine.erasure_state();
    let last = erased::last(&machine.store.rocks).unwrap();
    let again = machine.take_down(request(&[(a, 1)], vec![file(one, &[a])])).unwrap();
    assert_eq!(machine.erasure_state(), before);
    assert!(again.seq.0 > last);
    assert_eq!(erased::last(&machine.store.rocks).unwrap(), again.seq.0);
    let two = machine.create(InodeId::ROOT, "two");
    let refused = machine.namespace_with(commit(two, &[a], None), &[a]).unwrap_err();
    assert_eq!(refused.code, Code::Erased, "{refused}");
    // What referred to it goes, and so does the object.
    let unlink = NamespaceOp::Unlink { parent: InodeId::ROOT, name: "one".into() };
    machine.namespace(unlink).unwrap();
    assert_eq!(machine.refs(&a.id), Some((0, true)));
    let mut tx = Transaction::new(&machine.store.rocks);
    objects::collect(&mut tx, Now { index: 999, at_ns: 0 }, &a.id).unwrap();
    tx.commit().unwrap();
    assert!(!machine.is_kept(a));
    let refused = machine.namespace_with(commit(two, &[a], None), &[a]).unwrap_err();
    assert_eq!(refused.code, Code::Erased, "{refused}");
}

#[test]
fn what_began_to_refer_to_it_since_the_search_loses_nothing() {
    let (mut machine, a) = (Machine::with_blog(), data("a"));
    let one = machine.file("one", a);
    let asked = request(&[(a, 1)], vec![file(one, &[a])]);
    let refused = |machine: &mut Machine, request: &Erase| {
        let before = machine.erasure_state();
        let error = machine.take_down(request.clone()).unwrap_err();
        assert_eq!(error.code, Code::Conflict, "{error}");
        assert_eq!(machine.erasure_state(), before);
        assert!(machine.is_kept(a));
    };
    // A file that nobody was shown.
    let two = machine.file("two", a);
    refused(&mut machine, &asked);
    // It took the place of the one that was: as many refer to it, but they are others.
    let unlink = NamespaceOp::Unlink { parent: InodeId::ROOT, name: "one".into() };
    machine.namespace(unlink).unwrap();
    refused(&mut machine, &asked);
    // A file whose bytes are others by now.
    let b = data("b");
    let both = request(&[(a, 1)], vec![file(two, &[a])]);
    machine.namespace_with(commit(two, &[b], None), &[b]).unwrap();
    let three = machine.file("three", a);
    refused(&mut machine, &both);
    machine.take_down(request(&[(a, 1)], vec![file(three, &[a])])).unwrap();
    assert!(!machine.is_kept(a));
}

#[test]
fn a_deploy_since_the_search_that_shares_all_pages_loses_nothing() {
    let mut machine = Machine::with_blog();
    let root = machine.page("root");
    let a = data("root data");
    machine.publish(root, None).unwrap();
    let asked = || request(&[(a, 1)], vec![page(root, 1, &[a.id]), deploy(root)]);
    let shop = SiteOp::Publish {
        site: "shop".parse().unwrap(),
        alias: AliasName::production(),
        deploy: root,
        if_current: None,
        message: String::new(),
        create: true,
    };
    machine.site(shop).unwrap();
    let error = machine.take_down(asked()).unwrap_err();
    assert_eq!(error.code, Code::Conflict, "{error}");
    // The other site's took the place of this one's.
    let other = machine.page("other");
    machine.publish(other, None).unwrap();
    machine.site(SiteOp::RemoveDeploy { site: blog(), deploy: root }).unwrap();
    assert_eq!(machine.refs(&root), Some((1, false)));
    let error = machine.take_down(asked()).unwrap_err();
    assert_eq!(error.code, Code::Conflict, "{error}");
    assert!(machine.is_kept(a));
    // A page of a deploy that was never published counts too, and was not named.
    let shared = data("shared");
    let error = machine.take_down(request(&[(shared, 1)], vec![page(root, 1, &[shared.id])]));
    assert_eq!(error.unwrap_err().code, Code::Conflict);
}

#[test]
fn nothing_that_adds_a_reference_brings_it_back() {
    let mut machine = Machine::with_blog();
    let (root, a) = (machine.page("root"), data("root data"));
    machine.publish(root, None).unwrap();
    let known = machine.page("never published");
    let shared = data("shared");
    let parents =
        vec![page(root, 1, &[a.id, shared.id]), page(known, 0, &[shared.id]), deploy(root)];
    machine.take_down(request(&[(a, 1), (shared, 2)], parents)).unwrap();
    let erased = |error: WireError| assert_eq!(error.code, Code::Erased, "{error}");
    // Commit and PutFile.
    let new = machine.create(InodeId::ROOT, "new");
    erased(machine.namespace_with(commit(new, &[a], None), &[a]).unwrap_err());
    let put = NamespaceOp::PutFile {
        path: "/put".into(),
        mode: 0o644,
        caller: crate::ops::tests::CALLER,
        content: content(&[shared]),
        mtime_ns: None,
        receipts: vec![],
    };
    erased(machine.namespace_with(put, &[shared]).unwrap_err());
    // Write, also of what only appends.
    let version = inodes::get(&machine.store.rocks, new).unwrap().unwrap().version;
    let mut write = |chunk: Covered, if_version| {
        let op = NamespaceOp::Write {
            inode: new,
            content: content(&[chunk]),
            mtime_ns: None,
            if_version,
            drop_privileges: true,
            receipts: vec![],
        };
        erased(machine.namespace_with(op, &[chunk]).unwrap_err());
    };
    write(a, None);
    write(shared, Some(version));
    // Admit: a leaf, and a list.
    let child = (a.id, a.len, ObjectKind::Data);
    erased(machine.admit(ChunkId::of(b"leaf"), ObjectKind::Page, &[child], &[a]).unwrap_err());
    erased(machine.admit(ChunkId::of(b"list"), ObjectKind::List, &[child], &[a]).unwrap_err());
    // Publish: pages that were known, a deploy that is known, and a new page over known ones.
    erased(machine.try_publish(known, None).unwrap_err());
    erased(machine.try_publish(root, None).unwrap_err());
    let top = ChunkId::of(b"top");
    let below = (root, 50, ObjectKind::Page);
    machine.admit(top, ObjectKind::Page, &[below], &[]).unwrap();
    erased(machine.try_publish(top, None).unwrap_err());
    // A live site goes on with what it has of earlier seals.
    let changes = atoll_proto::site::SiteChanges {
        live: Some(Some("/blog".to_owned())),
        ..Default::default()
    };
    machine.site(SiteOp::Configure { site: blog(), changes }).unwrap();
    let seal = Seal {
        site: blog(),
        live: "/blog".to_owned(),
        deploy: top,
        root: RootFacts { files: 1, bytes: 1 },
        current: Some(root),
        forced: false,
    };
    machine.change(LoggedChange::Seal(seal)).unwrap();
    // Going back to what was there when it was erased is allowed: nothing is claimed of it.
    machine
        .site(SiteOp::MoveAlias {
            site: blog(),
            alias: AliasName::production(),
            deploy: Some(root),
            if_current: None,
        })
        .unwrap();
}

#[test]
fn a_withheld_list_is_refused_and_lifted_as_a_whole() {
    let mut machine = Machine::with_blog();
    let (a, b) = (data("a"), data("b"));
    let list = ChunkId::of(b"list");
    let children = [(a.id, a.len, ObjectKind::Data), (b.id, b.len, ObjectKind::Data)];
    machine.admit(list, ObjectKind::List, &children, &[a, b]).unwrap();
    let long = Content::Lists { size: 2, lists: vec![(50, list)] };
    let commit_long = |inode| NamespaceOp::Commit {
        inode,
        content: long.clone(),
        mtime_ns: None,
        if_version: None,
        receipts: vec![],
    };
    let one = machine.create(InodeId::ROOT, "one");
    machine.namespace(commit_long(one)).unwrap();
    let mut erase = request(
        &[(a, 1), (b, 1)],
        vec![page(list, 1, &[a.id, b.id]), Parent::File { inode: one, content: long.id() }],
    );
    erase.withheld = vec![list];
    // All or nothing: the list is not withheld when a chunk is refused.
    let mut wrong = erase.clone();
    wrong.chunks[1].refs = 7;
    assert_eq!(machine.take_down(wrong).unwrap_err().code, Code::Conflict);
    assert_eq!(machine.what(&list), None);
    machine.take_down(erase).unwrap();
    assert_eq!(machine.what(&list), Some(Erasure::Withheld));
    let two = machine.create(InodeId::ROOT, "two");
    assert_eq!(machine.namespace(commit_long(two)).unwrap_err().code, Code::Erased);
    let leaf = ChunkId::of(b"leaf");
    let child = (list, 50, ObjectKind::List);
    let refused = machine.admit(leaf, ObjectKind::Page, &[child], &[]).unwrap_err();
    assert_eq!(refused.code, Code::Erased);
    // One of its chunks is allowed again; the list is not, before the other is.
    machine.unerase(&[a.id], &[list]);
    assert_eq!(machine.what(&list), Some(Erasure::Withheld));
    assert_eq!(machine.namespace(commit_long(two)).unwrap_err().code, Code::Erased);
    machine.unerase(&[b.id], &[list]);
    assert_eq!(machine.what(&list), Some(Erasure::Lifted));
    // Its name alone brings nothing back: the chunks have to be uploaded.
    let change = LoggedChange::Namespace { op: commit_long(two), covered: vec![] };
    let Changed::Missing { mut ids } = machine.change(change.clone()).unwrap() else { panic!() };
    ids.sort_unstable();
    let mut both = vec![a.id, b.id];
    both.sort_unstable();
    assert_eq!(ids, both);
    let admit_data = |chunk: Covered| AdmittedPage {
        id: chunk.id,
        len: chunk.len,
        kind: ObjectKind::Data,
        children: vec![],
    };
    let pages = vec![admit_data(a), admit_data(b)];
    machine.change(LoggedChange::Admit(Admission { pages, covered: vec![a, b] })).unwrap();
    assert!(machine.is_kept(a) && machine.is_kept(b));
    assert!(matches!(machine.change(change), Ok(Changed::Namespace(_))));
}

#[test]
fn a_lifted_chunk_comes_back_with_its_upload_only() {
    for still_referred_to in [true, false] {
        let (mut machine, a) = (Machine::with_blog(), data("a"));
        let mut parents = Vec::new();
        if still_referred_to {
            parents.push(file(machine.file("one", a), &[a]));
        }
        let refs = u64::from(still_referred_to);
        machine.take_down(request(&[(a, refs)], parents.clone())).unwrap();
        let epoch = groups::epoch(&machine.store.rocks).unwrap();
        let counts = |machine: &Machine, epoch| {
            erased::admits_receipt(&machine.store.rocks, &a.id, epoch).unwrap()
        };
        assert!(!counts(&machine, Epoch(epoch.0 + 9)), "no receipt counts");
        machine.unerase(&[a.id], &[]);
        // Those from before the erasure, and from while it held, do not count ever.
        assert_eq!(groups::epoch(&machine.store.rocks).unwrap(), Epoch(epoch.0 + 1));
        assert!(!counts(&machine, epoch) && counts(&machine, Epoch(epoch.0 + 1)));
        assert!(!machine.is_kept(a));
        let two = machine.create(InodeId::ROOT, "two");
        let change = LoggedChange::Namespace { op: commit(two, &[a], None), covered: vec![] };
        assert_eq!(machine.change(change).unwrap(), Changed::Missing { ids: vec![a.id] });
        machine.namespace_with(commit(two, &[a], None), &[a]).unwrap();
        assert!(machine.is_kept(a));
        assert_eq!(machine.refs(&a.id), Some((1 + refs, false)));
        // And can be erased anew.
        parents.push(file(two, &[a]));
        machine.take_down(request(&[(a, 1 + refs)], parents)).unwrap();
        assert!(!machine.is_kept(a));
    }
}

#[test]
fn what_an_erasure_named_is_kept_until_all_of_it_is_lifted() {
    let (mut machine, a, b) = (Machine::with_blog(), data("a"), data("b"));
    let mut erase = request(&[(a, 0), (b, 0)], vec![]);
    erase.named = [("a", a), ("b", b)]
        .map(|(path, chunk)| Named { path: path.into(), chunks: vec![chunk.id] })
        .to_vec();
    machine.take_down(erase.clone()).unwrap();
    machine.take_down(erase.clone()).unwrap();
    let first = |machine: &Machine| erasures::after(&machine.store.rocks, &blog(), None).unwrap();
    let (name, record) = first(&machine).unwrap();
    assert_eq!(record.named, erase.named);
    let none = erasures::after(&machine.store.rocks, &blog(), Some(&name)).unwrap();
    assert_eq!(none, None, "the same one is kept once");
    // Also when the site is gone.
    machine.site(SiteOp::Remove { site: blog() }).unwrap();
    machine.unerase(&[a.id], &[]);
    assert!(first(&machine).is_some());
    machine.unerase(&[b.id], &[]);
    assert_eq!(first(&machine), None);
}

#[test]
fn a_collected_page_leads_to_nothing() {
    let mut machine = Machine::with_blog();
    let (root, a) = (machine.page("root"), data("root data"));
    machine.take_down(request(&[(a, 1)], vec![page(root, 0, &[a.id])])).unwrap();
    assert!(below::has(&machine.store.rocks, &root).unwrap());
    let object = objects::get(&machine.store.rocks, &root).unwrap().unwrap();
    let collected = Collected {
        id: root,
        kind: ObjectKind::Page,
        zero_since: object.zero_since.unwrap().index,
        children: vec![a.id, data("shared").id],
    };
    machine.apply(&[Operation::Collect { objects: vec![collected] }]).remove(0).unwrap();
    assert!(!below::has(&machine.store.rocks, &root).unwrap());
    assert_eq!(machine.refs(&a.id), Some((0, true)));
    assert_eq!(machine.what(&a.id), Some(Erasure::Erased));
}

#[test]
fn only_bytes_of_files_are_erased_and_requests_make_sense() {
    let mut machine = Machine::with_blog();
    let root = machine.page("root");
    let a = data("root data");
    let as_chunk = Covered { id: root, len: 50 };
    let mut unsaid = request(&[(a, 1)], vec![page(root, 0, &[a.id])]);
    unsaid.withheld = vec![ChunkId::of(b"list")];
    for (wrong, why) in [
        (request(&[(as_chunk, 0)], vec![]), "a page is no bytes of a file"),
        (request(&[], vec![]), "nothing is named"),
        (request(&[(a, 1), (a, 1)], vec![]), "twice"),
        (request(&[(a, 1)], vec![page(root, 0, &[ChunkId::of(b"x")])]), "to what is not erased"),
        (request(&[(a, 1)], vec![page(root, 0, &[a.id]), page(root, 0, &[a.id])]), "twice"),
        (unsaid, "a list of which nothing is said"),
    ] {
        assert_eq!(machine.take_down(wrong).unwrap_err().code, Code::Invalid, "{why}");
    }
    let many = limits::ERASE_CHUNKS_MAX + 1;
    let many: Vec<(Covered, u64)> = (0..many).map(|n| (data(&n.to_string()), 0)).collect();
    assert_eq!(machine.take_down(request(&many, vec![])).unwrap_err().code, Code::Limit);
    assert!(machine.erasure_state().is_empty());
}
