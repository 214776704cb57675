//! The state machine alone: entries in, replies and database out.

#![allow(clippy::unwrap_used, reason = "tests")]

use atoll_proto::cluster::{NodeInfo, NodeKind};
use atoll_proto::content::Extent;
use atoll_proto::master::{Changed, Grant, ObjectKind, Verb};
use atoll_proto::namespace::{Caller, NamespaceOp, NamespaceReply, RenameMode, SetAttr};
use atoll_proto::publish::{Published, SiteOp};
use atoll_proto::receipt::ReceiptKey;
use atoll_proto::{
    AliasName, ByteName, ChunkId, ClusterId, Code, Content, DeployId, Epoch, InodeId, NodeId, PgId,
    SessionId, WireError, limits,
};
use openraft::{CommittedLeaderId, EntryPayload};

use crate::live::marks::Marks;
use crate::operation::{
    Admission, AdmittedPage, Child, Covered, LoggedChange, OpReply, Operation, Outcome, RootFacts,
};
use crate::raft::entry::{Entry, EntryData, LogId};
use crate::store::counters::{self, Counter};
use crate::store::testing::TestStore;
use crate::store::{aliases, deploys, groups, inodes, meta, objects, publish_log, sessions};

pub(crate) const CALLER: Caller = Caller { uid: 1, gid: 2 };
const SECOND: u64 = 1_000_000_000;

/// A state machine fed by hand.
pub(crate) struct Machine {
    pub(crate) store: TestStore,
    pub(crate) index: u64,
    number: u64,
    at_ns: u64,
}

pub(crate) fn entry(index: u64, at_ns: u64, operations: &[Operation]) -> Entry {
    let operations = operations.iter().map(|op| atoll_proto::encode(op).into()).collect();
    Entry {
        log_id: LogId::new(CommittedLeaderId::new(1, 1), index),
        payload: EntryPayload::Normal(EntryData { at_ns, operations }),
    }
}

fn init() -> Operation {
    Operation::Init {
        cluster: ClusterId([1; 16]),
        receipt_key: ReceiptKey([2; 32]),
        chunk_bytes: limits::CHUNK_BYTES,
        bootstrap_token: Some(ChunkId::of(b"secret")),
    }
}

impl Machine {
    /// A new cluster with session 1.
    pub(crate) fn new() -> Machine {
        let mut machine = Machine { store: TestStore::new(), index: 0, number: 0, at_ns: SECOND };
        let open = Operation::OpenSession { name: "test".into(), owner: "token 1".into() };
        let replies = machine.apply(&[init(), open]);
        assert_eq!(replies[1], Ok(Outcome::Session(SessionId(1))));
        machine
    }

    pub(crate) fn apply(&mut self, operations: &[Operation]) -> Vec<OpReply> {
        self.index += 1;
        self.at_ns += SECOND;
        let entry = entry(self.index, self.at_ns, operations);
        crate::raft::apply(&self.store.rocks, entry, &Marks::default()).unwrap().replies
    }

    pub(crate) fn change(&mut self, change: LoggedChange) -> Result<Changed, WireError> {
        self.number += 1;
        let (session, number) = (SessionId(1), self.number);
        let op = Operation::Numbered { session, number, acked_below: number, change };
        match self.apply(&[op]).remove(0)? {
            Outcome::Changed { reply, .. } => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn namespace(&mut self, op: NamespaceOp) -> Result<NamespaceReply, WireError> {
        self.namespace_with(op, &[])
    }

    pub(crate) fn namespace_with(
        &mut self,
        op: NamespaceOp,
        covered: &[Covered],
    ) -> Result<NamespaceReply, WireError> {
        let covered = covered.to_vec();
        match self.change(LoggedChange::Namespace { op, covered })? {
            Changed::Namespace(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn create(&mut self, parent: InodeId, name: &str) -> InodeId {
        let op = NamespaceOp::Create {
            parent,
            name: name.into(),
            mode: 0o644,
            caller: CALLER,
            exclusive: true,
        };
        inode_of(self.namespace(op).unwrap())
    }

    pub(crate) fn site(&mut self, op: SiteOp) -> Result<Published, WireError> {
        let root = Some(RootFacts { files: 3, bytes: 9 });
        match self.change(LoggedChange::Site { op, root })? {
            Changed::Site(published) => Ok(published),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn publish(
        &mut self,
        deploy: DeployId,
        if_current: Option<Option<DeployId>>,
    ) -> Result<Published, WireError> {
        match self.try_publish(deploy, if_current)? {
            Changed::Site(published) => Ok(published),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn try_publish(
        &mut self,
        deploy: DeployId,
        if_current: Option<Option<DeployId>>,
    ) -> Result<Changed, WireError> {
        let op = SiteOp::Publish {
            site: "blog".parse().unwrap(),
            alias: AliasName::production(),
            deploy,
            if_current,
            message: "m".into(),
            create: true,
        };
        let root = Some(RootFacts { files: 3, bytes: 9 });
        self.change(LoggedChange::Site { op, root })
    }

    fn move_alias(&mut self, deploy: Option<DeployId>) -> Result<Published, WireError> {
        self.site(SiteOp::MoveAlias {
            site: "blog".parse().unwrap(),
            alias: AliasName::production(),
            deploy,
            if_current: None,
        })
    }

    /// Admits a page of this name with one data chunk of its own and one shared one.
    pub(crate) fn page(&mut self, name: &str) -> DeployId {
        let own = data(&format!("{name} data"));
        let shared = data("shared");
        let id = ChunkId::of(name.as_bytes());
        let child = |it: Covered| Child { id: it.id, len: it.len, kind: ObjectKind::Data };
        let mut children = vec![child(own), child(shared)];
        children.sort_by_key(|child| child.id);
        let page = AdmittedPage { id, len: 50, kind: ObjectKind::Page, children };
        let covered = vec![own, shared, Covered { id, len: 50 }];
        let admission = Admission { pages: vec![page], covered };
        assert_eq!(self.change(LoggedChange::Admit(admission)), Ok(Changed::Admitted));
        id
    }

    pub(crate) fn refs(&self, id: &ChunkId) -> Option<(u64, bool)> {
        let object = objects::get(&self.store.rocks, id).unwrap()?;
        Some((object.refs, object.zero_since.is_some()))
    }
}

fn inode_of(reply: NamespaceReply) -> InodeId {
    match reply {
        NamespaceReply::Attr { attr, .. } => attr.inode,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn data(text: &str) -> Covered {
    Covered { id: ChunkId::of(text.as_bytes()), len: u32::try_from(text.len()).unwrap() }
}

pub(crate) fn content(chunks: &[Covered]) -> Content {
    let extent = |chunk: &Covered| Extent { id: Some(chunk.id), len: chunk.len };
    Content::from_extents(chunks.iter().map(extent).collect())
}

pub(crate) fn commit(inode: InodeId, chunks: &[Covered], if_version: Option<u64>) -> NamespaceOp {
    NamespaceOp::Commit {
        inode,
        content: content(chunks),
        mtime_ns: None,
        if_version,
        receipts: vec![],
    }
}

#[test]
fn a_commit_counts_each_chunk_once_and_gives_back_the_old() {
    let mut machine = Machine::new();
    let file = machine.create(InodeId::ROOT, "f");
    let (a, b) = (data("a"), data("b"));
    machine.namespace_with(commit(file, &[a, a, b], None), &[a, b]).unwrap();
    assert_eq!(machine.refs(&a.id), Some((1, false)));
    // Known now: no cover needed.
    let other = machine.create(InodeId::ROOT, "g");
    machine.namespace(commit(other, &[a], None)).unwrap();
    assert_eq!(machine.refs(&a.id), Some((2, false)));
    machine.namespace(commit(file, &[b], None)).unwrap();
    assert_eq!(machine.refs(&a.id), Some((1, false)));
    assert_eq!(counters::get(&machine.store.rocks, Counter::ChunksLive).unwrap(), 2);
    let unlink = |name: &str| NamespaceOp::Unlink { parent: InodeId::ROOT, name: name.into() };
    machine.namespace(unlink("f")).unwrap();
    machine.namespace(unlink("g")).unwrap();
    assert_eq!(machine.refs(&a.id), Some((0, true)));
    assert_eq!(counters::get(&machine.store.rocks, Counter::ChunksLive).unwrap(), 0);
    // Nothing is removed: a new commit of the same bytes needs no upload.
    let file = machine.create(InodeId::ROOT, "h");
    machine.namespace(commit(file, &[a], None)).unwrap();
    assert_eq!(machine.refs(&a.id), Some((1, false)));
}

#[test]
fn a_commit_without_cover_names_what_is_missing_and_changes_nothing() {
    let mut machine = Machine::new();
    let file = machine.create(InodeId::ROOT, "f");
    let (a, b) = (data("a"), data("b"));
    let op = commit(file, &[a, b], None);
    let reply = machine.change(LoggedChange::Namespace { op, covered: vec![a] }).unwrap();
    assert_eq!(reply, Changed::Missing { ids: vec![b.id] });
    assert_eq!(machine.refs(&a.id), None);
    let wrong = Covered { len: 7, ..a };
    let error = machine.namespace_with(commit(file, &[a], None), &[wrong]).unwrap_err();
    assert!(error.message.contains("7 bytes"), "{error}");
    let lists = Content::Lists { size: 5, lists: vec![(1, a.id)] };
    let op = NamespaceOp::Commit {
        inode: file,
        content: lists,
        mtime_ns: None,
        if_version: None,
        receipts: vec![],
    };
    let error = machine.namespace_with(op, &[a]).unwrap_err();
    assert!(error.message.contains("not admitted"), "{error}");
}

#[test]
fn a_commit_on_an_old_version_conflicts_even_within_one_entry() {
    let mut machine = Machine::new();
    let file = machine.create(InodeId::ROOT, "f");
    let a = data("a");
    let numbered = |number| Operation::Numbered {
        session: SessionId(1),
        number,
        acked_below: 0,
        change: LoggedChange::Namespace { op: commit(file, &[a], Some(2)), covered: vec![a] },
    };
    let replies = machine.apply(&[numbered(50), numbered(51)]);
    assert!(replies[0].is_ok(), "{replies:?}");
    assert_eq!(replies[1].as_ref().unwrap_err().code, Code::Conflict);
}

#[test]
fn a_repeat_gets_the_first_answer_and_changes_nothing() {
    let mut machine = Machine::new();
    let make = |number, acked_below, name: &str| Operation::Numbered {
        session: SessionId(1),
        number,
        acked_below,
        change: LoggedChange::Namespace {
            op: NamespaceOp::Create {
                parent: InodeId::ROOT,
                name: name.into(),
                mode: 0o644,
                caller: CALLER,
                exclusive: true,
            },
            covered: vec![],
        },
    };
    let first = machine.apply(&[make(1, 0, "a")]).remove(0);
    assert!(first.is_ok());
    let refused = machine.apply(&[make(2, 0, "a")]).remove(0);
    assert_eq!(refused.as_ref().unwrap_err().code, Code::Exists);
    // Repeats, alone and in one entry, after a restart too.
    assert_eq!(machine.apply(&[make(1, 0, "a"), make(2, 0, "a")]), [first.clone(), refused]);
    let Machine { store, index, number, at_ns } = machine;
    let mut machine = Machine { store: store.reopen(), index, number, at_ns };
    assert_eq!(machine.apply(&[make(1, 0, "a")]), [first]);
    assert_eq!(counters::get(&machine.store.rocks, Counter::Inodes).unwrap(), 2);
    // Acknowledged: forgotten, and an error to send again.
    machine.apply(&[make(3, 3, "b")]).remove(0).unwrap();
    assert_eq!(sessions::reply(&machine.store.rocks, SessionId(1), 1).unwrap(), None);
    let error = machine.apply(&[make(1, 3, "a")]).remove(0).unwrap_err();
    assert_eq!(error.code, Code::Invalid);
    // The window is bounded.
    let error = machine.apply(&[make(3 + sessions::WINDOW, 3, "c")]).remove(0).unwrap_err();
    assert_eq!(error.code, Code::Limit);
    machine.apply(&[make(2 + sessions::WINDOW, 3, "c")]).remove(0).unwrap();
}

#[test]
fn a_request_that_was_not_answered_is_done_already_or_never_will_be() {
    let mut machine = Machine::new();
    let file = machine.create(InodeId::ROOT, "f");
    let numbered = |number, change| Operation::Numbered {
        session: SessionId(1),
        number,
        acked_below: 50,
        change,
    };
    let write = |machine: &Machine| {
        let found = inodes::get(&machine.store.rocks, file).unwrap().unwrap();
        let a = data("a");
        let op = commit(file, &[a], Some(found.version));
        LoggedChange::Namespace { op, covered: vec![a] }
    };
    let reply = |reply: OpReply| match reply.unwrap() {
        Outcome::Changed { reply, .. } => reply,
        other => panic!("{other:?}"),
    };
    // Made before it is asked about, even within one entry: the answer comes again, and again.
    let change = write(&machine);
    let replies = machine.apply(&[
        numbered(50, change.clone()),
        numbered(50, LoggedChange::Abandon),
        numbered(50, LoggedChange::Abandon),
    ]);
    assert!(matches!(&replies[0], Ok(Outcome::Changed { reply: Changed::Namespace(_), .. })));
    assert_eq!((&replies[1], &replies[2]), (&replies[0], &replies[0]));
    // Refused: it changed nothing.
    let stale = machine.apply(&[numbered(51, change), numbered(51, LoggedChange::Abandon)]);
    assert_eq!(stale[0].as_ref().unwrap_err().code, Code::Conflict);
    assert_eq!(reply(stale[1].clone()), Changed::Abandoned);
    // Asked about first: whatever of it still arrives is not made.
    let late = write(&machine);
    let version = inodes::get(&machine.store.rocks, file).unwrap().unwrap().version;
    for change in [LoggedChange::Abandon, late, LoggedChange::Abandon] {
        assert_eq!(reply(machine.apply(&[numbered(52, change)]).remove(0)), Changed::Abandoned);
    }
    assert_eq!(inodes::get(&machine.store.rocks, file).unwrap().unwrap().version, version);
}

#[test]
fn a_session_expires_by_the_clock_of_the_log() {
    let mut machine = Machine::new();
    machine.apply(&[Operation::ExpireSessions]);
    assert!(sessions::get(&machine.store.rocks, SessionId(1)).unwrap().is_some());
    machine.at_ns += u64::try_from(limits::SESSION_LIFETIME.as_nanos()).unwrap();
    machine.apply(&[Operation::ExpireSessions]);
    let error = machine.change(LoggedChange::TokenRemove { id: 1 }).unwrap_err();
    assert_eq!(error, crate::ops::numbered::unknown_session());
}

#[test]
fn publishing_compares_and_swaps() {
    let mut machine = Machine::new();
    let (one, two) = (machine.page("one"), machine.page("two"));
    let nothing = ChunkId::of(b"nothing");
    let missing = machine.try_publish(nothing, None).unwrap();
    assert_eq!(missing, Changed::Missing { ids: vec![nothing] });
    // Known, but no page.
    let raw = data("raw");
    let file = machine.create(InodeId::ROOT, "f");
    machine.namespace_with(commit(file, &[raw], None), &[raw]).unwrap();
    let error = machine.publish(raw.id, None).unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    assert!(
        deploys::list(&machine.store.rocks, &"blog".parse().unwrap(), None, 9).unwrap().is_empty()
    );
    let first = machine.publish(one, Some(None)).unwrap();
    assert_eq!((first.deploy, first.previous), (Some(one), None));
    let lost = machine.publish(two, Some(None)).unwrap_err();
    assert_eq!(lost.code, Code::Conflict);
    assert!(lost.message.contains(&one.to_string()), "{lost}");
    let second = machine.publish(two, Some(Some(one))).unwrap();
    assert!(second.seq > first.seq);
    assert_eq!(second.previous, Some(one));
    assert_eq!(machine.refs(&one), Some((1, false)));
    // The same again is fine, has a new seq, and counts nothing twice.
    let again = machine.publish(two, None).unwrap();
    assert!(again.seq > second.seq);
    assert_eq!(machine.refs(&two), Some((1, false)));
    let listed = deploys::list(&machine.store.rocks, &"blog".parse().unwrap(), None, 9).unwrap();
    assert_eq!(listed.iter().map(|deploy| deploy.id).collect::<Vec<_>>(), [two, one]);
    assert_eq!(listed[0].files, 3);
    // Created with the site, then set: gaps aside, the log has every step.
    let (log, _) = publish_log::after(&machine.store.rocks, atoll_proto::Seq(0), 99).unwrap();
    assert_eq!(log.len(), 4);
    assert_eq!(log.last().unwrap().seq, again.seq);
}

#[test]
fn several_publishes_of_one_entry_have_their_own_seqs() {
    let mut machine = Machine::new();
    let (one, two) = (machine.page("one"), machine.page("two"));
    let publish = |number, deploy| Operation::Numbered {
        session: SessionId(1),
        number,
        acked_below: 0,
        change: LoggedChange::Site {
            op: SiteOp::Publish {
                site: "blog".parse().unwrap(),
                alias: AliasName::production(),
                deploy,
                if_current: None,
                message: String::new(),
                create: true,
            },
            root: Some(RootFacts { files: 0, bytes: 0 }),
        },
    };
    let replies = machine.apply(&[publish(90, one), publish(91, two), publish(92, one)]);
    let mut seqs = Vec::new();
    for reply in replies {
        match reply.unwrap() {
            Outcome::Changed { reply: Changed::Site(published), .. } => seqs.push(published.seq),
            other => panic!("{other:?}"),
        }
    }
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
    let next = machine.publish(two, None).unwrap();
    assert!(next.seq > seqs[2]);
}

#[test]
fn repeated_rollback_walks_back() {
    let mut machine = Machine::new();
    let pages: Vec<DeployId> = ["a", "b", "c", "d"].iter().map(|name| machine.page(name)).collect();
    for page in &pages[..3] {
        machine.publish(*page, None).unwrap();
    }
    assert_eq!(machine.move_alias(None).unwrap().deploy, Some(pages[1]));
    assert_eq!(machine.move_alias(None).unwrap().deploy, Some(pages[0]));
    let error = machine.move_alias(None).unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    // Published after going back: going back again skips what was rolled back.
    machine.publish(pages[3], None).unwrap();
    assert_eq!(machine.move_alias(None).unwrap().deploy, Some(pages[0]));
    // To any deploy of the site, by id.
    assert_eq!(machine.move_alias(Some(pages[2])).unwrap().previous, Some(pages[0]));
    assert!(machine.move_alias(Some(ChunkId::of(b"no"))).is_err());
    // A deploy in use stays, others can go and are not returned to.
    let remove = |deploy| SiteOp::RemoveDeploy { site: "blog".parse().unwrap(), deploy };
    assert_eq!(machine.site(remove(pages[2])).unwrap_err().code, Code::Conflict);
    machine.site(remove(pages[0])).unwrap();
    assert_eq!(machine.refs(&pages[0]), Some((0, true)));
    assert_eq!(machine.move_alias(None).unwrap_err().code, Code::NotFound);
}

#[test]
fn a_domain_has_one_site_and_a_removed_site_leaves_nothing() {
    let mut machine = Machine::new();
    let create = |site: &str, domains: &[&str]| SiteOp::Create {
        site: site.parse().unwrap(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
    };
    machine.site(create("blog", &["a.example", "b.example"])).unwrap();
    assert_eq!(machine.site(create("blog", &[])).unwrap_err().code, Code::Exists);
    let error = machine.site(create("shop", &["b.example"])).unwrap_err();
    assert!(error.message.contains("blog"), "{error}");
    assert!(machine.site(create("shop", &["Bad Domain"])).is_err());
    assert!(machine.site(create("shop", &["x.example", "x.example"])).is_err());
    let one = machine.page("one");
    machine.publish(one, None).unwrap();
    machine.site(SiteOp::Remove { site: "blog".parse().unwrap() }).unwrap();
    assert_eq!(machine.refs(&one), Some((0, true)));
    assert!(aliases::all(&machine.store.rocks, None).unwrap().is_empty());
    machine.site(create("shop", &["b.example"])).unwrap();
}

#[test]
fn a_page_counts_its_children_once_however_often_it_is_admitted() {
    let mut machine = Machine::new();
    let one = machine.page("one");
    machine.page("two");
    machine.page("one");
    assert_eq!(machine.refs(&data("shared").id), Some((2, false)));
    assert_eq!(machine.refs(&data("one data").id), Some((1, false)));
    assert_eq!(machine.refs(&one), Some((0, true)));
    // A parent before its child is refused, and counts nothing.
    let parent = ChunkId::of(b"parent");
    let child = Child { id: ChunkId::of(b"child"), len: 9, kind: ObjectKind::Page };
    let page = AdmittedPage { id: parent, len: 5, kind: ObjectKind::Page, children: vec![child] };
    let mut covered = vec![Covered { id: parent, len: 5 }];
    let admit = |covered: &[Covered]| {
        LoggedChange::Admit(Admission { pages: vec![page.clone()], covered: covered.to_vec() })
    };
    let missing = machine.change(admit(&covered)).unwrap();
    assert_eq!(missing, Changed::Missing { ids: vec![child.id] });
    covered.push(Covered { id: child.id, len: 9 });
    let error = machine.change(admit(&covered)).unwrap_err();
    assert!(error.message.contains("before"), "{error}");
    assert_eq!(machine.refs(&child.id), None);
}

#[test]
fn node_ids_and_names_belong_to_one_node() {
    let mut machine = Machine::new();
    let node = |id, name: &str, kind| {
        Operation::RegisterNode(NodeInfo {
            id: NodeId(id),
            name: name.into(),
            kind,
            addr: ([127, 0, 0, 1], 9).into(),
            zone: "z".into(),
            region: "r".into(),
            weight: 1,
            edge: None,
        })
    };
    let server = NodeKind::Chunkserver;
    machine.apply(&[node(1, "c1", server), node(1, "c1", server)]).remove(1).unwrap();
    assert!(machine.apply(&[node(1, "c2", server)]).remove(0).is_err());
    assert!(machine.apply(&[node(2, "c1", server)]).remove(0).is_err());
    assert!(machine.apply(&[node(1, "c1", NodeKind::Edge)]).remove(0).is_err());

    let set = |base, pg, members: &[u64]| Operation::SetTable {
        base: Epoch(base),
        changes: vec![(PgId(pg), members.iter().copied().map(NodeId).collect())],
    };
    machine.apply(&[node(2, "c2", server), node(3, "c3", server)]);
    machine.apply(&[set(0, 5, &[1])]).remove(0).unwrap();
    assert_eq!(groups::epoch(&machine.store.rocks).unwrap(), Epoch(1));
    assert_eq!(machine.apply(&[set(0, 5, &[2])]).remove(0).unwrap_err().code, Code::StaleEpoch);
    assert!(machine.apply(&[set(1, 5, &[9])]).remove(0).is_err());
    // A session was opened, so data may be on its way: only more members.
    assert!(machine.apply(&[set(1, 5, &[2])]).remove(0).is_err());
    machine.apply(&[set(1, 5, &[1, 3, 2])]).remove(0).unwrap();
    machine.page("one");
    assert!(machine.apply(&[set(2, 5, &[1, 3])]).remove(0).is_err());
}

#[test]
fn groups_are_dealt_out_anew_only_before_the_first_session() {
    let mut machine = Machine { store: TestStore::new(), index: 0, number: 0, at_ns: SECOND };
    let server = |id: u64| {
        Operation::RegisterNode(NodeInfo {
            id: NodeId(id),
            name: format!("c{id}"),
            kind: NodeKind::Chunkserver,
            addr: ([127, 0, 0, 1], 9).into(),
            zone: "z".into(),
            region: "r".into(),
            weight: 1,
            edge: None,
        })
    };
    let set = |base, members: &[u64]| Operation::SetTable {
        base: Epoch(base),
        changes: vec![(PgId(5), members.iter().copied().map(NodeId).collect())],
    };
    machine.apply(&[init(), server(1), server(2)]);
    machine.apply(&[set(0, &[1])]).remove(0).unwrap();
    machine.apply(&[set(1, &[2])]).remove(0).unwrap();
    let open = Operation::OpenSession { name: "test".into(), owner: "token 1".into() };
    machine.apply(&[open]).remove(0).unwrap();
    assert!(machine.apply(&[set(2, &[1])]).remove(0).is_err());
}

#[test]
fn tokens_come_and_go() {
    let mut machine = Machine::new();
    let grant =
        Grant { name: "ci".into(), verbs: vec![Verb::Deploy], site: None, expires_ms: None };
    let create = |secret: &[u8], grant: &Grant| LoggedChange::TokenCreate {
        hash: ChunkId::of(secret),
        grant: grant.clone(),
    };
    let made = machine.change(create(b"s", &grant)).unwrap();
    assert_eq!(made, Changed::TokenMade { id: 2 });
    assert_eq!(machine.change(create(b"secret", &grant)).unwrap_err().code, Code::Exists);
    let nothing = Grant { verbs: vec![], ..grant };
    assert!(machine.change(create(b"t", &nothing)).is_err());
    assert_eq!(machine.change(LoggedChange::TokenRemove { id: 2 }), Ok(Changed::TokenRemoved));
    assert!(machine.change(LoggedChange::TokenRemove { id: 2 }).is_err());
}

#[test]
fn paths_make_their_parents_and_follow_links() {
    let mut machine = Machine::new();
    let a = data("a");
    let put = |path: &str| NamespaceOp::PutFile {
        path: path.into(),
        mode: 0o600,
        caller: CALLER,
        content: content(&[a]),
        mtime_ns: Some(5),
        receipts: vec![],
    };
    let made = machine.namespace_with(put("/x/y/f"), &[a]).unwrap();
    assert!(matches!(&made, NamespaceReply::Attr { attr, created: true } if attr.mtime_ns == 5));
    let again = machine.namespace(put("/x/y/f")).unwrap();
    assert!(matches!(again, NamespaceReply::Attr { created: false, .. }));
    assert_eq!(machine.refs(&a.id), Some((1, false)));
    let link = |name: &str, target: &str| NamespaceOp::Symlink {
        parent: InodeId::ROOT,
        name: name.into(),
        target: target.into(),
        caller: CALLER,
    };
    machine.namespace(link("l", "x/./../x")).unwrap();
    machine.namespace(link("loop", "/loop")).unwrap();
    let via = machine.namespace(put("/l/y/f")).unwrap();
    assert_eq!(inode_of(via), inode_of(made));
    assert_eq!(machine.namespace(put("/loop/f")).unwrap_err().code, Code::Invalid);
    assert_eq!(machine.namespace(put("/x/y/f/g")).unwrap_err().code, Code::NotADirectory);
    assert_eq!(machine.namespace(put("/x/y")).unwrap_err().code, Code::IsADirectory);
    for bad in ["x", "", "/x/../y", "/a\0b"] {
        assert_eq!(machine.namespace(put(bad)).unwrap_err().code, Code::Invalid, "{bad:?}");
    }
    // A path that fails at its end has made no parents.
    let missing = NamespaceOp::PutFile {
        path: "/new/dir/f".into(),
        mode: 0o600,
        caller: CALLER,
        content: content(&[data("unknown")]),
        mtime_ns: None,
        receipts: vec![],
    };
    let change = LoggedChange::Namespace { op: missing, covered: vec![] };
    assert!(matches!(machine.change(change), Ok(Changed::Missing { .. })));
    let found = crate::ops::namespace::resolve(&machine.store.rocks, &"/new".into());
    assert!(found.is_err());
    let found = crate::ops::namespace::resolve(&machine.store.rocks, &"/l/y/f".into());
    assert!(found.is_ok());
    assert!(crate::ops::namespace::resolve(&machine.store.rocks, &"/".into()).is_ok());
    let dirs = NamespaceOp::MakeDirs { path: "/x/z".into(), mode: 0o700, caller: CALLER };
    let made = machine.namespace(dirs.clone()).unwrap();
    assert!(matches!(made, NamespaceReply::Attr { created: true, .. }));
    let made = machine.namespace(dirs).unwrap();
    assert!(matches!(made, NamespaceReply::Attr { created: false, .. }));
}

#[test]
fn the_same_entries_make_the_same_state_and_twice_is_once() {
    let a = data("a");
    let numbered = |number, change| Operation::Numbered {
        session: SessionId(1),
        number,
        acked_below: number / 2,
        change,
    };
    let namespace = |op| LoggedChange::Namespace { op, covered: vec![a] };
    let root = InodeId::ROOT;
    let file = |name: &str| NamespaceOp::Create {
        parent: root,
        name: name.into(),
        mode: 0o644,
        caller: CALLER,
        exclusive: true,
    };
    let rename = NamespaceOp::Rename {
        parent: root,
        name: "a".into(),
        new_parent: root,
        new_name: "c".into(),
        mode: RenameMode::Replace,
    };
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let open = Operation::OpenSession { name: "n".into(), owner: "o".into() };
    let entries = [
        entry(1, 10, &[init(), open]),
        entry(
            2,
            20,
            &[
                numbered(1, namespace(file("a"))),
                numbered(2, namespace(file("b"))),
                numbered(3, namespace(file("a"))),
                numbered(4, namespace(commit(InodeId(2), &[a], None))),
            ],
        ),
        // A leader whose clock is behind.
        entry(3, 5, &[numbered(5, namespace(rename)), numbered(5, namespace(file("z")))]),
        entry(4, 30, &[numbered(6, namespace(NamespaceOp::SetAttr { inode: InodeId(2), set }))]),
    ];
    let (one, two) = (TestStore::new(), TestStore::new());
    for entry in &entries {
        crate::raft::apply(&one.rocks, entry.clone(), &Marks::default()).unwrap();
    }
    let mut two = two;
    for entry in &entries {
        // Killed after the log was written, before or after it was applied: applied again.
        let first = crate::raft::apply(&two.rocks, entry.clone(), &Marks::default()).unwrap();
        two = two.reopen();
        let again = crate::raft::apply(&two.rocks, entry.clone(), &Marks::default()).unwrap();
        assert!(!first.replies.is_empty());
        assert!(again.replies.is_empty());
    }
    assert_eq!(one.dump(), two.dump());
    assert_eq!(meta::clock_ns(&one.rocks).unwrap(), 30);
    let name: ByteName = "/c".into();
    assert!(crate::ops::namespace::resolve(&one.rocks, &name).is_ok());
}
