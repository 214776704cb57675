//! `--erase`: bytes that must be nowhere any more. And `--unerase`, which allows them again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use atoll_client::{Cluster, Wait, Waited, wait_applied};
use atoll_edge::index::invalidate::names;
use atoll_proto::cluster::{NodeKind, NodeState};
use atoll_proto::erase::{ErasedBy, Erasure};
use atoll_proto::publish::{Erase, Pattern, Published, SiteOp};
use atoll_proto::{AliasName, ChunkId, Code, Seq, SiteName, limits};
use serde::Serialize;

use super::holders::{Holder, Holders, Meant, holders, meant};
use crate::commands::published::{Elapsed, millis, url};
use crate::connect::Context;
use crate::progress::Progress;
use crate::report::Failure;
use crate::text;

/// How often everything is looked at again because it changed meanwhile.
const TRIES: usize = 5;
/// Places that a person is shown.
const SHOWN: usize = 100;
/// How often it is asked who has confirmed.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// What is asked for.
pub(super) struct Asked {
    pub(super) site: SiteName,
    pub(super) patterns: Vec<Pattern>,
    /// Also where something else has the bytes.
    pub(super) everywhere: bool,
    /// Say what would happen, and stop.
    pub(super) dry_run: bool,
    pub(super) timeout: Duration,
}

/// The final object.
#[derive(Serialize)]
struct Done {
    event: &'static str,
    site: SiteName,
    deploy: Option<&'static str>,
    alias: Option<&'static str>,
    url: String,
    seq: u64,
    edges: usize,
    edges_acked: usize,
    edges_down: Vec<String>,
    dry_run: bool,
    chunks: usize,
    bytes: u64,
    paths: Vec<String>,
    places: Vec<PlaceObject>,
    places_count: u64,
    chunkservers: Vec<ServerObject>,
    edges_confirmed: Vec<String>,
    edges_pending: Vec<String>,
    elapsed_ms: Elapsed,
}

/// A file that has lost its bytes.
#[derive(Serialize)]
struct PlaceObject {
    #[serde(skip_serializing_if = "Option::is_none")]
    site: Option<SiteName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deploy: Option<String>,
    path: String,
}

/// What a chunkserver had, and whether it has no more.
#[derive(Serialize)]
struct ServerObject {
    name: String,
    /// `None`: it could not be asked.
    chunks: Option<u64>,
    confirmed: bool,
}

/// Erases.
pub(super) async fn erase(context: &Context, asked: Asked) -> Result<(), Failure> {
    let started = Instant::now();
    let cluster = context.cluster().await?;
    let mut tries = 1;
    let (meant, found, had, published) = loop {
        let (meant, found) = look(context, &cluster, &asked).await?;
        let had = who_has(&cluster, &meant).await?;
        if asked.dry_run {
            break (meant, found, had, None);
        }
        match send(&cluster, &asked.site, &meant, &found).await {
            // Something leads to them that nobody was shown.
            Err(failure) if failure.code() == Some(Code::Conflict) && tries < TRIES => tries += 1,
            Err(failure) if failure.code() == Some(Code::Conflict) => {
                return Err(Failure::Failed(format!(
                    "nothing is erased: {failure}. Looked {TRIES} times; try again when fewer \
                     deploys and writes are under way, and see `atoll fsck` if it stays so"
                )));
            }
            published => break (meant, found, had, Some(published?)),
        }
    };
    let committed = started.elapsed();
    let seq = published.map_or(Seq(0), |published| published.seq);
    let confirmed = match asked.dry_run {
        true => Confirmed::default(),
        false => confirmations(&cluster, seq, asked.timeout).await?,
    };
    let total = started.elapsed();
    let elapsed_ms = Elapsed {
        commit: millis(committed),
        wait: millis(total - committed),
        total: millis(total),
    };
    tell(
        context,
        &cluster,
        &asked,
        Told { meant, found, had, seq, confirmed: &confirmed, elapsed_ms },
    )
    .await?;
    confirmed.check(asked.timeout)
}

/// Allows the bytes again.
pub(super) async fn unerase(context: &Context, asked: Asked) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    let erased = cluster.erased().await?;
    let Asked { site, patterns, timeout, .. } = asked;
    // By what was named then: the deploys that had it may be gone.
    let (mut ids, mut lists) = (BTreeSet::new(), BTreeSet::new());
    for record in cluster.erasures(&site).await? {
        lists.extend(record.lists);
        for named in record.named {
            if patterns.iter().any(|pattern| names(pattern, named.path.as_bytes())) {
                ids.extend(named.chunks);
            }
        }
    }
    ids.retain(|id| erased.get(id) == Some(&Erasure::Erased));
    lists.retain(|id| erased.get(id) == Some(&Erasure::Withheld));
    if ids.is_empty() {
        return Err(Failure::Failed(format!("nothing that was erased for site {site} is there")));
    }
    let (ids, lists): (Vec<ChunkId>, Vec<ChunkId>) =
        (ids.into_iter().collect(), lists.into_iter().collect());
    let mut seq = Seq(0);
    for chunks in ids.chunks(limits::ERASE_CHUNKS_MAX) {
        let (site, chunks) = (site.clone(), chunks.to_vec());
        seq = cluster.site(SiteOp::Unerase { site, chunks, lists: Vec::new() }).await?.seq;
    }
    // Those of which every chunk is allowed again by now. One chunk goes along: it says nothing new.
    for lists in lists.chunks(limits::ERASE_CHUNKS_MAX) {
        let (site, chunks, lists) = (site.clone(), vec![ids[0]], lists.to_vec());
        seq = cluster.site(SiteOp::Unerase { site, chunks, lists }).await?.seq;
    }
    let confirmed = confirmations(&cluster, seq, timeout).await?;
    context.out.note(format_args!(
        "{} may be stored again; deploy the files to bring them back",
        text::count(ids.len() as u64, "chunk")
    ));
    confirmed.check(timeout)
}

/// What is to go, and everything that leads to it.
async fn look(
    context: &Context,
    cluster: &Cluster,
    asked: &Asked,
) -> Result<(Meant, Holders), Failure> {
    let Asked { site, patterns, everywhere, .. } = asked;
    let progress = Progress::new(&context.out);
    progress.say("looking at all deploys".to_owned());
    let meant = meant(cluster, site, patterns).await?;
    if meant.chunks.is_empty() {
        progress.clear();
        return Err(Failure::Failed(format!(
            "no deploy of site {site} has a file with bytes there: nothing is erased"
        )));
    }
    progress.say("looking for who else has these bytes".to_owned());
    let found = holders(cluster, site, &meant.chunks).await?;
    progress.clear();
    let others = &found.others;
    if !others.is_empty() && !everywhere && !asked.dry_run {
        let shown: Vec<String> = others.iter().take(20).map(|holder| holder.shown()).collect();
        let more = if others.len() > shown.len() { "\n  …" } else { "" };
        return Err(Failure::Failed(format!(
            "nothing is erased, because others have the same bytes:\n  {}{more}\nremove them \
             there, or give --everywhere to take them from these too",
            shown.join("\n  ")
        )));
    }
    Ok((meant, found))
}

/// How many of the chunks each chunkserver has; `None` for one that cannot be asked.
async fn who_has(cluster: &Cluster, meant: &Meant) -> Result<Vec<(String, Option<u64>)>, Failure> {
    let view = cluster.refresh_view().await?;
    let ids: Vec<ChunkId> = meant.chunks.keys().copied().collect();
    let mut had = Vec::new();
    for node in view.nodes.iter().filter(|node| node.info.kind == NodeKind::Chunkserver) {
        let held = match node.state {
            NodeState::Up => cluster.count_held(node.info.id, &ids).await.ok(),
            NodeState::Down => None,
        };
        had.push((node.info.name.clone(), held));
    }
    Ok(had)
}

/// Has it committed: all of it in one entry, or nothing.
async fn send(
    cluster: &Cluster,
    site: &SiteName,
    meant: &Meant,
    found: &Holders,
) -> Result<Published, Failure> {
    let erase = Erase {
        site: site.clone(),
        chunks: found.doomed(meant),
        withheld: found.lists.iter().copied().collect(),
        parents: found.parents.clone(),
        named: meant.named(),
    };
    let (chunks, parents) = (erase.chunks.len() + erase.withheld.len(), erase.parents.len());
    if chunks > limits::ERASE_CHUNKS_MAX
        || parents > limits::ERASE_PARENTS_MAX
        || atoll_proto::encode(&erase).len() > limits::ERASE_BYTES_MAX
    {
        return Err(Failure::Failed(format!(
            "nothing is erased: these are {chunks} chunks that {parents} pages, files and deploys \
             lead to, which is too much at once (at most {} and {}). Name fewer paths; to be rid \
             of a whole site, use `atoll site rm`",
            limits::ERASE_CHUNKS_MAX,
            limits::ERASE_PARENTS_MAX
        )));
    }
    Ok(cluster.site(SiteOp::Erase(Box::new(erase))).await?)
}

/// Who has confirmed.
#[derive(Debug, Default)]
struct Confirmed {
    edges: Waited,
    servers: ErasedBy,
}

impl Confirmed {
    /// Everybody who has not.
    fn pending(&self) -> Vec<String> {
        let mut pending = self.edges_pending();
        pending.extend(self.servers.waiting.iter().cloned());
        pending
    }

    /// Edges that may still serve the bytes, or have them in their caches.
    fn edges_pending(&self) -> Vec<String> {
        let Waited { waiting, down, .. } = &self.edges;
        let all = waiting.iter().chain(down).chain(&self.servers.caches_waiting);
        all.cloned().collect::<BTreeSet<String>>().into_iter().collect()
    }

    /// Edges that neither serve nor have them.
    fn edges_confirmed(&self) -> Vec<String> {
        let done = self.edges.acked.iter().filter(|name| self.servers.caches_done.contains(name));
        done.cloned().collect()
    }

    fn check(self, timeout: Duration) -> Result<(), Failure> {
        let waiting = self.pending();
        if waiting.is_empty() {
            return Ok(());
        }
        Err(Failure::Unconfirmed { waiting, seconds: timeout.as_secs() })
    }
}

/// Waits for everybody, also for those that are down: whatever has the bytes has to confirm.
async fn confirmations(
    cluster: &Cluster,
    seq: Seq,
    timeout: Duration,
) -> Result<Confirmed, Failure> {
    let now = Instant::now();
    let until = now.checked_add(timeout);
    loop {
        let left = until.map_or(timeout, |until| until.saturating_duration_since(Instant::now()));
        let edges = wait_applied(cluster, seq, Wait::All, left).await?;
        let servers = cluster.erased_by(seq.0).await?;
        let confirmed = Confirmed { edges, servers };
        let over = until.is_some_and(|until| Instant::now() >= until);
        if confirmed.pending().is_empty() || over {
            return Ok(confirmed);
        }
        tokio::time::sleep(ASK_EVERY.min(left)).await;
    }
}

/// All there is to tell.
struct Told<'a> {
    meant: Meant,
    found: Holders,
    had: Vec<(String, Option<u64>)>,
    seq: Seq,
    confirmed: &'a Confirmed,
    elapsed_ms: Elapsed,
}

async fn tell(
    context: &Context,
    cluster: &Cluster,
    asked: &Asked,
    told: Told<'_>,
) -> Result<(), Failure> {
    let Told { meant, found, had, seq, confirmed, elapsed_ms } = told;
    let servers = had.into_iter().map(|(name, chunks)| {
        let confirmed = confirmed.servers.done.contains(&name);
        ServerObject { name, chunks, confirmed }
    });
    let view = cluster.view().await?;
    let edges = &confirmed.edges;
    let done = Done {
        event: "done",
        site: asked.site.clone(),
        deploy: None,
        alias: None,
        url: url(&view, &asked.site, &AliasName::production()),
        seq: seq.0,
        edges: edges.acked.len() + edges.waiting.len(),
        edges_acked: edges.acked.len(),
        edges_down: edges.down.clone(),
        dry_run: asked.dry_run,
        chunks: meant.chunks.len(),
        bytes: meant.chunks.values().map(|len| u64::from(*len)).sum(),
        paths: meant.paths.keys().map(|path| text::name(path.as_bytes())).collect(),
        places: found.all.iter().map(place).collect(),
        places_count: found.count,
        chunkservers: servers.collect(),
        edges_confirmed: confirmed.edges_confirmed(),
        edges_pending: confirmed.edges_pending(),
        elapsed_ms,
    };
    if context.out.json() {
        return context.out.object(&done);
    }
    say(context, &done, &found)
}

fn place(holder: &Holder) -> PlaceObject {
    match holder {
        Holder::Deploy { site, deploy, path } => PlaceObject {
            site: Some(site.clone()),
            deploy: Some(deploy.to_string()),
            path: text::name(path.as_bytes()),
        },
        Holder::Unpublished { page, path } => PlaceObject {
            site: None,
            deploy: Some(page.to_string()),
            path: text::name(path.as_bytes()),
        },
        Holder::File(path) => PlaceObject { site: None, deploy: None, path: path.clone() },
    }
}

fn say(context: &Context, done: &Done, found: &Holders) -> Result<(), Failure> {
    let out = &context.out;
    let what = if done.dry_run { "would be erased" } else { "erased" };
    let chunks = text::count(done.chunks as u64, "chunk");
    out.line(format_args!("{what}: {chunks}, {}", text::bytes(done.bytes)))?;
    for holder in found.all.iter().take(SHOWN) {
        out.line(format_args!("  {}", holder.shown()))?;
    }
    if found.count > SHOWN as u64 {
        let more = found.count - SHOWN as u64;
        out.line(format_args!("  and {more} more; --json lists all of them"))?;
    }
    for ServerObject { name, chunks, confirmed } in &done.chunkservers {
        let had = match chunks {
            Some(chunks) => format!("had {}", text::count(*chunks, "chunk")),
            None => "could not be asked what it has".to_owned(),
        };
        let now = match (done.dry_run, confirmed) {
            (true, _) => "",
            (false, true) => "; confirmed",
            (false, false) => "; pending: it erases them when it is back",
        };
        out.line(format_args!("chunkserver {name} {had}{now}"))?;
    }
    for name in &done.edges_confirmed {
        out.line(format_args!("edge {name}; confirmed"))?;
    }
    for name in &done.edges_pending {
        out.line(format_args!(
            "edge {name}; pending: it has not said that it erased them. One that is cut off may go \
             on serving sites with the policy \"available\" until it is stopped or reached again"
        ))?;
    }
    Ok(())
}
