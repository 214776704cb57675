//! Whole masters in this process, over real connections, with chunkservers that keep their
//! chunks in memory.

#![allow(clippy::unwrap_used, reason = "tests")]

mod audit;
mod backup;
mod erase;
mod harness;
mod masters;
mod membership;
mod relay;
mod upkeep;

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_net::{ClusterCa, Endpoint, Role};
use atoll_proto::cluster::{EdgeInfo, NodeInfo, NodeKind, NodeState};
use atoll_proto::master::{Change, Changed, Grant, MasterRequest, MasterResponse, Verb};
use atoll_proto::namespace::{NamespaceQuery, NamespaceReply};
use atoll_proto::publish::{Published, SiteOp};
use atoll_proto::receipt::Receipt;
use atoll_proto::{ChunkId, Code, InodeId, NodeId, Seq, SessionId};
use bytes::Bytes;

use crate::config::{Config, Peer};
use harness::{
    CLUSTER, SECRET, ServerNode, SmallSite, User, call_options, config, eventually, mkdir, placed,
    start, start_and_wait,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_goes_from_receipts_to_the_publish_log() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let master = start_and_wait(&config(&ca, dir.path(), 1)).await;
    let mut user = User::new(&ca, vec![master.addr], SECRET).await;
    let mut servers = Vec::new();
    for id in 1..=3 {
        servers.push(ServerNode::start(&ca, master.addr, id).await);
    }
    let view = placed(&user, 1).await;
    assert!(view.table.members.iter().all(|members| members.len() == 3));
    assert_eq!(view.zone.as_deref(), Some("atoll.test"));
    for server in &servers {
        let heard = server.heartbeat(master.addr).await;
        assert!(matches!(heard, MasterResponse::Heard { known: true, .. }));
    }
    let statfs = user.query(NamespaceQuery::StatFs).await.unwrap();
    assert!(matches!(
        statfs,
        NamespaceReply::StatFs { total_bytes: 3000, free_bytes: 1500, inodes: 1 }
    ));

    // Nothing is uploaded: everything is missing.
    let site = SmallSite::new("<h1>hello</h1>");
    let missing = user.change(site.admit(vec![])).await.unwrap();
    assert!(matches!(missing, Changed::Missing { ids } if ids.len() == 2));
    // The pages are, the data is not.
    let pages = [site.leaf.clone(), site.root.clone()];
    let page_receipts: Vec<Receipt> =
        servers[..2].iter().map(|server| server.put(user.session, &pages)).collect();
    let missing = user.change(site.admit(page_receipts.clone())).await.unwrap();
    assert_eq!(missing, Changed::Missing { ids: vec![ChunkId::of(&site.data)] });
    // One receipt is not enough, a forged one does not count.
    let data = std::slice::from_ref(&site.data);
    let one = servers[0].put(user.session, data);
    let mut forged = one.clone();
    forged.node = NodeId(2);
    let mut receipts = page_receipts.clone();
    receipts.extend([one.clone(), forged]);
    let missing = user.change(site.admit(receipts)).await.unwrap();
    assert!(matches!(missing, Changed::Missing { .. }));
    let early = user.change(site.publish(None)).await.unwrap_err();
    assert_eq!(early.code, Code::Invalid, "{early}");

    let mut receipts = page_receipts;
    receipts.extend([one, servers[1].put(user.session, data)]);
    assert_eq!(user.change(site.admit(receipts)).await, Ok(Changed::Admitted));
    // Admitted again: nothing is read, nothing is needed.
    assert_eq!(user.change(site.admit(vec![])).await, Ok(Changed::Admitted));
    let known = MasterRequest::Known { ids: vec![ChunkId::of(&site.data), ChunkId::of(b"?")] };
    let known = user.ask(&known).await.unwrap();
    assert_eq!(known, MasterResponse::Known(vec![true, false]));

    let published = user.change(site.publish(Some(None))).await.unwrap();
    let Changed::Site(Published { seq, deploy, previous: None }) = published else {
        panic!("{published:?}")
    };
    assert_eq!(deploy, Some(site.deploy()));
    let lost = user.change(site.publish(Some(None))).await.unwrap_err();
    assert_eq!(lost.code, Code::Conflict);
    let deploys = MasterRequest::Deploys { site: "blog".parse().unwrap(), before: None, limit: 10 };
    let MasterResponse::Deploys(deploys) = user.ask(&deploys).await.unwrap() else { panic!() };
    assert_eq!((deploys.len(), deploys[0].files, deploys[0].bytes), (1, 1, 14));
    let status = user.ask(&MasterRequest::Status).await.unwrap();
    let MasterResponse::Status(status) = status else { panic!() };
    assert_eq!(status.publish_seq, seq);
    // Nobody has compared what it has yet.
    assert_eq!((status.groups_clean, status.groups_degraded), (0, 4096));
    assert_eq!(status.masters[0].role, "leader");
    assert!(status.chunkservers.iter().all(|server| server.up));
    for server in servers {
        server.stop.trigger();
    }
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_follows_and_a_publish_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let master = start_and_wait(&config(&ca, dir.path(), 1)).await;
    let mut user = User::new(&ca, vec![master.addr], SECRET).await;
    let edge = Endpoint::client(&ca.issue(Role::Edge, "edge-1").unwrap()).unwrap();
    let ask = async |request: MasterRequest| {
        let options = call_options(None);
        let called = edge.call(master.addr, Role::Master, &request, Vec::new(), options).await;
        called.map(|(answer, _)| answer)
    };
    let info = NodeInfo {
        id: NodeId(101),
        name: "edge-1".into(),
        kind: NodeKind::Edge,
        addr: ([127, 0, 0, 1], 1).into(),
        zone: "z".into(),
        region: "eu".into(),
        weight: 1,
        edge: Some(EdgeInfo {
            serves: true,
            shield: false,
            dns: false,
            public: vec![],
            http_port: 80,
            https_port: 443,
        }),
    };
    let wrong = NodeInfo { name: "edge-2".into(), ..info.clone() };
    assert!(ask(MasterRequest::Register { info: wrong }).await.is_err());
    let registered: MasterResponse = ask(MasterRequest::Register { info }).await.unwrap();
    assert!(matches!(registered, MasterResponse::Registered { receipt_key: None, .. }));

    let create = SiteOp::Create { site: "blog".parse().unwrap(), domains: vec![] };
    let created = user.change(Change::Site(create)).await.unwrap();
    let Changed::Site(Published { seq, .. }) = created else { panic!() };
    let wait = |wait_ms| MasterRequest::WaitApplied { seq, wait_ms };
    let early = user.ask(&wait(50)).await.unwrap();
    let waiting = vec!["edge-1".to_owned()];
    let expected = MasterResponse::Applied { acked: vec![], waiting, down: vec![] };
    assert_eq!(early, expected);

    let watch = |after, wait_ms| MasterRequest::Watch { after, edge: Some(NodeId(101)), wait_ms };
    let MasterResponse::Log { entries, upto } = ask(watch(Seq(0), 5000)).await.unwrap() else {
        panic!()
    };
    assert_eq!((entries.len(), upto), (1, seq));
    // The next watch acknowledges; the wait that is under way ends.
    let long = wait(9000);
    let waiting = user.ask(&long);
    let (applied, _) = tokio::join!(waiting, ask(watch(seq, 100)));
    let acked = vec!["edge-1".to_owned()];
    let expected = MasterResponse::Applied { acked, waiting: vec![], down: vec![] };
    assert_eq!(applied.unwrap(), expected);

    // A watch that waits is woken by the next change.
    let create = SiteOp::Create { site: "shop".parse().unwrap(), domains: vec![] };
    let (woken, _) = tokio::join!(ask(watch(seq, 9000)), user.change(Change::Site(create)));
    let MasterResponse::Log { entries, .. } = woken.unwrap() else { panic!() };
    assert_eq!(entries.len(), 1);
    // From a future that never was: start from a snapshot.
    let snapshot = ask(watch(Seq(1 << 40), 0)).await.unwrap();
    assert!(matches!(snapshot, MasterResponse::Snapshot(it) if it.sites.len() == 2));
    // A user is no edge, and another edge is not this one.
    assert_eq!(user.ask(&watch(seq, 0)).await.unwrap_err().code, Code::Denied);
    let view = user.view().await;
    assert_eq!(view.nodes[0].state, NodeState::Up);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_decide_what_users_may_do() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let master = start_and_wait(&config(&ca, dir.path(), 1)).await;
    let mut admin = User::new(&ca, vec![master.addr], SECRET).await;
    let grant =
        Grant { name: "reader".into(), verbs: vec![Verb::Read], site: None, expires_ms: None };
    let hash = ChunkId::of(b"reader's secret");
    let made = admin.change(Change::TokenCreate { hash, grant }).await.unwrap();
    let Changed::TokenMade { id } = made else { panic!() };
    let mut reader = User::new(&ca, vec![master.addr], "reader's secret").await;
    let root = NamespaceQuery::Attr { inode: InodeId::ROOT };
    assert!(reader.query(root.clone()).await.is_ok());
    let denied = reader.mkdir("d").await.unwrap_err();
    assert_eq!(denied.code, Code::Denied);
    assert!(denied.message.contains("needs write"), "{denied}");
    // A session belongs to the token that opened it.
    admin.session = SessionId(2);
    assert_eq!(admin.mkdir("d").await.unwrap_err().code, Code::Denied);
    admin.session = SessionId(1);
    admin.change(Change::TokenRemove { id }).await.unwrap();
    assert_eq!(reader.query(root).await.unwrap_err().code, Code::Denied);
    let stranger = User::new(&ca, vec![master.addr], "wrong").await;
    assert_eq!(stranger.session, SessionId(0));
    // Only masters speak Raft.
    let raft = MasterRequest::Raft { message: Bytes::from_static(b"x") };
    assert_eq!(admin.ask(&raft).await.unwrap_err().code, Code::Denied);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_forgets_nothing_and_answers_repeats() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let config = config(&ca, dir.path(), 1);
    let master = start_and_wait(&config).await;
    let mut user = User::new(&ca, vec![master.addr], SECRET).await;
    let first = user.mkdir("a").await.unwrap();
    master.stop().await;

    let began = std::time::Instant::now();
    let master = start_and_wait(&config).await;
    assert!(began.elapsed() < Duration::from_secs(5), "a lone master need not wait to lead");
    user.masters = vec![master.addr];
    assert_eq!(user.change_number(1, mkdir("a")).await, Ok(first));
    assert_eq!(user.mkdir("a").await.unwrap_err().code, Code::Exists);
    user.session = SessionId(77);
    let unknown = user.mkdir("b").await.unwrap_err();
    assert_eq!(unknown.message, "session unknown: open a new one");
    master.stop().await;

    // Foreign data is refused, and so is a log that was lost.
    let mut other = config.clone();
    other.id = 2;
    let error = start(&other).1.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("belongs to master 1"), "{error}");
    std::fs::remove_dir_all(config.data.join("log")).unwrap();
    let error = start(&config).1.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("its log is empty"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_at_once_are_all_done_once() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let master = start_and_wait(&config(&ca, dir.path(), 1)).await;
    let user = User::new(&ca, vec![master.addr], SECRET).await;
    let changes = (1..=500).map(|number| {
        let user = &user;
        async move { user.change_number(number, mkdir(&format!("d{}", number / 2))).await }
    });
    let results = futures_util::future::join_all(changes).await;
    let made = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(made, 251, "one of each pair");
    let list = NamespaceQuery::ReadDir { inode: InodeId::ROOT, after: None, limit: 1000 };
    let NamespaceReply::Entries { entries, end, .. } = user.query(list).await.unwrap() else {
        panic!()
    };
    assert!(end);
    assert_eq!(entries.len(), 251);
    master.stop().await;
}

/// The names and bytes of the files in a database's directory, but not what it notes on its own doings.
fn content(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    // RocksDB begins a new LOG, and renames the one before, also when it only reads.
    let told = |path: &Path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"LOG"))
    };
    let files = entries.filter(|path| !told(path));
    let mut files: Vec<_> =
        files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_refused_and_a_torn_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let config = config(&ca, dir.path(), 1);
    let master = start_and_wait(&config).await;
    let mut user = User::new(&ca, vec![master.addr], SECRET).await;
    for number in 0..30 {
        user.mkdir(&format!("d{number}")).await.unwrap();
    }
    master.stop().await;

    let log = config.data.join("log");
    let wals =
        content(&log).into_iter().filter(|(path, _)| path.extension() == Some("log".as_ref()));
    let (wal, whole) = wals.max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 4;
    std::fs::write(&wal, &bytes).unwrap();
    let before = (content(&log), content(&config.data.join("state-1")));
    let error = start(&config).1.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("log of this master is damaged"), "{error}");
    assert!(error.contains(wal.to_str().unwrap()) && error.contains("backup"), "{error}");
    // Among others, a backup would bring back what they have left behind.
    let peers = vec![Peer { id: 2, addr: free_ports(1)[0] }];
    let among = Config { listen: free_ports(1)[0], peers, ..config.clone() };
    let error = start(&among).1.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("a new id"), "{error}");
    assert!(error.contains("nor restored from a backup"), "{error}");
    assert!(before == (content(&log), content(&config.data.join("state-1"))), "it was changed");

    // What a power cut takes from the end, nobody was told of.
    std::fs::write(&wal, &whole[..whole.len() - 3]).unwrap();
    let master = start_and_wait(&config).await;
    let user = User::new(&ca, vec![master.addr], SECRET).await;
    let list = NamespaceQuery::ReadDir { inode: InodeId::ROOT, after: None, limit: 1000 };
    let NamespaceReply::Entries { entries, .. } = user.query(list).await.unwrap() else { panic!() };
    assert_eq!(entries.len(), 30);
    master.stop().await;
}

/// Free ports; another process could take them before they are used, but hardly does.
fn free_ports(count: usize) -> Vec<SocketAddr> {
    let sockets: Vec<UdpSocket> =
        (0..count).map(|_| UdpSocket::bind(("127.0.0.1", 0)).unwrap()).collect();
    sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_masters_survive_the_loss_of_their_leader() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let addrs = free_ports(3);
    let peers: Vec<Peer> =
        addrs.iter().zip(1..).map(|(addr, id)| Peer { id, addr: *addr }).collect();
    let configs: Vec<Config> = (1..=3)
        .map(|id| Config {
            listen: addrs[usize::try_from(id - 1).unwrap()],
            peers: peers.clone(),
            ..config(&ca, dir.path(), id)
        })
        .collect();
    let mut running: Vec<Option<_>> = configs.iter().map(|config| Some(start(config))).collect();
    let mut user = User::new(&ca, addrs.clone(), SECRET).await;
    user.mkdir("before").await.unwrap();

    let leader = async |user: &User| {
        let MasterResponse::Status(status) = user.ask(&MasterRequest::Status).await.unwrap() else {
            panic!()
        };
        assert_eq!(status.masters.len(), 3);
        status.masters.iter().find(|master| master.role == "leader").unwrap().id
    };
    let first = leader(&user).await;
    let at = usize::try_from(first - 1).unwrap();
    let (stop, task) = running[at].take().unwrap();
    stop.trigger();
    task.await.unwrap().unwrap();

    // The repeat of a change that was made under the old leader gets its first answer.
    let again = user.change_number(1, mkdir("before")).await.unwrap();
    assert!(matches!(&again, Changed::Namespace(NamespaceReply::Attr { created: true, .. })));
    // So does who asks what became of it; what was not made never is.
    assert_eq!(user.change_number(1, Change::Abandon).await, Ok(again));
    assert_eq!(user.change_number(900, Change::Abandon).await, Ok(Changed::Abandoned));
    assert_eq!(user.change_number(900, mkdir("late")).await, Ok(Changed::Abandoned));
    user.mkdir("after").await.unwrap();
    assert_ne!(leader(&user).await, first);
    let role = async |wanted: &str| {
        let MasterResponse::Status(status) = user.ask(&MasterRequest::Status).await.unwrap() else {
            panic!()
        };
        let found = status.masters.iter().find(|master| master.id == first).unwrap();
        if found.role == wanted { Ok(()) } else { Err(format!("{:?}", status.masters)) }
    };
    eventually(async || role("silent").await).await;

    // The old leader comes back and catches up.
    running[at] = Some(start(&configs[at]));
    eventually(async || {
        let MasterResponse::Status(status) = user.ask(&MasterRequest::Status).await.unwrap() else {
            panic!()
        };
        let mut indexes: Vec<u64> = status.masters.iter().map(|it| it.log_index).collect();
        indexes.dedup();
        let silent = status.masters.iter().any(|it| it.role == "silent");
        if indexes.len() == 1 && !silent { Ok(()) } else { Err(format!("{:?}", status.masters)) }
    })
    .await;
    for (stop, task) in running.into_iter().flatten() {
        stop.trigger();
        task.await.unwrap().unwrap();
    }
}
