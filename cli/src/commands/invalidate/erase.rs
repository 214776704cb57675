//! `--erase`: bytes that must be nowhere any more. And `--unerase`, which allows them again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_client::{Cluster, Wait, Waited, wait_applied};
use atoll_edge::index::invalidate::names;
use atoll_proto::cluster::{ClusterView, NodeKind, NodeState};
use atoll_proto::erase::{ErasedBy, Erasure};
use atoll_proto::publish::{Erase, Pattern, Published, SiteOp};
use atoll_proto::{AliasName, ChunkId, Code, Seq, SiteName, limits};
use serde::Serialize;

use super::holders::{Holder, Holders, Meant, Shown, holders, meant};
use crate::commands::published::{Elapsed, millis, url};
use crate::connect::Context;
use crate::progress::Progress;
use crate::report::{Exit, Failure};
use crate::text;

/// How often everything is looked at again because it changed meanwhile.
const TRIES: usize = 5;
/// Places that a person is shown.
const SHOWN: usize = 100;
/// Places in the message of an error.
const FEW: usize = 20;
/// How often it is asked who has confirmed.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// What is asked for.
#[derive(Debug)]
pub(super) struct Asked {
    /// For the sake of which site.
    pub(super) site: SiteName,
    /// The paths there.
    pub(super) patterns: Vec<Pattern>,
    /// Also in places that were not named.
    pub(super) everywhere: bool,
    /// Say what would happen, and stop.
    pub(super) dry_run: bool,
    /// How long everybody is waited for.
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
    /// Why it is not known who else has confirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
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
    let mut shown: Option<Shown> = None;
    let (meant, found, holding, published) = loop {
        let (meant, found) = look(context, &cluster, &asked).await?;
        let holding = who_has(&cluster, &meant).await?;
        if asked.dry_run {
            break (meant, found, holding, None);
        }
        match &shown {
            None => {
                announce(context, &meant, &found);
                shown = Some(Shown::all_of(&found));
            }
            Some(shown) => check_shown(&found, shown)?,
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
            published => break (meant, found, holding, Some(published?)),
        }
    };
    let committed = started.elapsed();
    let seq = published.map_or(Seq(0), |published| published.seq);
    let confirmed = match asked.dry_run {
        true => Confirmed::default(),
        false => confirmations(&cluster, seq, asked.timeout).await,
    };
    let total = started.elapsed();
    let elapsed_ms = Elapsed {
        commit: millis(committed),
        wait: millis(total - committed),
        total: millis(total),
    };
    let told = tell(
        context,
        &asked,
        Told { meant, found, holding, seq, confirmed: &confirmed, elapsed_ms },
    );
    // Whoever does not read the report learns all the same that some have not confirmed.
    confirmed.check(context, asked.timeout)?;
    told
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
    let confirmed = confirmations(&cluster, seq, timeout).await;
    context.out.note(format_args!(
        "{} may be stored again; deploy the files to bring them back",
        text::count(ids.len() as u64, "chunk")
    ));
    confirmed.check(context, timeout)
}

/// Tells a person what loses its bytes, before anything is sent. A program has it in the report.
fn announce(context: &Context, meant: &Meant, found: &Holders) {
    let out = &context.out;
    if out.json() {
        return;
    }
    let chunks = text::count(meant.chunks.len() as u64, "chunk");
    let bytes: u64 = meant.chunks.values().map(|len| u64::from(*len)).sum();
    out.note(format_args!("erasing {chunks}, {}, from:", text::bytes(bytes)));
    for line in places(found) {
        out.note(line);
    }
}

/// What loses bytes, as far as a person reads it.
fn places(found: &Holders) -> Vec<String> {
    let some = found.all.iter().take(SHOWN);
    let mut lines: Vec<String> = some.map(|holder| format!("  {}", holder.shown())).collect();
    if found.count > SHOWN as u64 {
        let more = found.count - SHOWN as u64;
        lines.push(format!("  and {more} more; --dry-run --json lists all of them"));
    }
    lines
}

/// Stops when something else would lose bytes than what was shown.
fn check_shown(found: &Holders, shown: &Shown) -> Result<(), Failure> {
    let new = found.beyond(shown);
    if new.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "nothing is erased, because more has these bytes than was found first:\n  {}\nrun the same \
         command again if these are to lose them too",
        few(&new)
    )))
}

/// The first of some lines.
fn few(lines: &[String]) -> String {
    let more = if lines.len() > FEW { "\n  …" } else { "" };
    format!("{}{more}", lines[..lines.len().min(FEW)].join("\n  "))
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
    let found = holders(cluster, asked, &meant).await?;
    progress.clear();
    let others = &found.others;
    if !others.is_empty() && !everywhere && !asked.dry_run {
        let others: Vec<String> = others.iter().take(FEW + 1).map(Holder::shown).collect();
        return Err(Failure::Failed(format!(
            "nothing is erased, because places that are not named have the same bytes:\n  {}\nname \
             these too, remove the bytes there, or give --everywhere to take them from all; \
             --dry-run lists what has them",
            few(&others)
        )));
    }
    Ok((meant, found))
}

/// The cluster as it was before the erasure.
struct Holding {
    view: Arc<ClusterView>,
    /// How many of the chunks each chunkserver has; `None` for one that cannot be asked.
    servers: Vec<(String, Option<u64>)>,
}

/// Asks every chunkserver.
async fn who_has(cluster: &Cluster, meant: &Meant) -> Result<Holding, Failure> {
    let view = cluster.refresh_view().await?;
    let ids: Vec<ChunkId> = meant.chunks.keys().copied().collect();
    let mut servers = Vec::new();
    for node in view.nodes.iter().filter(|node| node.info.kind == NodeKind::Chunkserver) {
        let held = match node.state {
            NodeState::Up => cluster.count_held(node.info.id, &ids).await.ok(),
            NodeState::Down => None,
        };
        servers.push((node.info.name.clone(), held));
    }
    Ok(Holding { view, servers })
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
             lead to, which is too much at once (at most {} and {}). Name fewer paths, one part of \
             the site after the other",
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
    /// Why it could not be asked any further.
    error: Option<String>,
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

    /// The change is made in any case; who is not known to have confirmed has not.
    fn check(&self, context: &Context, timeout: Duration) -> Result<(), Failure> {
        if let Some(error) = &self.error {
            context.out.note(unknown(error));
        }
        self.verdict(timeout)
    }

    fn verdict(&self, timeout: Duration) -> Result<(), Failure> {
        if self.error.is_some() {
            return Err(Failure::Said(Exit::Unconfirmed));
        }
        let waiting = self.pending();
        if waiting.is_empty() {
            return Ok(());
        }
        Err(Failure::Unconfirmed { waiting, seconds: timeout.as_secs() })
    }
}

fn unknown(error: &str) -> String {
    format!(
        "the change is made, but who has confirmed it cannot be asked any further: {error}. Run the \
         same command again to see it confirmed"
    )
}

/// Waits for everybody, also for those that are down: whatever has the bytes has to confirm. An error
/// ends it, and does not hide what was known by then: the change is made.
async fn confirmations(cluster: &Cluster, seq: Seq, timeout: Duration) -> Confirmed {
    let mut known = Confirmed::default();
    if let Err(failure) = wait_for_all(cluster, seq, timeout, &mut known).await {
        known.error = Some(failure.to_string());
    }
    known
}

async fn wait_for_all(
    cluster: &Cluster,
    seq: Seq,
    timeout: Duration,
    known: &mut Confirmed,
) -> Result<(), Failure> {
    let now = Instant::now();
    let until = now.checked_add(timeout);
    loop {
        let left = until.map_or(timeout, |until| until.saturating_duration_since(Instant::now()));
        known.edges = wait_applied(cluster, seq, Wait::All, left).await?;
        known.servers = cluster.erased_by(seq.0).await?;
        let over = until.is_some_and(|until| Instant::now() >= until);
        if known.pending().is_empty() || over {
            return Ok(());
        }
        tokio::time::sleep(ASK_EVERY.min(left)).await;
    }
}

/// All there is to tell.
struct Told<'a> {
    meant: Meant,
    found: Holders,
    holding: Holding,
    seq: Seq,
    confirmed: &'a Confirmed,
    elapsed_ms: Elapsed,
}

/// Asks nobody any more: what is done has to be told whatever became of the masters.
fn tell(context: &Context, asked: &Asked, told: Told<'_>) -> Result<(), Failure> {
    let Told { meant, found, holding, seq, confirmed, elapsed_ms } = told;
    let Holding { view, servers } = holding;
    let servers = servers.into_iter().map(|(name, chunks)| {
        let confirmed = confirmed.servers.done.contains(&name);
        ServerObject { name, chunks, confirmed }
    });
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
        error: confirmed.error.clone(),
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
    for line in places(found) {
        out.line(line)?;
    }
    for ServerObject { name, chunks, confirmed } in &done.chunkservers {
        let had = match chunks {
            Some(chunks) => format!("had {}", text::count(*chunks, "chunk")),
            None => "could not be asked what it has".to_owned(),
        };
        let now = match (done.dry_run, confirmed) {
            (true, _) => "",
            (false, true) => "; confirmed",
            (false, false) if done.error.is_some() => "; not known to have confirmed",
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_error_after_the_change_is_made_means_not_confirmed() {
        let mut known = Confirmed::default();
        assert!(known.verdict(Duration::ZERO).is_ok());
        known.servers.done = vec!["cs-1".to_owned()];
        known.error = Some("no master answers".to_owned());
        let failure = known.verdict(Duration::ZERO).unwrap_err();
        assert_eq!(failure.exit(), Exit::Unconfirmed);
        known.error = None;
        known.servers.waiting = vec!["cs-2".to_owned()];
        assert_eq!(known.verdict(Duration::ZERO).unwrap_err().exit(), Exit::Unconfirmed);
    }

    #[test]
    fn what_grew_since_it_was_shown_stops() {
        let shown = Shown::all_of(&Holders::default());
        assert!(check_shown(&Holders::default(), &shown).is_ok());
        let mut grown = Holders::default();
        grown.all.push(Holder::File("/new.bin".to_owned()));
        let told = check_shown(&grown, &shown).unwrap_err().to_string();
        assert!(told.contains("nothing is erased") && told.contains("/new.bin"), "{told}");
    }
}
