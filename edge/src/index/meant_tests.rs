//! What invalidations mean, and what finding it out costs others.
#![allow(clippy::unwrap_used, reason = "tests")]
use std::time::Duration;

use atoll_proto::publish::{Alias, Earlier, Site};
use atoll_proto::{AliasName, ClusterId, Seq};

use super::*;
use crate::cache::Cache;
use crate::fetch::Chunks;
use crate::fetch::tests::FakeUpstream;
use crate::index::tests::Published;

#[test]
fn what_deploys_share_is_of_the_earlier_ones_too() {
    let entry = |path: &str| Entry {
        path: path.as_bytes().into(),
        mode: 0o644,
        mtime_ns: 0,
        content: Content::from_extents(Vec::new()),
        content_type: String::new(),
        header_rule: None,
        variants: Vec::new(),
        base: None,
    };
    let files = |had| {
        let own = vec![entry("a.js"), entry("a.html")];
        Files { own, earlier: vec![entry("b.js")], had, names: OnceLock::new() }
    };
    let names = |of: &[&str]| of.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stop = AtomicBool::new(false);
    let mut budget = Budget::new(100, &stop);
    let shared = files(true);
    let found = shared.names(&mut budget).unwrap();
    assert_eq!(found.own, names(&["a.js", "a.html"]));
    assert_eq!(found.earlier, names(&["a.js", "b.js"]));
    let picked = shared.picked(&HashSet::new(), &names(&["a.js"]), &mut budget);
    assert_eq!(picked.unwrap(), [entry("a.js")]);
    let alone = files(false);
    assert_eq!(alone.names(&mut budget).unwrap().earlier, names(&["b.js"]));
    stop.store(true, Ordering::Relaxed);
    assert_eq!(shared.picked(&HashSet::new(), &HashSet::new(), &mut budget), Err(TooMuch));
    assert!(files(true).names(&mut budget).is_err());
}

#[test]
fn of_prefixes_those_that_say_the_same_are_one() {
    let prefix = |text: &str| Pattern::Prefix(text.to_owned());
    let patterns = ["/b/", "a", "/ab", "c/d", "/a", "/my%20docs/", "/100%"]
        .map(prefix)
        .into_iter()
        .chain([Pattern::Tag("t".into())]);
    let patterns: Vec<Pattern> = patterns.collect();
    let some = beginnings(&patterns);
    assert_eq!(some, [&b"100%"[..], b"a", b"b/", b"c/d", b"my docs/"]);
    for (path, expected) in [
        ("a", true),
        ("abc", true),
        ("b", false),
        ("b/x", true),
        ("c/e", false),
        ("", false),
        ("my docs/x", true),
    ] {
        assert_eq!(begins(&some, path.as_bytes()), expected, "{path}");
    }
    assert_eq!(beginnings(&[Pattern::All, prefix("/a")]), [&b""[..]]);
}

/// A site with many aliases, whose pages are at hand, and as many paths to look for.
async fn warm(files: &[(&str, &[u8])]) -> (Index, SiteState, Vec<Pattern>) {
    let upstream = Arc::new(FakeUpstream::default());
    let chunks = Arc::new(Chunks::new(Arc::new(Cache::in_memory(8 << 20)), upstream.clone()));
    let index = Index::open(ClusterId([1; 16]), chunks, Vec::new(), None, 8 << 20);
    let deploys = ["one", "two"].map(|text| {
        let own = [("index.html", text.as_bytes())];
        Published::new(&upstream, &[&own[..], files].concat()).deploy
    });
    let site: atoll_proto::SiteName = "blog".parse().unwrap();
    let of = |at: usize| {
        // Each is a scope of its own.
        let earlier = (0..at).map(|_| Earlier { deploy: deploys[1], replaced_ms: 0 });
        let alias: AliasName = format!("a{at}").parse().unwrap();
        let (deploy, earlier) = (deploys[0], earlier.collect());
        let record = Alias {
            site: site.clone(),
            alias: alias.clone(),
            deploy,
            seq: Seq(1),
            at_ms: 0,
            earlier,
            expires_ms: None,
        };
        (alias, record)
    };
    let aliases = (0..limits::EARLIER_DEPLOYS_MAX).map(of).collect();
    let settings = Default::default();
    let site = Site { name: site.clone(), domains: vec![], created_ms: 0, settings };
    let state = SiteState { site, aliases, deploys: Vec::new() };
    for deploy in deploys {
        index.lookup(deploy, b"index.html").await.unwrap();
        index.rules(deploy).await.unwrap();
    }
    let paths = (0..200).map(|at| Pattern::Path(format!("/p{at}/q")));
    (index, state, paths.chain([Pattern::Path("/".to_owned())]).collect())
}

#[tokio::test]
async fn what_is_at_hand_is_looked_through_while_others_get_their_turn() {
    let (index, state, patterns) = warm(&[]).await;
    let (ran, runs) = tokio::sync::oneshot::channel();
    let other = tokio::spawn(async move { ran.send(()) });
    // As when its time is over: whoever waits for it can give up.
    tokio::select! {
        biased;
        _ = meant(&index, &state, &patterns, 0) => panic!("nobody else got a turn"),
        ran = runs => ran.unwrap(),
    }
    other.await.unwrap().unwrap();
    let chunks = meant(&index, &state, &patterns, 0).await.unwrap();
    assert!(chunks.contains(&ChunkId::of(b"one")));
}

#[tokio::test]
async fn lookups_of_an_invalidation_are_paid_for_together_and_a_search_goes_on() {
    let (index, state, patterns) = warm(&[("404.html", b"none")]).await;
    let scope = Scope { deploy: state.aliases.values().next().unwrap().deploy, earlier: vec![] };
    let mut meaning = Meaning {
        index: &index,
        chunks: HashSet::new(),
        chunks_max: 100,
        lists: HashSet::new(),
        steps: 2000,
        looks: 0,
        since: Instant::now(),
    };
    let mut files = None;
    let mut searches = Vec::new();
    for pattern in &patterns {
        let Pattern::Path(path) = pattern else { unreachable!() };
        meaning.by_path(&scope, path, &mut files).await.unwrap();
        searches.push(files.is_some());
    }
    assert_eq!(searches.first(), Some(&false), "the first is looked up");
    assert_eq!(searches.last(), Some(&true), "there are no steps for all");
    assert!(meaning.chunks.contains(&ChunkId::of(b"one")));
    assert!(meaning.chunks.contains(&ChunkId::of(b"none")));
    // More chunks than there is room for are not gathered.
    meaning.chunks_max = 1;
    let found = meaning.by_path(&scope, "/", &mut files).await;
    assert!(matches!(found, Err(Unclear::TooMuch(_))), "{found:?}");
}

#[tokio::test]
async fn a_search_that_nobody_waits_for_ends_and_lets_the_next_begin() {
    let upstream = Arc::new(FakeUpstream::default());
    let chunks = Arc::new(Chunks::new(Arc::new(Cache::in_memory(1 << 20)), upstream));
    let index = Index::open(ClusterId([1; 16]), chunks, Vec::new(), None, 1 << 20);
    let (begun, begins) = tokio::sync::oneshot::channel();
    let endless = |budget: &mut Budget<'_>| {
        begun.send(()).unwrap();
        while budget.spend(0).is_ok() {
            std::thread::yield_now();
        }
        Err::<(), TooMuch>(TooMuch)
    };
    tokio::select! {
        _ = search(&index, endless) => panic!("it was not told to end"),
        told = begins => told.unwrap(),
    }
    let next = search(&index, |budget| budget.spend(1));
    tokio::time::timeout(Duration::from_secs(60), next).await.unwrap().unwrap();
    let all = search(&index, |budget| {
        while budget.left() > 0 {
            budget.spend(1 << 20)?;
        }
        budget.spend(1)
    });
    assert!(matches!(all.await, Err(Unclear::TooMuch(_))));
}
