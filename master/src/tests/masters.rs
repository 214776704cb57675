//! Masters that come and go: who is taken in, who is refused, what survives a restart on the way.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use atoll_net::{CallError, ClusterCa, Endpoint, Role, ShutdownTrigger};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::masters::{Greeting, Incarnation, MasterView, MastersOp, Standing};
use atoll_proto::{Code, WireError};
use bytes::Bytes;
use tokio::task::JoinHandle;

use super::free_ports;
use super::harness::{
    CLUSTER, SECRET, User, call_options, config, eventually, start, start_and_wait,
};
use crate::config::{Config, Peer};
use crate::raft::Storage;
use crate::raft::state::stored_voters;
use crate::run::RunError;
use crate::store::{Family, Transaction};

/// Masters that know each other, of which the first forms the cluster.
fn configs(ca: &ClusterCa, dir: &Path, count: usize) -> Vec<Config> {
    let addrs = free_ports(count);
    let peers: Vec<Peer> =
        addrs.iter().zip(1..).map(|(addr, id)| Peer { id, addr: *addr }).collect();
    let one = |peer: &Peer| Config {
        listen: peer.addr,
        peers: peers.clone(),
        bootstrap: peer.id == 1,
        ..config(ca, dir, peer.id)
    };
    peers.iter().map(one).collect()
}

/// The same, but it is no founder: it knows the others and waits to be taken in.
fn joins(ca: &ClusterCa, dir: &Path, id: u64, others: &[SocketAddr]) -> Config {
    let listen = free_ports(1)[0];
    let others = others.iter().zip(1..).map(|(addr, id)| Peer { id, addr: *addr });
    let others = others.filter(|peer| peer.id != id).collect();
    Config { listen, peers: others, bootstrap: false, ..config(ca, dir, id) }
}

async fn step(user: &User, op: MastersOp) -> Result<Vec<MasterView>, WireError> {
    match user.ask(&MasterRequest::ChangeMasters(op)).await? {
        MasterResponse::Masters(masters) => Ok(masters),
        other => panic!("{other:?}"),
    }
}

/// A step that may be too early.
async fn eventually_step(user: &User, op: MastersOp) -> Vec<MasterView> {
    eventually(async || step(user, op.clone()).await.map_err(|error| error.to_string())).await
}

fn voters(masters: &[MasterView]) -> Vec<u64> {
    masters.iter().filter(|master| master.voter).map(|master| master.id).collect()
}

/// Starts one that was stopped, and waits until it answers.
async fn start_again(
    ca: &ClusterCa,
    config: &Config,
) -> (ShutdownTrigger, JoinHandle<Result<(), RunError>>) {
    eventually(async || {
        let (stop, mut task) = start(config);
        let answers = eventually(async || greet(ca, config.listen, 9, Incarnation([9; 16])).await);
        tokio::select! {
            ended = &mut task => Err(format!("it ended at once: {ended:?}")),
            _ = answers => Ok((stop, task)),
        }
    })
    .await
}

async fn greet(
    ca: &ClusterCa,
    addr: SocketAddr,
    id: u64,
    incarnation: Incarnation,
) -> Result<Greeting, String> {
    let endpoint = Endpoint::client(&ca.issue(Role::Master, "master-9").unwrap()).unwrap();
    let request = MasterRequest::Greet { id, incarnation };
    let options = call_options(None);
    match endpoint.call(addr, Role::Master, &request, Vec::new(), options).await {
        Ok((MasterResponse::Greeting(greeting), _)) => Ok(greeting),
        Ok((other, _)) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn incarnation(config: &Config) -> Incarnation {
    let text = std::fs::read_to_string(config.data.join("master.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["incarnation"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_lost_its_disk_is_refused_and_another_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let configs = configs(&ca, dir.path(), 3);
    let mut addrs: Vec<SocketAddr> = configs.iter().map(|config| config.listen).collect();
    let mut running: Vec<_> = configs.iter().map(start).collect();
    let user = User::new(&ca, addrs.clone(), SECRET).await;

    // The last one, which formed nothing: only the others can know it.
    let (stop, task) = running.pop().unwrap();
    stop.trigger();
    task.await.unwrap().unwrap();
    std::fs::remove_dir_all(&configs[2].data).unwrap();
    let error = start(&configs[2]).1.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("must not take part again"), "{error}");
    // Nor is it taken in when it is asked for as a new one, here or anywhere else.
    let waits = Config { peers: vec![], bootstrap: false, ..configs[2].clone() };
    let (stop, task) = start(&waits);
    let addr = waits.listen;
    let elsewhere = Config { listen: free_ports(1)[0], ..waits.clone() };
    eventually(async || greet(&ca, addr, 9, Incarnation([9; 16])).await).await;
    let there = step(&user, MastersOp::Add { id: 3, addr }).await.unwrap();
    assert_eq!(voters(&there), [1, 2, 3], "as before");
    let error = step(&user, MastersOp::Add { id: 3, addr: elsewhere.listen }).await.unwrap_err();
    assert_eq!(error.code, Code::Exists, "{error}");
    let error = step(&user, MastersOp::Promote { id: 3, instead_of: None }).await.unwrap_err();
    assert_eq!(error.code, Code::Conflict, "it is not the one that has the vote: {error}");
    stop.trigger();
    task.await.unwrap().unwrap();

    // A new one comes in its place, restarted on the way, and not at its address.
    let four = joins(&ca, dir.path(), 4, &addrs);
    let error = step(&user, MastersOp::Add { id: 4, addr: addrs[2] }).await.unwrap_err();
    assert_eq!(error.code, Code::Exists, "{error}");
    assert!(error.message.contains("another address or port"), "{error}");
    let add = MastersOp::Add { id: 4, addr: four.listen };
    let error = step(&user, add.clone()).await.unwrap_err();
    assert!(error.message.contains("does not answer"), "{error}");
    let (stop, task) = start(&four);
    let added = eventually_step(&user, add.clone()).await;
    assert!(added.iter().any(|master| master.id == 4 && !master.voter), "{added:?}");
    stop.trigger();
    task.await.unwrap().unwrap();
    let instead = MastersOp::Promote { id: 4, instead_of: Some(3) };
    let error = step(&user, instead.clone()).await.unwrap_err();
    assert_eq!(error.code, Code::Conflict, "one that does not run gets no vote: {error}");
    running.push(start_again(&ca, &four).await);
    // Twice is as once.
    eventually_step(&user, add.clone()).await;
    let replaced = eventually_step(&user, instead.clone()).await;
    assert_eq!(voters(&replaced), [1, 2, 4]);
    assert_eq!(replaced.len(), 3, "{replaced:?}");
    assert_eq!(voters(&step(&user, instead).await.unwrap()), [1, 2, 4]);
    assert_eq!(voters(&step(&user, add).await.unwrap()), [1, 2, 4]);

    // The id of the old one is used up, for its own directory and for every other.
    let three = joins(&ca, dir.path(), 3, &addrs);
    let error = start(&three).1.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("must not take part again"), "{error}");
    let alone = Config { peers: vec![], ..three };
    let (stop, task) = start(&alone);
    let again = MastersOp::Add { id: 3, addr: alone.listen };
    eventually(async || greet(&ca, alone.listen, 9, Incarnation([9; 16])).await).await;
    let error = step(&user, again).await.unwrap_err();
    assert!(error.message.contains("never used again"), "{error}");
    stop.trigger();
    task.await.unwrap().unwrap();

    // What could not be finished is not begun.
    let error = step(&user, MastersOp::Remove { id: 7 }).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
    addrs[2] = four.listen;
    assert_eq!(voters(&step(&user, MastersOp::Remove { id: 3 }).await.unwrap()), [1, 2, 4]);
    for (stop, task) in running {
        stop.trigger();
        task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_master_grows_and_restarts_between_every_two_steps() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let one = Config { listen: free_ports(1)[0], ..config(&ca, dir.path(), 1) };
    let two = joins(&ca, dir.path(), 2, &[one.listen]);
    let first = start_and_wait(&one).await;
    let mut user = User::new(&ca, vec![one.listen], SECRET).await;
    user.mkdir("before").await.unwrap();
    let second = start(&two);
    eventually_step(&user, MastersOp::Add { id: 2, addr: two.listen }).await;
    first.stop().await;
    second.0.trigger();
    second.1.await.unwrap().unwrap();
    let first = start_and_wait(&one).await;
    let (stop, task) = start_again(&ca, &two).await;
    let voted = eventually_step(&user, MastersOp::Promote { id: 2, instead_of: None }).await;
    assert_eq!(voters(&voted), [1, 2]);
    stop.trigger();
    task.await.unwrap().unwrap();
    // Alone it decides nothing, and knows that.
    let remove = MasterRequest::ChangeMasters(MastersOp::Remove { id: 1 });
    let options = call_options(user.token.as_deref());
    let called: Result<(MasterResponse, Bytes), _> =
        user.endpoint.call(one.listen, Role::Master, &remove, Vec::new(), options).await;
    match called.unwrap_err() {
        CallError::Refused(error) if error.code == Code::Unavailable => {
            assert!(error.message.contains("are the other masters running?"), "{error}");
        }
        other => panic!("{other}"),
    }
    let second = start_and_wait(&two).await;
    user.masters = vec![one.listen, two.listen];
    user.mkdir("after").await.unwrap();
    let left = eventually_step(&user, MastersOp::Remove { id: 1 }).await;
    assert_eq!(voters(&left), [2]);
    let error = step(&user, MastersOp::Remove { id: 2 }).await.unwrap_err();
    assert!(error.message.contains("the last one"), "{error}");
    // With the old data of the first one nothing comes back.
    first.stop().await;
    let (stop, task) = start_again(&ca, &one).await;
    eventually(async || greet(&ca, one.listen, 9, Incarnation([9; 16])).await).await;
    user.mkdir("later").await.unwrap();
    assert_eq!(user.mkdir("before").await.unwrap_err().code, Code::Exists);
    stop.trigger();
    task.await.unwrap().unwrap();
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_reaches_nobody_gets_no_vote() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let one = Config { listen: free_ports(1)[0], ..config(&ca, dir.path(), 1) };
    let first = start_and_wait(&one).await;
    let user = User::new(&ca, vec![one.listen], SECRET).await;
    // It runs and answers, but asks nobody whether it may take part.
    let two = joins(&ca, dir.path(), 2, &[]);
    let (stop, task) = start(&two);
    let added = eventually_step(&user, MastersOp::Add { id: 2, addr: two.listen }).await;
    assert!(added.iter().any(|master| master.id == 2 && !master.voter), "{added:?}");
    let error = step(&user, MastersOp::Promote { id: 2, instead_of: None }).await.unwrap_err();
    assert_eq!(error.code, Code::Conflict, "{error}");
    assert!(error.message.contains("acknowledged nothing"), "{error}");
    let MasterResponse::Masters(masters) = user.ask(&MasterRequest::Masters).await.unwrap() else {
        panic!("no masters")
    };
    assert_eq!(voters(&masters), [1]);
    stop.trigger();
    task.await.unwrap().unwrap();

    // Told of the other, the same one takes part.
    let peers = vec![Peer { id: 1, addr: one.listen }];
    let (stop, task) = start_again(&ca, &Config { peers, ..two }).await;
    let voted = eventually_step(&user, MastersOp::Promote { id: 2, instead_of: None }).await;
    assert_eq!(voters(&voted), [1, 2]);
    let left = eventually_step(&user, MastersOp::Remove { id: 2 }).await;
    assert_eq!(voters(&left), [1]);
    first.stop().await;
    stop.trigger();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_others_joined_is_not_told_to_restore_itself() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    // Its configuration names nobody.
    let one = Config { listen: free_ports(1)[0], ..config(&ca, dir.path(), 1) };
    let first = start_and_wait(&one).await;
    let user = User::new(&ca, vec![one.listen], SECRET).await;
    let two = joins(&ca, dir.path(), 2, &[one.listen]);
    let (stop, task) = start(&two);
    eventually_step(&user, MastersOp::Add { id: 2, addr: two.listen }).await;
    eventually_step(&user, MastersOp::Promote { id: 2, instead_of: None }).await;
    // As long as it asks nobody, there is something to do.
    let MasterResponse::Status(status) = user.ask(&MasterRequest::Status).await.unwrap() else {
        panic!("no status")
    };
    let told = status.live;
    assert!(told.iter().any(|told| told.contains("`peers`") && told.contains("(2)")), "{told:?}");
    first.stop().await;
    assert_eq!(stored_voters(&one.data), BTreeSet::from([1, 2]));
    std::fs::remove_dir_all(one.data.join("log")).unwrap();
    let error = start(&one).1.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("its log is empty"), "{error}");
    assert!(error.contains("nor restored from a backup"), "{error}");
    stop.trigger();
    task.await.unwrap().unwrap();
    assert!(stored_voters(dir.path()).is_empty(), "there is no state");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_not_registered_and_has_no_log_is_not_said_to_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let one = Config { listen: free_ports(1)[0], ..config(&ca, dir.path(), 1) };
    let first = start_and_wait(&one).await;
    let user = User::new(&ca, vec![one.listen], SECRET).await;
    let two = joins(&ca, dir.path(), 2, &[one.listen]);
    let (stop, task) = start(&two);
    let add = MastersOp::Add { id: 2, addr: two.listen };
    eventually_step(&user, add.clone()).await;
    first.stop().await;
    stop.trigger();
    task.await.unwrap().unwrap();

    // As after an upgrade from a version that registered nobody; and the disk of the other is lost.
    {
        let storage = Storage::open(&one.data).unwrap();
        let state = storage.state();
        let mut tx = Transaction::new(&state);
        tx.delete(Family::Master.key(&[&2u64.to_be_bytes()]));
        tx.commit_synced().unwrap();
    }
    std::fs::remove_dir_all(&two.data).unwrap();
    let first = start_and_wait(&one).await;
    let error = step(&user, add.clone()).await.unwrap_err();
    assert_eq!(error.code, Code::Conflict, "it does not run: {error}");
    let (stop, task) = start_again(&ca, &Config { peers: vec![], ..two }).await;
    let error = step(&user, add).await.unwrap_err();
    assert_eq!(error.code, Code::Conflict, "{error}");
    assert!(error.message.contains("has no log"), "{error}");
    first.stop().await;
    stop.trigger();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_get_their_votes_at_once_both_have_them() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let one = Config { listen: free_ports(1)[0], ..config(&ca, dir.path(), 1) };
    let first = start_and_wait(&one).await;
    let user = User::new(&ca, vec![one.listen], SECRET).await;
    let mut running = Vec::new();
    for id in [2, 3] {
        let new = joins(&ca, dir.path(), id, &[one.listen]);
        running.push(start(&new));
        eventually_step(&user, MastersOp::Add { id, addr: new.listen }).await;
    }
    let promote = |id| eventually_step(&user, MastersOp::Promote { id, instead_of: None });
    tokio::join!(promote(2), promote(3));
    let MasterResponse::Masters(masters) = user.ask(&MasterRequest::Masters).await.unwrap() else {
        panic!("no masters")
    };
    assert_eq!(voters(&masters), [1, 2, 3]);
    first.stop().await;
    for (stop, task) in running {
        stop.trigger();
        task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_before_there_were_incarnations_is_registered() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let one = Config { listen: free_ports(1)[0], ..config(&ca, dir.path(), 1) };
    let first = start_and_wait(&one).await;
    let mut user = User::new(&ca, vec![one.listen], SECRET).await;
    user.mkdir("kept").await.unwrap();
    first.stop().await;

    // As an earlier version leaves it.
    let path = one.data.join("master.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    for field in ["incarnation", "founders", "used"] {
        json.as_object_mut().unwrap().remove(field);
    }
    std::fs::write(&path, json.to_string()).unwrap();
    {
        let storage = Storage::open(&one.data).unwrap();
        let state = storage.state();
        let mut tx = Transaction::new(&state);
        tx.delete(Family::Master.key(&[&1u64.to_be_bytes()]));
        tx.commit_synced().unwrap();
    }

    let first = start_and_wait(&one).await;
    let own = incarnation(&one);
    let standing = async |of: Incarnation| greet(&ca, one.listen, 1, of).await.unwrap().standing;
    eventually(async || match standing(own).await {
        Standing::Admitted => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(standing(Incarnation([7; 16])).await, Standing::Refused);
    let there = step(&user, MastersOp::Add { id: 1, addr: one.listen }).await.unwrap();
    assert_eq!(voters(&there), [1]);
    assert_eq!(user.mkdir("kept").await.unwrap_err().code, Code::Exists);

    // While it decides alone, nobody else can lead it.
    let endpoint = Endpoint::client(&ca.issue(Role::Master, "master-9").unwrap()).unwrap();
    let raft = MasterRequest::Raft { message: Bytes::from_static(b"x") };
    let called =
        endpoint.call(one.listen, Role::Master, &raft, Vec::<Bytes>::new(), call_options(None));
    let called: Result<(MasterResponse, Bytes), _> = called.await;
    let error = called.unwrap_err().to_string();
    assert!(error.contains("decides alone"), "{error}");
    first.stop().await;
    // Its log is lost, but not its name: it was in use.
    std::fs::remove_dir_all(one.data.join("log")).unwrap();
    let error = start(&one).1.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("its log is empty"), "{error}");
}
