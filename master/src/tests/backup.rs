//! Backup and restore, through the service.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use atoll_proto::backup::{BackupAnswer, BackupAsk, BackupHeader, Checksum};
use atoll_proto::master::UpkeepOp;
use atoll_proto::{Epoch, WireError};

use super::upkeep::{Small, put_file};
use super::*;
use crate::restore::{Restore, inspect, restore};

impl User {
    async fn backup_step(&self, ask: BackupAsk) -> Result<(BackupAnswer, Bytes), WireError> {
        match self.ask_with_body(&MasterRequest::Backup(ask)).await? {
            (MasterResponse::Backup(answer), body) => Ok((answer, body)),
            other => panic!("{other:?}"),
        }
    }

    /// As the client library makes one.
    async fn backup(&self, path: &Path) -> BackupHeader {
        let begun = self.backup_step(BackupAsk::Begin).await.unwrap().0;
        let BackupAnswer::Begun { backup, header } = begun else { panic!() };
        // One at a time.
        let second = MasterRequest::Backup(BackupAsk::Begin);
        let options = call_options(self.token.as_deref());
        let refused = self.endpoint.call::<_, MasterResponse>(
            self.masters[0],
            Role::Master,
            &second,
            vec![],
            options,
        );
        assert!(refused.await.unwrap_err().to_string().contains("another backup"));
        let mut out = header.encode();
        for (file, known) in (0u32..).zip(&header.files) {
            let mut offset = 0;
            while offset < known.len {
                let read = BackupAsk::Read { backup, file, offset };
                let (answer, bytes) = self.backup_step(read).await.unwrap();
                assert_eq!(answer, BackupAnswer::Part);
                offset += bytes.len() as u64;
                out.extend_from_slice(&bytes);
            }
        }
        let beyond = BackupAsk::Read { backup, file: 9999, offset: 0 };
        assert_eq!(self.backup_step(beyond).await.unwrap_err().code, Code::Invalid);
        self.backup_step(BackupAsk::End { backup }).await.unwrap();
        let gone = BackupAsk::Read { backup, file: 0, offset: 0 };
        assert_eq!(self.backup_step(gone).await.unwrap_err().code, Code::NotFound);
        let mut whole = Checksum::default();
        whole.update(&out);
        out.extend_from_slice(&whole.finish());
        std::fs::write(path, &out).unwrap();
        header
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_master_serves_the_old_state_frozen_and_above_the_lost_one() {
    let mut small = Small::start(|config| {
        config.collect_after_ms = 0;
        config.collect_every_ms = 20;
    })
    .await;
    let (old, new) = (Bytes::from_static(b"old bytes"), Bytes::from_static(b"new bytes"));
    small.write("/f", &old).await;
    let site = SiteOp::Create { site: "blog".parse().unwrap(), domains: vec![] };
    small.user.change(Change::Site(site)).await.unwrap();
    let file = small.dir.path().join("backup");
    let header = small.user.backup(&file).await;
    assert_eq!(inspect(&file).unwrap(), header);
    assert_eq!((header.cluster, header.epoch), (CLUSTER, Epoch(1)));

    // More happens, and is lost: another file, a site, a session.
    small.write("/g", &new).await;
    small.write("/f", &new).await;
    let site = SiteOp::Create { site: "shop".parse().unwrap(), domains: vec![] };
    small.user.change(Change::Site(site)).await.unwrap();
    let later = User::new(&small.ca, small.user.masters.clone(), SECRET).await.session;
    let deltas = |after| MasterRequest::Deltas { node: NodeId(1), after, wait_ms: 0 };
    let asked = small.servers[0].ask(small.master.addr, &deltas(0)).await.unwrap();
    let MasterResponse::Deltas { upto: lost, gap: false, .. } = asked else { panic!() };
    let MasterResponse::Heard { term, .. } = small.servers[0].heartbeat(small.master.addr).await
    else {
        panic!()
    };

    // As `atoll restore` has it of a single master, which needs no address to reach itself.
    let voters = BTreeMap::from([(1, ([0, 0, 0, 0], 0).into())]);
    let home = small.dir.path().join("restored");
    let mut small = small
        .restart(|config| {
            let made = "then";
            let request = Restore { file: &file, data: &home, id: 1, voters: &voters, made };
            assert_eq!(restore(&request).unwrap(), header);
            let mode = std::fs::metadata(request.data).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "others can read it");
            let again = restore(&request).unwrap_err().to_string();
            assert!(again.contains("not empty"), "{again}");
            config.data = home.clone();
        })
        .await;

    // The state of the backup, and nothing later.
    let resolve = |path: &str| NamespaceQuery::Resolve { path: path.into() };
    let found = small.user.query(resolve("/f")).await.unwrap();
    let NamespaceReply::Attr { attr, .. } = found else { panic!() };
    let opened = small.user.query(NamespaceQuery::Open { inode: attr.inode }).await.unwrap();
    let NamespaceReply::File { content, .. } = opened else { panic!() };
    assert_eq!(content.id(), ChunkId::of(&old));
    assert_eq!(small.user.query(resolve("/g")).await.unwrap_err().code, Code::NotFound);
    let MasterResponse::Status(status) = small.user.ask(&MasterRequest::Status).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(status.frozen.as_deref(), Some("restored from a backup of then"));
    assert_eq!(status.sites, 1);
    let MasterResponse::Masters(masters) = small.user.ask(&MasterRequest::Masters).await.unwrap()
    else {
        panic!()
    };
    let addrs: Vec<&str> = masters.iter().map(|master| master.addr.as_str()).collect();
    assert_eq!(addrs, [small.master.addr.to_string()], "where others reach it");

    // Whatever others remember of the lost history is below what they are told now.
    let raise = 1u64 << 32;
    let heard = small.servers[0].heartbeat(small.master.addr).await;
    let MasterResponse::Heard { term: now, epoch, known, orders, .. } = heard else { panic!() };
    assert!(now > term + raise - 100, "{now}");
    assert_eq!(epoch, Epoch(header.epoch.0 + raise));
    assert!(known && orders.frozen);
    let asked = small.servers[0].ask(small.master.addr, &deltas(lost)).await.unwrap();
    let MasterResponse::Deltas { deltas: told, upto, gap } = asked else { panic!() };
    assert!(told.is_empty() && gap && upto > header.index + raise);
    assert_eq!(small.user.mkdir("unknown session").await.map(drop), Ok(()), "a session of before");
    let fresh = User::new(&small.ca, small.user.masters.clone(), SECRET).await;
    assert!(fresh.session.0 > later.0 + raise - 100);
    let watch = MasterRequest::Watch { after: status.publish_seq, edge: None, wait_ms: 0 };
    let log = small.user.ask(&watch).await.unwrap();
    assert!(matches!(log, MasterResponse::Log { entries, .. } if entries.is_empty()));
    let watch = MasterRequest::Watch { after: Seq(lost), edge: None, wait_ms: 0 };
    let snapshot = small.user.ask(&watch).await.unwrap();
    assert!(matches!(snapshot, MasterResponse::Snapshot(it) if it.sites.len() == 1));

    // Frozen: what is unused stays, until it is released.
    small.user.number += 100;
    small.write("/f", &new).await;
    assert!(small.known(&old).await);
    small.user.change(Change::Upkeep(UpkeepOp::Release)).await.unwrap();
    eventually(async || match small.known(&old).await {
        true => Err("still known".to_owned()),
        false => Ok(()),
    })
    .await;
    let put = put_file("/h", &old, vec![]);
    let missing = small.user.change(put).await.unwrap();
    assert!(matches!(missing, Changed::Missing { .. }));
    // It restarts like any other master.
    let small = small.restart(|_| {}).await;
    assert!(small.user.query(resolve("/f")).await.is_ok());
    small.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_masters_are_restored_from_one_backup() {
    let mut small = Small::start(|_| {}).await;
    small.write("/f", &Bytes::from_static(b"bytes")).await;
    let file = small.dir.path().join("backup");
    small.user.backup(&file).await;
    let (dir, ca, mut user) = (small.dir, small.ca, small.user);
    for server in small.servers {
        server.stop.trigger();
    }
    small.master.stop().await;

    let addrs = free_ports(3);
    let voters: BTreeMap<u64, SocketAddr> = (1..).zip(addrs.iter().copied()).collect();
    let peers: Vec<Peer> = voters.iter().map(|(id, addr)| Peer { id: *id, addr: *addr }).collect();
    let mut running = Vec::new();
    for (id, addr) in &voters {
        let mut config = config(&ca, &dir.path().join("three"), *id);
        let data = config.data.clone();
        let request = Restore { file: &file, data: &data, id: *id, voters: &voters, made: "then" };
        restore(&request).unwrap();
        (config.listen, config.peers) = (*addr, peers.clone());
        running.push(start(&config));
    }
    user.masters = addrs;
    user.mkdir("after").await.unwrap();
    let found = user.query(NamespaceQuery::Resolve { path: "/f".into() }).await;
    assert!(found.is_ok(), "{found:?}");
    for (stop, task) in running {
        stop.trigger();
        task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_needs_an_administrator() {
    let mut small = Small::start(|_| {}).await;
    let grant =
        Grant { name: "reader".into(), verbs: vec![Verb::Read], site: None, expires_ms: None };
    let hash = ChunkId::of(b"reader's secret");
    small.user.change(Change::TokenCreate { hash, grant }).await.unwrap();
    let mut reader = User::new(&small.ca, small.user.masters.clone(), "reader's secret").await;
    let begin = MasterRequest::Backup(BackupAsk::Begin);
    assert_eq!(reader.ask(&begin).await.unwrap_err().code, Code::Denied);
    let audit = MasterRequest::Audit { start: true };
    assert_eq!(reader.ask(&audit).await.unwrap_err().code, Code::Denied);
    let release = reader.change(Change::Upkeep(UpkeepOp::Release)).await.unwrap_err();
    assert_eq!(release.code, Code::Denied);
    small.stop().await;
}
