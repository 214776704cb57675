//! Edges behind a shield that relays the publish log, and behind one that cheats.

use atoll_proto::edge::{EdgeRequest, EdgeResponse};

use super::*;

/// A shield that answers as it likes.
#[derive(Default)]
struct Cheat {
    asked: AtomicUsize,
}

impl Service for Cheat {
    type Request = EdgeRequest;
    type Response = EdgeResponse;

    fn operation(_: &EdgeRequest) -> &'static str {
        "test"
    }

    async fn call(
        &self,
        _context: Context,
        request: EdgeRequest,
        _body: Bytes,
    ) -> Result<Answer<EdgeResponse>, WireError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match request {
            EdgeRequest::Renew { renewal } => {
                let (key, edge) = (RelayKey([1; 32]), renewal.edge);
                let grant = RelayedGrant::sealed(&key, edge, renewal.number, true, Seq(0));
                Ok(Answer::head(EdgeResponse::Renewed(Some(grant))))
            }
            EdgeRequest::Follow { .. } => {
                Ok(Answer::head(EdgeResponse::Log { entries: Vec::new(), upto: Seq(0) }))
            }
            EdgeRequest::Chunk { .. } => Err(WireError::unavailable("no chunks here")),
            EdgeRequest::ExplainDns { .. } | EdgeRequest::DnsServer => {
                Err(WireError::invalid("no DNS here"))
            }
        }
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_confirms_and_renews_through_a_shield_and_without_it() {
    let cluster = Cluster::start();
    cluster.master.relays.store(true, Ordering::SeqCst);
    cluster.create_site();
    let seq = cluster.publish(&[("index.html", "one")]);
    let shield = Running::start(cluster.config(201, &[EdgeRole::Shield])).await;
    let edge = Running::start(cluster.config(101, &[EdgeRole::Edge])).await;
    for id in [101, 201] {
        cluster.master.until_acked(id, seq).await;
    }
    let metric = async |text: &str| edge.admin("/metrics").await.contains(text);
    until("it follows through the shield", async || {
        metric("atoll_edge_follows_total{through=\"shield\"}").await
    })
    .await;
    let watches = || cluster.master.watches.lock().unwrap()[&NodeId(101)];
    let before = watches();
    for text in ["two", "three"] {
        let seq = cluster.publish(&[("index.html", text)]);
        cluster.master.until_acked(101, seq).await;
        assert!(edge.get("/").await.ends_with(text));
    }
    // An answer that was under way when it changed over may come after.
    assert!(watches() <= before + 1, "it asked the master itself");

    // The master forgets the key, as another leader would not know it.
    cluster.master.keys.lock().unwrap().clear();
    let seq = cluster.publish(&[("index.html", "four")]);
    cluster.master.until_acked(101, seq).await;
    until("it has another key", async || {
        cluster.master.keys.lock().unwrap().contains_key(&NodeId(101))
    })
    .await;

    shield.stop().await;
    let seq = cluster.publish(&[("index.html", "five")]);
    cluster.master.until_acked(101, seq).await;
    assert!(edge.get("/").await.ends_with("five"));
    edge.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shield_that_cheats_grants_nothing_and_holds_nobody_up() {
    let cluster = Cluster::start();
    cluster.master.relays.store(true, Ordering::SeqCst);
    cluster.master.grants_none.store(true, Ordering::SeqCst);
    cluster.create_site();
    let cheat = Arc::new(Cheat::default());
    let identity = cluster.ca.issue(Role::Edge, "edge-201").unwrap();
    let endpoint = Endpoint::bind(loopback(), &identity).unwrap();
    let info = NodeInfo {
        id: NodeId(201),
        name: "edge-201".into(),
        kind: NodeKind::Edge,
        addr: endpoint.local_addr(),
        zone: "z1".into(),
        region: "eu".into(),
        weight: 1,
        edge: Some(EdgeInfo {
            serves: false,
            shield: true,
            dns: false,
            public: vec![],
            http_port: 0,
            https_port: 0,
        }),
    };
    let view = NodeView { info, state: NodeState::Up, ready: true, duty: Duty::Active };
    cluster.master.nodes.lock().unwrap().insert(NodeId(201), view);
    let (stop, shutdown) = pair();
    let serving = serve(endpoint, cheat.clone(), shutdown);

    let edge = Running::start(cluster.config(101, &[EdgeRole::Edge])).await;
    until("it asks the cheat", async || cheat.asked.load(Ordering::SeqCst) >= 2).await;
    let seq = cluster.publish(&[("index.html", "one")]);
    cluster.master.until_acked(101, seq).await;
    until("it asks the cheat again", async || cheat.asked.load(Ordering::SeqCst) >= 3).await;
    // The cheat has said that it holds a lease, and only the cheat.
    assert!(edge.admin("/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(edge.get("/").await.starts_with("HTTP/1.1 503"));
    cluster.master.grants_none.store(false, Ordering::SeqCst);
    until("it is ready", async || edge.admin("/readyz").await.starts_with("HTTP/1.1 200")).await;
    assert!(edge.get("/").await.ends_with("one"));
    edge.stop().await;
    stop.trigger();
    serving.await.unwrap();
    cluster.stop().await;
}
