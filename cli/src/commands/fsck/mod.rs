//! `atoll fsck`: is everything there that anything refers to, and who is affected where it is not.

mod copies;
mod walk;

use std::time::{Duration, Instant};

use atoll_client::Cluster;
use atoll_proto::master::{AuditView, MasterRequest, MasterResponse, UpkeepOp};
use atoll_proto::{ChunkId, limits};
use clap::Args;
use serde::Serialize;

use super::collection::upkeep;
use super::published::millis;
use super::{scrub, status};
use crate::cluster_path::unexpected;
use crate::connect::Context;
use crate::output::Output;
use crate::report::{Exit, Failure};
use crate::{progress::Progress, text};
use copies::Copies;
use walk::{Totals, Walk};

/// Places with chunks of few copies that a person is shown: a server that is being filled again
/// makes very many.
const FEW_SHOWN: u64 = 1000;
/// How often it is asked how a repair goes.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Check that every chunk that files and deploys need is known and has its copies, and name the paths
/// that are affected where one has not
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll fsck
  atoll fsck --repair
  atoll fsck --json

It goes by what the chunkservers know of what they have, and changes nothing unless told to --repair:
then they verify all their bytes and fetch again what is bad or was given up, all references are
counted again, and it checks once more. A chunk that nobody has in good order any more comes back when
its bytes are uploaded again: atoll deploy --reupload, or atoll upload --reupload.
Exit code 0 only if everything is well.")]
pub(crate) struct FsckArgs {
    /// Have what can be mended mended
    #[arg(long)]
    repair: bool,
    /// With --repair: wait at most this long for everything to be verified and for copies to be fetched
    #[arg(long, value_name = "SECS", default_value_t = 3600)]
    timeout: u64,
}

/// What is wrong with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
enum Problem {
    /// Nobody has it in good order.
    Lost,
    /// Who may have it does not answer.
    Unreachable,
    /// It can be read, but has fewer copies than it should.
    UnderReplicated,
    /// The object table does not know it, or not that anything needs it: it could be dropped.
    Missing,
    /// It was taken down: that is as it should be.
    Erased,
}

impl Problem {
    fn words(self) -> &'static str {
        match self {
            Problem::Lost => "lost: no copy is in good order",
            Problem::Unreachable => "unreachable: who may have it does not answer",
            Problem::UnderReplicated => "under-replicated: it has fewer copies than it should",
            Problem::Missing => "missing: the master does not know that it is needed",
            Problem::Erased => "erased: it was taken down",
        }
    }
}

/// How much longer than copies a recount of references is waited for.
const COUNT_LONGER: Duration = Duration::from_secs(3600);

/// A chunk that is not well, and something that needs it.
#[derive(Debug)]
struct Finding {
    problem: Problem,
    chunk: ChunkId,
    place: String,
}

#[derive(Serialize)]
struct FindingEvent<'a> {
    event: &'static str,
    problem: Problem,
    chunk: String,
    path: &'a str,
}

/// Where findings go.
struct Tell<'a> {
    out: &'a Output,
    /// Places told that need a chunk with few copies.
    few: u64,
}

impl<'a> Tell<'a> {
    fn new(out: &'a Output) -> Self {
        Self { out, few: 0 }
    }

    fn finding(&mut self, finding: &Finding) -> Result<(), Failure> {
        let Finding { problem, chunk, place } = finding;
        if self.out.json() {
            let (event, problem, path) = ("finding", *problem, place.as_str());
            let chunk = chunk.to_string();
            return self.out.object(&FindingEvent { event, problem, chunk, path });
        }
        if *problem == Problem::UnderReplicated {
            self.few += 1;
            if self.few == FEW_SHOWN {
                self.out.note("there are more with few copies; --json lists all of them");
            }
            if self.few >= FEW_SHOWN {
                return Ok(());
            }
        }
        self.out.line(format_args!("{place}: chunk {} is {}", chunk.short(), problem.words()))
    }
}

/// The final object.
#[derive(Serialize)]
struct DoneObject {
    event: &'static str,
    clean: bool,
    reasons: Vec<String>,
    files: u64,
    deploys: u64,
    references: u64,
    lost: u64,
    unreachable: u64,
    under_replicated: u64,
    missing: u64,
    /// Taken down: no damage.
    erased: u64,
    dead_letters: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    recount: Option<RecountObject>,
    elapsed_ms: u64,
}

#[derive(Serialize)]
struct RecountObject {
    objects: u64,
    raised: u64,
    created: u64,
    lowered: u64,
    failure: Option<String>,
}

impl From<AuditView> for RecountObject {
    fn from(view: AuditView) -> Self {
        let AuditView { objects, raised, created, lowered, failure, .. } = view;
        Self { objects, raised, created, lowered, failure }
    }
}

/// Does it.
pub(crate) async fn run(context: &Context, args: FsckArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let cluster = context.cluster().await?;
    let (mut totals, mut copies) = check(context, &cluster).await?;
    let (mut recount, mut unverified) = (None, Vec::new());
    if args.repair {
        context.out.note(
            "repairing: verifying everything, fetching copies again, counting all references again",
        );
        let timeout = Duration::from_secs(args.timeout);
        let repaired = repair(context, &cluster, timeout).await?;
        recount = Some(RecountObject::from(repaired.recount));
        unverified = repaired.unverified;
        context.out.note("checking once more");
        (totals, copies) = check(context, &cluster).await?;
    }
    let reasons = reasons(&totals, &copies, recount.as_ref(), &unverified);
    let clean = reasons.is_empty();
    let done = DoneObject {
        event: "done",
        clean,
        reasons,
        files: totals.files,
        deploys: totals.deploys,
        references: totals.references,
        lost: totals.lost,
        unreachable: totals.unreachable,
        under_replicated: totals.under_replicated,
        missing: totals.missing,
        erased: totals.erased,
        dead_letters: copies.dead_letters,
        recount,
        elapsed_ms: millis(started.elapsed()),
    };
    if context.out.json() {
        context.out.object(&done)?;
    } else {
        say(context, &done)?;
    }
    if clean { Ok(()) } else { Err(Failure::Said(Exit::Failed)) }
}

async fn check(context: &Context, cluster: &Cluster) -> Result<(Totals, Copies), Failure> {
    let progress = Progress::new(&context.out);
    progress.say("checking".to_owned());
    let view = cluster.refresh_view().await?;
    let copies = Copies::ask(cluster, &view).await?;
    let erased = cluster.erased().await?;
    let walk = Walk::new(cluster, &view, &copies, &erased, Tell::new(&context.out));
    let totals = walk.run().await;
    progress.clear();
    Ok((totals?, copies))
}

/// What a repair came to.
struct Repaired {
    recount: AuditView,
    /// Chunkservers that are up and had not verified everything in time.
    unverified: Vec<String>,
}

/// Has everything mended that can be.
async fn repair(
    context: &Context,
    cluster: &Cluster,
    timeout: Duration,
) -> Result<Repaired, Failure> {
    let progress = Progress::new(&context.out);
    let mut before = audit(cluster, false).await?.ended;
    audit(cluster, true).await?;
    // Whoever had given up a chunk tries again, and what is bad unnoticed is found.
    let scrub = upkeep(cluster, UpkeepOp::Scrub).await?;
    let now = Instant::now();
    // So long that it overflows is as long as it takes.
    let (until, counted_until) =
        (now.checked_add(timeout), now.checked_add(timeout.saturating_add(COUNT_LONGER)));
    let over = |until: Option<Instant>| until.is_some_and(|until| Instant::now() >= until);
    loop {
        let mut recount = audit(cluster, false).await?;
        // Another master leads: it has not counted, and does not know that it should.
        if !recount.running && recount.ended < before.max(1) {
            before = recount.ended;
            audit(cluster, true).await?;
            recount.running = true;
        }
        let counted = !recount.running && recount.ended > before;
        let uncounted = !counted && over(counted_until);
        if uncounted {
            recount.failure = Some("they were not counted in time; run it again".to_owned());
        }
        let status = status::ask(cluster).await?;
        let unverified: Vec<String> =
            scrub::behind(&status, scrub).map(|server| server.name.clone()).collect();
        // What is bad counts as lacking only once it was found: before, nothing is settled.
        let to_fetch = if unverified.is_empty() {
            let view = cluster.refresh_view().await?;
            Some(Copies::of(cluster, &view, &status).await.to_fetch(&view))
        } else {
            None
        };
        let settled = to_fetch == Some(0) || over(until);
        if uncounted || (counted && settled) {
            progress.clear();
            return Ok(Repaired { recount, unverified });
        }
        progress.say(waiting(unverified.len(), to_fetch.unwrap_or(0), counted));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What a repair waits for.
fn waiting(unverified: usize, to_fetch: usize, counted: bool) -> String {
    let mut parts = Vec::new();
    if unverified > 0 {
        parts.push(format!("{} to verify", text::count(unverified as u64, "chunkserver")));
    }
    if to_fetch > 0 {
        parts.push(format!("{} to fetch", text::count(to_fetch as u64, "chunk")));
    }
    if !counted {
        parts.push("counting references".to_owned());
    }
    format!("repairing: {}", parts.join(", "))
}

async fn audit(cluster: &Cluster, start: bool) -> Result<AuditView, Failure> {
    match cluster.master(&MasterRequest::Audit { start }, limits::METADATA_DEADLINE).await? {
        MasterResponse::Audit(view) => Ok(*view),
        _ => Err(unexpected("audit")),
    }
}

/// Why not everything is well; nothing when it is.
fn reasons(
    totals: &Totals,
    copies: &Copies,
    recount: Option<&RecountObject>,
    unverified: &[String],
) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut count = |number: u64, what: &str| {
        if number > 0 {
            reasons.push(format!("{} {what}", text::count(number, "chunk")));
        }
    };
    count(totals.lost, "lost");
    count(totals.unreachable, "that cannot be read now");
    count(totals.under_replicated, "with fewer copies than they should have");
    count(totals.missing, "not known to the master as needed");
    let idle = (copies.lacking() as u64)
        .saturating_sub(totals.lost + totals.unreachable + totals.under_replicated);
    count(idle, "that no file or deploy refers to with fewer copies than they should have");
    reasons.extend(copies.reasons.iter().cloned());
    if copies.cut {
        reasons.push("some server lacks more than was looked at".to_owned());
    }
    if !unverified.is_empty() {
        reasons.push(format!(
            "not everything was verified in time by {} (they go on: run it again, with a longer \
             --timeout)",
            unverified.join(", ")
        ));
    }
    if let Some(failure) = recount.and_then(|recount| recount.failure.as_ref()) {
        reasons.push(format!("references are not counted: {failure}"));
    }
    reasons
}

fn say(context: &Context, done: &DoneObject) -> Result<(), Failure> {
    if let Some(recount) = &done.recount {
        context.out.line(format_args!(
            "counted the references of {}: {} raised, {} added, {} lowered",
            text::count(recount.objects, "chunk"),
            recount.raised,
            recount.created,
            recount.lowered
        ))?;
    }
    let erased = match done.erased {
        0 => String::new(),
        some => format!(" ({} taken down)", text::count(some, "chunk")),
    };
    let looked = format!(
        "{}, {}, {}{erased}",
        text::count(done.files, "file"),
        text::count(done.deploys, "deploy"),
        text::count(done.references, "reference"),
    );
    if done.clean {
        return context.out.line(format_args!("clean: {looked}"));
    }
    context.out.line(format_args!("not clean: {}; looked at {looked}", done.reasons.join("; ")))?;
    if done.lost > 0 {
        context.out.note(
            "a lost chunk comes back when its bytes are uploaded again: `atoll deploy DIR --site \
             SITE --reupload` or `atoll upload --reupload SRC DST` from where they came from; or \
             roll back to another deploy, or remove what needs it",
        );
    } else if done.recount.is_none() {
        context.out.note("`atoll fsck --repair` mends what can be mended");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::field_reassign_with_default, reason = "the other fields are private")]
    use super::*;

    #[test]
    fn every_kind_of_trouble_is_a_reason() {
        let well = Totals { files: 3, deploys: 1, references: 9, ..Totals::default() };
        assert!(reasons(&well, &Copies::default(), None, &[]).is_empty());
        let check = |spoil: fn(&mut Totals), word: &str| {
            let mut totals = well;
            spoil(&mut totals);
            let said = reasons(&totals, &Copies::default(), None, &[]).join("; ");
            assert!(said.contains(word), "{said}");
        };
        check(|t| t.lost = 1, "1 chunk lost");
        check(|t| t.unreachable = 2, "2 chunks that cannot be read");
        check(|t| t.under_replicated = 2, "fewer copies");
        check(|t| t.missing = 1, "not known to the master as needed");
        let mut silent = Copies::default();
        silent.reasons.push("c1 is down".into());
        assert_eq!(reasons(&well, &silent, None, &[]), ["c1 is down"]);
        let mut cut = Copies::default();
        cut.cut = true;
        assert_eq!(reasons(&well, &cut, None, &[]).len(), 1);
        let failed = RecountObject::from(AuditView {
            failure: Some("a page".into()),
            ..AuditView::default()
        });
        assert!(reasons(&well, &Copies::default(), Some(&failed), &[])[0].contains("a page"));
        let late = ["c1".to_owned(), "c2".to_owned()];
        let said = reasons(&well, &Copies::default(), None, &late);
        assert!(said.len() == 1 && said[0].contains("in time by c1, c2"), "{said:?}");
    }

    #[test]
    fn a_repair_says_all_it_waits_for() {
        assert_eq!(waiting(2, 0, true), "repairing: 2 chunkservers to verify");
        assert_eq!(waiting(0, 1, false), "repairing: 1 chunk to fetch, counting references");
    }
}
