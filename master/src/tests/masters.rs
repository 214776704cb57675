//! Masters that come and go: data of earlier versions, and who may lead one that decides alone.

use std::net::SocketAddr;

use atoll_net::{ClusterCa, Endpoint, Role};
use atoll_proto::Code;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::masters::{Greeting, Incarnation, Standing};
use bytes::Bytes;

use super::free_ports;
use super::harness::{
    CLUSTER, SECRET, User, call_options, config, eventually, start, start_and_wait,
};
use crate::config::Config;
use crate::raft::Storage;
use crate::store::{Family, Transaction};

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
