//! Erasing, through the service: what is refused, who follows, and which receipts count.

use atoll_proto::Epoch;
use atoll_proto::erase::{Doomed, ErasedPart, Erasure, Named, Parent};
use atoll_proto::master::ObjectKind;
use atoll_proto::publish::Erase;

use super::upkeep::{Small, put_file};
use super::*;

/// A site with one deploy whose only file has this text.
async fn published(small: &mut Small, text: &str) -> SmallSite {
    let site = SmallSite::new(text);
    let chunks = [site.data.clone(), site.leaf.clone(), site.root.clone()];
    let receipts: Vec<Receipt> =
        small.servers[..2].iter().map(|it| it.put(small.user.session, &chunks)).collect();
    assert_eq!(small.user.change(site.admit(receipts)).await, Ok(Changed::Admitted));
    small.user.change(site.publish(None)).await.unwrap();
    site
}

fn erase(site: &SmallSite) -> Change {
    let name = || "blog".parse().unwrap();
    let [data, leaf, root] = [&site.data, &site.leaf, &site.root].map(|it| ChunkId::of(it));
    let page = |id, below| Parent::Page { id, refs: 1, below: vec![below] };
    Change::Site(SiteOp::Erase(Box::new(Erase {
        site: name(),
        chunks: vec![Doomed { id: data, refs: 1 }],
        withheld: vec![],
        parents: vec![
            page(leaf, data),
            page(root, leaf),
            Parent::Deploy { site: name(), deploy: root },
        ],
        named: vec![Named { path: "index.html".into(), chunks: vec![data] }],
    })))
}

fn unerase(site: &SmallSite) -> Change {
    let chunks = vec![ChunkId::of(&site.data)];
    Change::Site(SiteOp::Unerase { site: "blog".parse().unwrap(), chunks, lists: vec![] })
}

async fn seq(small: &mut Small, change: Change) -> u64 {
    match small.user.change(change).await.unwrap() {
        Changed::Site(published) => published.seq.0,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_from_before_do_not_count_after_a_lift() {
    let mut small = Small::start(|_| {}).await;
    let site = published(&mut small, "<h1>secret</h1>").await;
    let data = site.data.clone();
    let old: Vec<Receipt> = small.put(&data);
    let epoch = small.user.view().await.table.epoch;
    seq(&mut small, erase(&site)).await;
    let refused = small.user.change(put_file("/again", &data, old.clone())).await.unwrap_err();
    assert_eq!(refused.code, Code::Erased, "{refused}");
    // Handed out while it was erased, by a server that had not heard of it.
    let meanwhile: Vec<Receipt> = small.put(&data);
    seq(&mut small, unerase(&site)).await;
    let missing = Changed::Missing { ids: vec![ChunkId::of(&data)] };
    for receipts in [old, meanwhile] {
        let told = small.user.change(put_file("/again", &data, receipts.clone())).await;
        assert_eq!(told, Ok(missing.clone()));
        let told = small.user.change(site.admit(receipts)).await;
        assert_eq!(told, Ok(missing.clone()), "pages that are known, and lead to it");
    }
    assert_eq!(small.user.change(site.publish(None)).await, Ok(missing));
    let newer = small.user.view().await.table.epoch;
    assert_eq!(newer, Epoch(epoch.0 + 1));
    let one = std::slice::from_ref(&data);
    let session = small.user.session;
    let new: Vec<Receipt> =
        small.servers[..2].iter().map(|server| server.put_at(newer, session, one)).collect();
    // Known pages, with what is missing below them.
    assert_eq!(small.user.change(site.admit(new)).await, Ok(Changed::Admitted));
    assert!(small.known(&data).await);
    small.user.change(site.publish(None)).await.unwrap();
    small.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_is_followed_and_acknowledged() {
    let mut small = Small::start(|_| {}).await;
    let site = published(&mut small, "<h1>secret</h1>").await;
    let seq = seq(&mut small, erase(&site)).await;
    let follow = |after, node, wait_ms| MasterRequest::Erased { after, node, wait_ms };
    let addr = small.master.addr;
    let told = small.servers[0].ask(addr, &follow(0, None, 0)).await.unwrap();
    let MasterResponse::Erased(ErasedPart { began: 0, erased, upto, more: false, epoch }) = told
    else {
        panic!("{told:?}")
    };
    assert_eq!((erased.len(), upto), (1, seq));
    assert_eq!(epoch, small.user.view().await.table.epoch);
    assert_eq!((erased[0].id, erased[0].what), (ChunkId::of(&site.data), Erasure::Erased));
    let by =
        async |small: &Small| match small.user.ask(&MasterRequest::ErasedBy { index: seq }).await {
            Ok(MasterResponse::ErasedBy(by)) => by,
            other => panic!("{other:?}"),
        };
    assert_eq!(by(&small).await.waiting.len(), 3, "nobody has said that it has carried it out");
    for id in [1, 2] {
        let server = &small.servers[id as usize - 1];
        server.ask(addr, &follow(seq, Some(NodeId(id)), 0)).await.unwrap();
    }
    assert!(small.servers[0].ask(addr, &follow(seq, Some(NodeId(2)), 0)).await.is_err());
    let now = by(&small).await;
    assert_eq!((now.done.len(), now.waiting.len()), (2, 1));
    // A question that waits is answered by the next change.
    let waits = follow(seq, None, 20_000);
    let Small { user, servers, .. } = &mut small;
    let waiting = servers[0].ask(addr, &waits);
    let ((), answer) = tokio::join!(
        async {
            user.change(unerase(&site)).await.unwrap();
        },
        waiting
    );
    let MasterResponse::Erased(part) = answer.unwrap() else { panic!() };
    assert_eq!(part.erased.len(), 1);
    assert_eq!(part.erased[0].what, Erasure::Lifted);
    assert!(part.upto > seq);
    assert_eq!(part.epoch, Epoch(epoch.0 + 1), "what is put from now on is put after the lift");
    small.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_without_references_and_erasures_are_told() {
    let mut small = Small::start(|_| {}).await;
    let site = published(&mut small, "<h1>secret</h1>").await;
    let other = SmallSite::new("never published");
    let chunks = [other.data.clone(), other.leaf.clone(), other.root.clone()];
    let receipts: Vec<Receipt> =
        small.servers[..2].iter().map(|it| it.put(small.user.session, &chunks)).collect();
    assert_eq!(small.user.change(other.admit(receipts)).await, Ok(Changed::Admitted));
    let told = small.user.ask(&MasterRequest::Unreferenced { after: None }).await.unwrap();
    let root = vec![(other.deploy(), ObjectKind::Page)];
    assert_eq!(told, MasterResponse::Unreferenced { pages: root, next: None });
    seq(&mut small, erase(&site)).await;
    let erasures = |after| MasterRequest::Erasures { site: "blog".parse().unwrap(), after };
    let told = small.user.ask(&erasures(None)).await.unwrap();
    let MasterResponse::Erasure(Some(found)) = told else { panic!("{told:?}") };
    assert_eq!(found.1.named[0].path.as_bytes(), b"index.html");
    let told = small.user.ask(&erasures(Some(found.0))).await.unwrap();
    assert_eq!(told, MasterResponse::Erasure(None));
    small.stop().await;
}
