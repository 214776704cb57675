//! What knowing the host costs a request: `cargo run --release -p atoll-edge --example
//! resolve_bench [SITES]`.
//!
//! One thread, everything in memory. In turn, round by round: looking a host up in the table of
//! sites; all that a request does about its host and the lease; the head of a whole answer, twice:
//! for `HEAD` of a file, and for a path that does not exist. Medians of the rounds.

use std::collections::HashMap;
use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use atoll_edge::cache::Cache;
use atoll_edge::fetch::{Chunks, Fetched, FillError, Source, Upstream};
use atoll_edge::http::respond::Responder;
use atoll_edge::http::{Protocol, Request};
use atoll_edge::index::table::Table;
use atoll_edge::index::{Index, host, snapshot};
use atoll_proto::content::Extent;
use atoll_proto::manifest::Entry;
use atoll_proto::publish::{Alias, PublishSnapshot, Site};
use atoll_proto::{AliasName, ByteName, ChunkId, ClusterId, Content, DeployId, Seq};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, header};

const ROUNDS: usize = 9;
/// Requests of one round.
const REQUESTS: u32 = 20_000;
/// Any host's alias and site are parsed out of it, but for a site's own domain.
const HOSTS: [&str; 3] = ["site-7.localhost", "www.site-7.example", "preview--site-7.localhost"];

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The pages of one deploy.
struct Pages(HashMap<ChunkId, Bytes>);

impl Upstream for Pages {
    fn fetch(&self, id: ChunkId) -> BoxFuture<'_, Result<Fetched, FillError>> {
        let found = self.0.get(&id).cloned();
        Box::pin(async move {
            let bytes = found.ok_or(FillError::Busy)?;
            Ok(Fetched { bytes, source: Source::Origin })
        })
    }
}

fn main() -> Outcome<()> {
    let sites = std::env::args().nth(1).map_or(Ok(1000), |sites| sites.parse())?;
    let (deploy, pages) = deploy()?;
    let dir = std::env::temp_dir().join(format!("atoll-resolve-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let table = Table::of_snapshot(ClusterId([1; 16]), published(sites, deploy)?);
    snapshot::store(&dir, &table)?;
    let chunks = Arc::new(Chunks::new(Arc::new(Cache::in_memory(64 << 20)), Arc::new(pages)));
    let suffixes = vec!["localhost".to_owned()];
    let cluster = ClusterId([1; 16]);
    let index = Arc::new(Index::open(
        cluster,
        chunks.clone(),
        suffixes.clone(),
        Some(dir.clone()),
        16 << 20,
    ));
    std::fs::remove_dir_all(&dir)?;
    // A lease that does not end.
    index.renewed(u64::MAX / 2);
    let responder = Responder::new(index.clone(), chunks, "edge-1");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;

    let mut out = std::io::stdout();
    writeln!(out, "{sites} sites, {ROUNDS} rounds of {REQUESTS} requests, one thread")?;
    writeln!(out, "| host | look-up, ns | host and lease of a request, ns | HEAD, ns | 404, ns |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    for name in HOSTS {
        let (mut looked, mut asked, mut head, mut missing) = (vec![], vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            looked
                .push(time(|| drop(black_box(host::resolve(black_box(name), &suffixes, &table)))));
            asked.push(time(|| {
                let admission = index.admit(black_box(name), 1).expect("the lease does not end");
                black_box(admission.resolved.found());
                black_box(admission.resolved.is_preview());
                black_box(index.may_send(&admission, name, 1));
            }));
            for (method, target, times) in
                [(Method::HEAD, "/a/page", &mut head), (Method::GET, "/a/none.js", &mut missing)]
            {
                let request = request(method, name, target)?;
                times.push(time(|| drop(black_box(runtime.block_on(responder.respond(&request))))));
            }
        }
        let [looked, asked, head, missing] = [looked, asked, head, missing].map(median);
        writeln!(out, "| {name} | {looked} | {asked} | {head} | {missing} |")?;
    }
    Ok(())
}

/// Nanoseconds that one call takes.
fn time(mut call: impl FnMut()) -> u128 {
    let began = Instant::now();
    for _ in 0..REQUESTS {
        call();
    }
    began.elapsed().as_nanos() / u128::from(REQUESTS)
}

fn median(mut all: Vec<u128>) -> u128 {
    all.sort_unstable();
    all[all.len() / 2]
}

fn request(method: Method, host: &str, target: &str) -> Outcome<Request> {
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_str(host)?);
    Ok(Request { method, uri: target.parse()?, headers, protocol: Protocol::H2 })
}

/// A deploy of a thousand pages.
fn deploy() -> Outcome<(DeployId, Pages)> {
    let names = (0..1000).map(|number| format!("b/{number:04}.html"));
    let entries = std::iter::once("a/page.html".to_owned()).chain(names).map(|path| Entry {
        content: Content::from_extents(vec![Extent {
            id: Some(ChunkId::of(path.as_bytes())),
            len: 9,
        }]),
        path: ByteName::from(path.as_bytes()),
        mode: 0o644,
        mtime_ns: 0,
        content_type: "text/html; charset=utf-8".to_owned(),
        header_rule: None,
        variants: Vec::new(),
        base: None,
    });
    let built = atoll_client::build(entries.collect(), None)?;
    let pages = built.pages.into_iter().map(|page| (ChunkId::of(&page.bytes), page.bytes));
    Ok((built.root, Pages(pages.collect())))
}

fn published(sites: usize, deploy: DeployId) -> Outcome<PublishSnapshot> {
    let mut snapshot =
        PublishSnapshot { seq: Seq(1), sites: vec![], aliases: vec![], deploys: vec![] };
    for number in 0..sites {
        let name: atoll_proto::SiteName = format!("site-{number}").parse()?;
        for alias in [AliasName::production(), "preview".parse()?] {
            let (site, earlier, expires_ms) = (name.clone(), Vec::new(), None);
            let (seq, at_ms) = (Seq(1), 0);
            snapshot.aliases.push(Alias { site, alias, deploy, seq, at_ms, earlier, expires_ms });
        }
        let domains = vec![format!("www.site-{number}.example")];
        let settings = Default::default();
        snapshot.sites.push(Site { name, domains, created_ms: 0, settings });
    }
    Ok(snapshot)
}
