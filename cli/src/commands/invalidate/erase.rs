//! `--erase`: bytes that must be nowhere any more. And `--unerase`, which allows them again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use atoll_client::{Cluster, Wait, Waited, wait_applied};
use atoll_proto::cluster::{NodeKind, NodeState};
use atoll_proto::erase::{Doomed, ErasedBy, Erasure};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::publish::{Pattern, Published, SiteOp};
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
        let (meant, found, refs) = look(context, &cluster, &asked).await?;
        let had = who_has(&cluster, &meant).await?;
        if asked.dry_run {
            break (meant, found, had, None);
        }
        let known = refs.iter().map(|(id, refs)| Doomed { id: *id, refs: Some(*refs) });
        match send(&cluster, &asked.site, known.collect(), &found).await {
            // Something refers to them that nobody was shown.
            Err(failure) if failure.code() == Some(Code::Conflict) && tries < TRIES => tries += 1,
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
    let site = &asked.site;
    let meant = meant(&cluster, site, &asked.patterns).await?;
    let lists = holders(&cluster, site, &meant.chunks).await?.lists;
    let ids = meant.chunks.keys().chain(&lists).copied();
    let is_erased = |id: &ChunkId| erased.get(id).is_some_and(|what| *what != Erasure::Lifted);
    let ids: Vec<ChunkId> = ids.filter(is_erased).collect();
    if ids.is_empty() {
        return Err(Failure::Failed(format!("nothing that site {site} has there is erased")));
    }
    let mut seq = Seq(0);
    for part in ids.chunks(limits::ERASE_CHUNKS_MAX) {
        let op = SiteOp::Unerase { site: site.clone(), chunks: part.to_vec() };
        seq = cluster.site(op).await?.seq;
    }
    let confirmed = confirmations(&cluster, seq, asked.timeout).await?;
    context.out.note(format_args!(
        "{} may be stored again; deploy the files to bring them back",
        text::count(ids.len() as u64, "chunk")
    ));
    confirmed.check(asked.timeout)
}

/// What is to go, who has it, and how many references to each chunk there were before that was
/// looked for.
async fn look(
    context: &Context,
    cluster: &Cluster,
    asked: &Asked,
) -> Result<(Meant, Holders, BTreeMap<ChunkId, u64>), Failure> {
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
    if meant.chunks.len() as u64 > limits::ERASED_MAX {
        progress.clear();
        let (chunks, most) = (meant.chunks.len(), limits::ERASED_MAX);
        return Err(Failure::Failed(format!(
            "these are {chunks} chunks, and a cluster can remember {most} that were erased; to be \
             rid of a whole site, use `atoll site rm`"
        )));
    }
    let refs = references(cluster, &meant).await?;
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
    Ok((meant, found, refs))
}

async fn references(cluster: &Cluster, meant: &Meant) -> Result<BTreeMap<ChunkId, u64>, Failure> {
    let ids: Vec<ChunkId> = meant.chunks.keys().copied().collect();
    let mut refs = BTreeMap::new();
    for part in ids.chunks(limits::PUT_CHUNKS_MAX) {
        let request = MasterRequest::Objects { ids: part.to_vec() };
        match cluster.master(&request, limits::METADATA_DEADLINE).await? {
            MasterResponse::Objects(objects) if objects.len() == part.len() => {
                let count = objects.iter().map(|object| object.map_or(0, |object| object.refs));
                refs.extend(part.iter().copied().zip(count));
            }
            _ => return Err(crate::cluster_path::unexpected("objects")),
        }
    }
    Ok(refs)
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

/// Has it committed, in as many entries as it takes.
async fn send(
    cluster: &Cluster,
    site: &SiteName,
    chunks: Vec<Doomed>,
    found: &Holders,
) -> Result<Published, Failure> {
    let lists: Vec<ChunkId> = found.lists.iter().copied().collect();
    let lists = lists.chunks(limits::ERASE_CHUNKS_MAX).map(|part| (Vec::new(), part.to_vec()));
    let chunks = chunks.chunks(limits::ERASE_CHUNKS_MAX).map(|part| (part.to_vec(), Vec::new()));
    let mut last = None;
    for (chunks, withheld) in lists.chain(chunks) {
        let op = SiteOp::Erase { site: site.clone(), chunks, withheld };
        last = Some(cluster.site(op).await?);
    }
    last.ok_or_else(|| Failure::Failed("there is nothing to erase".to_owned()))
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
        let edges = self.edges.waiting.iter().chain(&self.edges.down);
        edges.chain(&self.servers.waiting).cloned().collect()
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
    let pending = edges.waiting.iter().chain(&edges.down).cloned().collect();
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
        paths: meant.paths.iter().map(|path| text::name(path.as_bytes())).collect(),
        places: found.all.iter().map(place).collect(),
        places_count: found.count,
        chunkservers: servers.collect(),
        edges_confirmed: edges.acked.clone(),
        edges_pending: pending,
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
        out.line(format_args!("edge {name}; pending: it erases them before it serves again"))?;
    }
    Ok(())
}
