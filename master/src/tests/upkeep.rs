//! Feeds, comparison and collection, through the service.

use std::collections::BTreeSet;
use std::time::Duration;

use atoll_proto::content::Extent;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::master::{ObjectKind, ObjectView, Orders, TreeReport, UpkeepOp};
use atoll_proto::namespace::{Caller, NamespaceOp};
use atoll_proto::tree::{Ask, BUCKETS, Digest, Found, GroupTree, NodeTree, SetHash, bucket_of};
use atoll_proto::{Content, Epoch, PgId, WireError};

use super::harness::Running;
use super::*;

const CALLER: Caller = Caller { uid: 0, gid: 0 };

/// A file of one chunk, by path.
pub(super) fn put_file(path: &str, bytes: &Bytes, receipts: Vec<Receipt>) -> Change {
    let len = u32::try_from(bytes.len()).unwrap();
    Change::Namespace(NamespaceOp::PutFile {
        path: path.into(),
        mode: 0o644,
        caller: CALLER,
        content: Content::from_extents(vec![Extent { id: Some(ChunkId::of(bytes)), len }]),
        mtime_ns: None,
        receipts,
    })
}

pub(super) fn unlink(name: &str) -> Change {
    Change::Namespace(NamespaceOp::Unlink { parent: InodeId::ROOT, name: name.into() })
}

/// A cluster of one master and three chunkservers, with a user.
pub(super) struct Small {
    pub(super) master: Running,
    pub(super) servers: Vec<ServerNode>,
    pub(super) user: User,
    pub(super) ca: ClusterCa,
    pub(super) config: Config,
    pub(super) dir: tempfile::TempDir,
}

impl Small {
    pub(super) async fn start(set: impl FnOnce(&mut Config)) -> Small {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::create(CLUSTER).unwrap();
        let mut config = config(&ca, dir.path(), 1);
        set(&mut config);
        let master = start_and_wait(&config).await;
        let user = User::new(&ca, vec![master.addr], SECRET).await;
        let mut servers = Vec::new();
        for id in 1..=3 {
            servers.push(ServerNode::start(&ca, master.addr, id).await);
        }
        let view = placed(&user, 1).await;
        assert!(view.table.members.iter().all(|members| members.len() == 3));
        Small { master, servers, user, ca, config, dir }
    }

    pub(super) async fn stop(self) {
        for server in self.servers {
            server.stop.trigger();
        }
        self.master.stop().await;
    }

    pub(super) fn put(&self, bytes: &Bytes) -> Vec<Receipt> {
        let one = std::slice::from_ref(bytes);
        self.servers[..2].iter().map(|server| server.put(self.user.session, one)).collect()
    }

    pub(super) async fn write(&mut self, path: &str, bytes: &Bytes) {
        let receipts = self.put(bytes);
        let changed = self.user.change(put_file(path, bytes, receipts)).await.unwrap();
        assert!(matches!(changed, Changed::Namespace(_)), "{changed:?}");
    }

    pub(super) async fn known(&self, bytes: &Bytes) -> bool {
        let request = MasterRequest::Known { ids: vec![ChunkId::of(bytes)] };
        match self.user.ask(&request).await.unwrap() {
            MasterResponse::Known(known) => known[0],
            other => panic!("{other:?}"),
        }
    }

    /// The master stops; what it does to its data happens; it starts again.
    pub(super) async fn restart(mut self, meanwhile: impl FnOnce(&mut Config)) -> Small {
        self.master.stop().await;
        meanwhile(&mut self.config);
        self.master = start_and_wait(&self.config).await;
        self.user.masters = vec![self.master.addr];
        for server in &self.servers {
            server.register(self.master.addr).await;
        }
        self
    }

    async fn server(&self, at: usize, request: MasterRequest) -> Result<MasterResponse, WireError> {
        self.servers[at].ask(self.master.addr, &request).await
    }

    /// What the first server is told until the feed is quiet: the live ids, and the index.
    async fn follow(&self, live: &mut BTreeSet<ChunkId>, mut after: u64) -> u64 {
        loop {
            let request = MasterRequest::Deltas { node: NodeId(1), after, wait_ms: 0 };
            let answer = self.server(0, request).await.unwrap();
            let MasterResponse::Deltas { deltas, upto, gap: false } = answer else { panic!() };
            assert!(upto >= after);
            let quiet = deltas.is_empty();
            for delta in deltas {
                assert!(if delta.live { live.insert(delta.id) } else { live.remove(&delta.id) });
            }
            after = upto;
            if quiet {
                return after;
            }
        }
    }
}

/// The roots of all groups over a set of ids.
fn roots(live: &BTreeSet<ChunkId>) -> Vec<Digest> {
    let root = |pg: u16| {
        let mut leaves = Box::new([SetHash::default(); BUCKETS]);
        for id in live.iter().filter(|id| id.pg() == PgId(pg)) {
            leaves[usize::from(bucket_of(id))].insert(id);
        }
        GroupTree::new(&leaves.map(SetHash::to_bytes)).root()
    };
    (0..PG_COUNT).map(root).collect()
}

fn beat(index: u64, epoch: Epoch, live: &BTreeSet<ChunkId>) -> MasterRequest {
    let roots = roots(live);
    let groups = live.iter().map(|id| (id.pg(), roots[usize::from(id.pg().0)])).collect();
    let root = NodeTree::new(&roots, |_| true).root();
    let tree = Some(TreeReport { epoch, index, root, groups });
    MasterRequest::Heartbeat { node: NodeId(1), ready: true, stat: None, tree }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunkserver_follows_and_is_compared() {
    let mut small = Small::start(|_| {}).await;
    let texts: Vec<Bytes> = (0..20).map(|n| Bytes::from(format!("text {n}"))).collect();
    for (n, text) in texts.iter().enumerate() {
        small.write(&format!("/f{n}"), text).await;
    }
    let mut live = BTreeSet::new();
    let index = small.follow(&mut live, 0).await;
    assert_eq!(live, texts.iter().map(|text| ChunkId::of(text)).collect());
    let epoch = small.user.view().await.table.epoch;

    // Equal, and remembered.
    let heard = small.server(0, beat(index, epoch, &live)).await.unwrap();
    let MasterResponse::Heard { in_sync, differ, orders, .. } = heard else { panic!() };
    assert_eq!((in_sync, differ, orders), (Some(true), vec![], Orders::default()));
    let MasterResponse::Status(status) = small.user.ask(&MasterRequest::Status).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(status.chunkservers[0].in_sync, Some(true));
    assert_eq!(status.chunkservers[1].in_sync, None);
    assert_eq!(status.chunkservers[0].groups, 4096);

    // One chunk short: named.
    let mut short = live.clone();
    let lost = *short.first().unwrap();
    short.remove(&lost);
    let MasterRequest::Heartbeat { node, ready, stat, tree: Some(mut tree) } =
        beat(index, epoch, &short)
    else {
        panic!()
    };
    tree.groups.push((lost.pg(), [0; 32]));
    let request = MasterRequest::Heartbeat { node, ready, stat, tree: Some(tree) };
    let heard = small.server(0, request).await.unwrap();
    let MasterResponse::Heard { in_sync, differ, .. } = heard else { panic!() };
    assert_eq!((in_sync, differ), (Some(false), vec![lost.pg()]));

    // The walk finds the chunk.
    let asks = vec![
        Ask::Mids { pg: lost.pg() },
        Ask::Ids { pg: lost.pg(), bucket: bucket_of(&lost) },
        Ask::Tops,
    ];
    let walk = |epoch, index, asks: &[Ask]| MasterRequest::Walk {
        node: NodeId(1),
        epoch,
        index,
        asks: asks.to_vec(),
    };
    let walked = small.server(0, walk(epoch, index, &asks)).await.unwrap();
    let MasterResponse::Walked(found) = walked else { panic!() };
    assert_eq!(found[1], Found::Ids(vec![lost]));
    assert_eq!(found[2], Found::Digests(NodeTree::new(&roots(&live), |_| true).tops().to_vec()));
    let stale = small.server(0, walk(Epoch(99), index, &asks)).await.unwrap_err();
    assert_eq!(stale.code, Code::StaleEpoch);
    let early = small.server(0, walk(epoch, 1, &asks)).await.unwrap();
    let MasterResponse::Walked(found) = early else { panic!() };
    assert!(matches!(found[0], Found::Moved { .. }));

    // A report at an index that is not comparable says nothing.
    for (index, epoch) in [(1, epoch), (index + 1000, epoch), (index, Epoch(99))] {
        let heard = small.server(0, beat(index, epoch, &short)).await.unwrap();
        let MasterResponse::Heard { in_sync, differ, .. } = heard else { panic!() };
        assert_eq!((in_sync, differ), (None, vec![]));
    }

    let ids = vec![lost, ChunkId::of(b"never stored")];
    let objects = small.server(0, MasterRequest::Objects { ids: ids.clone() }).await.unwrap();
    let len = texts.iter().find(|text| ChunkId::of(text) == lost).unwrap().len();
    let kind = ObjectKind::Data;
    let view = ObjectView { refs: 1, len: u32::try_from(len).unwrap(), kind };
    assert_eq!(objects, MasterResponse::Objects(vec![Some(view), None]));
    assert_eq!(small.user.ask(&MasterRequest::Objects { ids }).await.unwrap(), objects);

    // Nobody speaks for another server, and users and edges are none.
    let deltas = |node| MasterRequest::Deltas { node: NodeId(node), after: 0, wait_ms: 0 };
    assert_eq!(small.server(0, deltas(2)).await.unwrap_err().code, Code::Denied);
    assert_eq!(small.server(0, deltas(77)).await.unwrap_err().code, Code::NotFound);
    assert_eq!(small.user.ask(&deltas(1)).await.unwrap_err().code, Code::Denied);
    let foreign = MasterRequest::Walk { node: NodeId(2), epoch, index, asks };
    assert_eq!(small.server(0, foreign).await.unwrap_err().code, Code::Denied);
    let edge = Endpoint::client(&small.ca.issue(Role::Edge, "edge-1").unwrap()).unwrap();
    let options = call_options(None);
    let master = small.master.addr;
    let question = deltas(1);
    let asked = edge.call::<_, MasterResponse>(master, Role::Master, &question, vec![], options);
    assert!(asked.await.unwrap_err().to_string().contains("may not ask this"));
    small.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_waits_is_woken_by_what_concerns_it_and_ends_in_time() {
    let mut small = Small::start(|_| {}).await;
    let after = small.follow(&mut BTreeSet::new(), 0).await;
    let wait = |after, wait_ms| MasterRequest::Deltas { node: NodeId(1), after, wait_ms };
    // A change without a chunk wakes nobody; the answer is empty, and its index moved on.
    let began = std::time::Instant::now();
    let (master, waiting) = (small.master.addr, wait(after, 600));
    let (quiet, _) =
        tokio::join!(small.servers[0].ask(master, &waiting), small.user.mkdir("empty"));
    let MasterResponse::Deltas { deltas, upto, gap } = quiet.unwrap() else { panic!() };
    assert!(deltas.is_empty() && !gap && upto > after);
    assert!(began.elapsed() >= Duration::from_millis(600));
    let text = Bytes::from_static(b"news");
    let receipts = small.put(&text);
    let waiting = wait(upto, 9000);
    let put = put_file("/f", &text, receipts);
    let (woken, _) = tokio::join!(small.servers[0].ask(master, &waiting), small.user.change(put));
    let MasterResponse::Deltas { deltas, .. } = woken.unwrap() else { panic!() };
    assert_eq!(deltas.len(), 1);
    assert!(deltas[0].live && deltas[0].id == ChunkId::of(&text));
    small.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collection_waits_while_frozen_and_a_late_commit_uploads_again() {
    let mut small = Small::start(|config| {
        config.collect_after_ms = 0;
        config.collect_every_ms = 20;
    })
    .await;
    let text = Bytes::from_static(b"here today");
    let freeze = UpkeepOp::Freeze { reason: "a drill".to_owned() };
    small.user.change(Change::Upkeep(freeze)).await.unwrap();
    small.write("/f", &text).await;
    small.user.change(unlink("f")).await.unwrap();
    // Known, as nothing is collected while frozen; a client would not upload it.
    assert!(small.known(&text).await);
    let heard = small.servers[0].heartbeat(small.master.addr).await;
    let MasterResponse::Heard { orders, .. } = heard else { panic!() };
    assert!(orders.frozen);
    let MasterResponse::Status(status) = small.user.ask(&MasterRequest::Status).await.unwrap()
    else {
        panic!()
    };
    assert_eq!((status.frozen.as_deref(), status.chunks_unreferenced), (Some("a drill"), 1));

    small.user.change(Change::Upkeep(UpkeepOp::Release)).await.unwrap();
    eventually(async || match small.known(&text).await {
        true => Err("still known".to_owned()),
        false => Ok(()),
    })
    .await;
    let late = small.user.change(put_file("/g", &text, vec![])).await.unwrap();
    assert_eq!(late, Changed::Missing { ids: vec![ChunkId::of(&text)] });
    small.write("/g", &text).await;
    assert!(small.known(&text).await);
    let mut live = BTreeSet::new();
    small.follow(&mut live, 0).await;
    assert_eq!(live, BTreeSet::from([ChunkId::of(&text)]));
    small.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_deploy_is_collected_page_by_page() {
    let mut small = Small::start(|config| {
        config.collect_after_ms = 0;
        config.collect_every_ms = 20;
    })
    .await;
    // What is admitted and not yet published would be collected at once.
    let freeze = UpkeepOp::Freeze { reason: "deploying".to_owned() };
    small.user.change(Change::Upkeep(freeze)).await.unwrap();
    let site = SmallSite::new("<h1>hello</h1>");
    let other = SmallSite::new("<h1>bye</h1>");
    for site in [&site, &other] {
        let chunks = [site.data.clone(), site.leaf.clone(), site.root.clone()];
        let receipts: Vec<Receipt> =
            small.servers[..2].iter().map(|it| it.put(small.user.session, &chunks)).collect();
        assert_eq!(small.user.change(site.admit(receipts)).await, Ok(Changed::Admitted));
        small.user.change(site.publish(None)).await.unwrap();
    }
    small.user.change(Change::Upkeep(UpkeepOp::Release)).await.unwrap();
    let remove = SiteOp::RemoveDeploy { site: "blog".parse().unwrap(), deploy: site.deploy() };
    small.user.change(Change::Site(remove)).await.unwrap();
    eventually(async || {
        for part in [&site.root, &site.leaf, &site.data] {
            if small.known(part).await {
                return Err("not all of the removed deploy is collected".to_owned());
            }
        }
        Ok(())
    })
    .await;
    for part in [&other.root, &other.leaf, &other.data] {
        assert!(small.known(part).await);
    }
    // Published again without an upload: told to upload.
    let gone = small.user.change(site.publish(None)).await.unwrap_err();
    assert_eq!(gone.code, Code::Invalid);
    let missing = small.user.change(site.admit(vec![])).await.unwrap();
    assert!(matches!(missing, Changed::Missing { ids } if ids.len() == 2));
    small.stop().await;
}
