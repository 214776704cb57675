//! The recount of references, through the service: counts are spoiled in the database of a stopped
//! master, as a mistake in the program would have spoiled them.

use atoll_proto::master::{AuditView, ObjectKind, ObjectView};

use super::upkeep::{Small, unlink};
use super::*;
use crate::operation::Now;
use crate::raft::Storage;
use crate::store::rocks::Rocks;
use crate::store::{Transaction, meta, objects};

/// Changes the state of a stopped master.
fn spoil(config: &Config, change: impl FnOnce(&mut Transaction<'_>, Now)) {
    let storage = Storage::open(&config.data).unwrap();
    let state = storage.state();
    let state: &Rocks = &state;
    let mut tx = Transaction::new(state);
    let index = meta::applied(state).unwrap().unwrap().index;
    change(&mut tx, Now { index, at_ns: meta::clock_ns(state).unwrap() });
    tx.commit().unwrap();
}

async fn recount(small: &Small) -> AuditView {
    let before = view(small, false).await.ended;
    view(small, true).await;
    eventually(async || {
        let view = view(small, false).await;
        match !view.running && view.ended > before {
            true => Ok(view),
            false => Err(format!("{view:?}")),
        }
    })
    .await
}

async fn view(small: &Small, start: bool) -> AuditView {
    match small.user.ask(&MasterRequest::Audit { start }).await.unwrap() {
        MasterResponse::Audit(view) => *view,
        other => panic!("{other:?}"),
    }
}

async fn refs(small: &Small, bytes: &Bytes) -> Option<u64> {
    let request = MasterRequest::Objects { ids: vec![ChunkId::of(bytes)] };
    match small.user.ask(&request).await.unwrap() {
        MasterResponse::Objects(found) => found[0].map(|view: ObjectView| view.refs),
        other => panic!("{other:?}"),
    }
}

/// A deploy, and two files that share a chunk.
async fn filled() -> (Small, SmallSite, [Bytes; 2]) {
    let mut small = Small::start(|_| {}).await;
    let texts = [Bytes::from_static(b"shared"), Bytes::from_static(b"alone")];
    small.write("/a", &texts[0]).await;
    small.write("/b", &texts[0]).await;
    small.write("/c", &texts[1]).await;
    let site = SmallSite::new("<h1>hello</h1>");
    let chunks = [site.data.clone(), site.leaf.clone(), site.root.clone()];
    let receipts: Vec<Receipt> =
        small.servers[..2].iter().map(|it| it.put(small.user.session, &chunks)).collect();
    assert_eq!(small.user.change(site.admit(receipts)).await, Ok(Changed::Admitted));
    small.user.change(site.publish(None)).await.unwrap();
    (small, site, texts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recount_finds_right_what_is_right() {
    let (small, ..) = filled().await;
    let view = recount(&small).await;
    let right = AuditView { passes: 1, objects: 5, pages: 2, ended: 1, ..AuditView::default() };
    assert_eq!(view, right);
    assert!(!small.config.data.join(crate::audit::DIRECTORY).exists());
    small.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_raised_at_once_and_lowered_when_two_passes_agree() {
    let (small, site, texts) = filled().await;
    let ids = [ChunkId::of(&texts[0]), ChunkId::of(&texts[1])];
    let (data, leaf) = (ChunkId::of(&site.data), ChunkId::of(&site.leaf));
    let small = small
        .restart(|config| {
            spoil(config, |tx, now| {
                objects::drop_ref(tx, now, &ids[0]).unwrap();
                objects::add_ref(tx, now, &ids[1], 5, ObjectKind::Data).unwrap();
                objects::add_ref(tx, now, &leaf, 5, ObjectKind::Data).unwrap();
                objects::collect(tx, now, &data).unwrap();
            });
        })
        .await;
    assert_eq!(refs(&small, &texts[0]).await, Some(1));
    assert_eq!(refs(&small, &site.data).await, None);
    let view = recount(&small).await;
    assert_eq!((view.raised, view.created, view.lowered), (1, 1, 2), "{view:?}");
    assert_eq!(view.failure, None);
    for (bytes, expected) in [(&texts[0], 2), (&texts[1], 1), (&site.leaf, 1), (&site.data, 1)] {
        assert_eq!(refs(&small, bytes).await, Some(expected));
    }
    let again = recount(&small).await;
    assert_eq!((again.passes, again.raised, again.lowered), (1, 0, 0));
    small.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_vanished_from_the_table_are_admitted_again() {
    let (small, site, _) = filled().await;
    let all = [&site.root, &site.leaf, &site.data].map(|bytes| ChunkId::of(bytes));
    let small = small
        .restart(|config| {
            spoil(config, |tx, now| {
                all.iter().for_each(|id| objects::collect(tx, now, id).unwrap());
            });
        })
        .await;
    let view = recount(&small).await;
    assert_eq!(view.failure, None, "{view:?}");
    for bytes in [&site.root, &site.leaf, &site.data] {
        assert_eq!(refs(&small, bytes).await, Some(1));
    }
    let request = MasterRequest::Objects { ids: all.to_vec() };
    let MasterResponse::Objects(found) = small.user.ask(&request).await.unwrap() else { panic!() };
    let kinds: Vec<ObjectKind> = found.iter().map(|view| view.unwrap().kind).collect();
    assert_eq!(kinds, [ObjectKind::Page, ObjectKind::Page, ObjectKind::Data]);
    assert_eq!(found[0].unwrap().len as usize, site.root.len());
    small.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lowered_while_a_page_cannot_be_read() {
    let (small, site, texts) = filled().await;
    let alone = ChunkId::of(&texts[1]);
    let shared = ChunkId::of(&texts[0]);
    let small = small
        .restart(|config| {
            spoil(config, |tx, now| {
                objects::add_ref(tx, now, &alone, 5, ObjectKind::Data).unwrap();
                objects::drop_ref(tx, now, &shared).unwrap();
            });
        })
        .await;
    for server in &small.servers {
        server.server.chunks.lock().unwrap().remove(&ChunkId::of(&site.leaf));
    }
    let view = recount(&small).await;
    assert_eq!((view.raised, view.lowered, view.pages_unreadable), (1, 0, 1));
    assert!(view.failure.unwrap().contains("cannot be read"));
    assert_eq!(refs(&small, &texts[1]).await, Some(2));
    assert_eq!(refs(&small, &site.data).await, Some(1), "a page that is not read takes nothing");
    small.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_miscount_stops_collection_until_a_recount() {
    let (small, _, texts) = filled().await;
    let alone = ChunkId::of(&texts[1]);
    let mut small = small
        .restart(|config| {
            config.collect_after_ms = 0;
            config.collect_every_ms = 20;
            spoil(config, |tx, now| objects::drop_ref(tx, now, &alone).unwrap());
        })
        .await;
    // Only what nothing refers to, wrongly, may be gone by now: it is referred to, and put back.
    let view = recount(&small).await;
    assert_eq!(view.failure, None, "{view:?}");
    assert_eq!(refs(&small, &texts[1]).await, Some(1));

    let mut small = {
        small.user.number += 100;
        small
            .restart(|config| {
                config.collect_after_ms = 24 * 3600 * 1000;
                spoil(config, |tx, now| objects::drop_ref(tx, now, &alone).unwrap());
            })
            .await
    };
    small.user.change(unlink("c")).await.unwrap();
    let MasterResponse::Status(status) = small.user.ask(&MasterRequest::Status).await.unwrap()
    else {
        panic!()
    };
    assert!(status.frozen.unwrap().contains("never been counted"));
    let view = recount(&small).await;
    assert_eq!(view.failure, None, "{view:?}");
    let MasterResponse::Status(status) = small.user.ask(&MasterRequest::Status).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(status.frozen, None);
    small.stop().await;
}
