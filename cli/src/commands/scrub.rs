//! `atoll scrub`: every chunkserver reads and verifies everything it has.

use std::time::{Duration, Instant};

use atoll_client::Cluster;
use atoll_proto::master::{ChunkserverStatus, Status, UpkeepOp};
use clap::Args;
use serde::Serialize;

use super::collection::upkeep;
use super::status;
use crate::connect::Context;
use crate::progress::Progress;
use crate::report::{Exit, Failure};
use crate::text;

/// How often it is asked how far the servers are.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Make every chunkserver verify all chunks it has now, and mend those that are bad from good copies
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll scrub
  atoll scrub --wait
  atoll scrub --wait --timeout 3600 --json

Without this the servers verify everything by themselves, slowly, all the time.")]
pub(crate) struct ScrubArgs {
    /// Return when every chunkserver that is up has verified everything
    #[arg(long)]
    wait: bool,
    /// Wait at most this long, in seconds; without it as long as it takes
    #[arg(long, value_name = "SECS", requires = "wait")]
    timeout: Option<u64>,
}

#[derive(Serialize)]
struct DoneObject {
    event: &'static str,
    scrub: u64,
    complete: bool,
    servers: usize,
    servers_done: usize,
    /// Found since the scrub was asked for.
    corrupt_found: u64,
    elapsed_ms: u64,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: ScrubArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let cluster = context.cluster().await?;
    let before = corrupt(&status::ask(&cluster).await?);
    let scrub = upkeep(&cluster, UpkeepOp::Scrub).await?;
    if !args.wait {
        if context.out.json() {
            return context.out.object(&object(
                &status::ask(&cluster).await?,
                scrub,
                before,
                started,
            ));
        }
        context.out.note("every chunkserver verifies what it has; `atoll status` shows the rest");
        return Ok(());
    }
    let until = args.timeout.and_then(|s| started.checked_add(Duration::from_secs(s)));
    let status = wait(context, &cluster, scrub, until).await?;
    let done = object(&status, scrub, before, started);
    let (complete, found) = (done.complete, done.corrupt_found);
    let waiting: Vec<String> = behind(&status, scrub).map(|server| server.name.clone()).collect();
    if context.out.json() {
        context.out.object(&done)?;
    }
    if !complete && context.out.json() {
        return Err(Failure::Said(Exit::Failed));
    }
    if !complete {
        return Err(Failure::Failed(format!(
            "not every chunkserver has verified everything in time: {}; they go on, ask again \
             later (`atoll status`)",
            waiting.join(", ")
        )));
    }
    if !context.out.json() {
        context.out.note(format_args!(
            "{} verified everything in {}; {} bad",
            text::count(done.servers as u64, "chunkserver"),
            text::duration_ms(done.elapsed_ms),
            text::count(found, "chunk"),
        ));
    }
    Ok(())
}

fn corrupt(status: &Status) -> u64 {
    status.chunkservers.iter().map(|server| server.stat.corrupt_found).sum()
}

/// Servers that are up and have not carried out the scrub.
pub(super) fn behind(status: &Status, scrub: u64) -> impl Iterator<Item = &ChunkserverStatus> {
    status.chunkservers.iter().filter(move |server| server.up && server.stat.scrubbed < scrub)
}

fn object(status: &Status, scrub: u64, before: u64, started: Instant) -> DoneObject {
    let servers = status.chunkservers.iter().filter(|server| server.up).count();
    let waiting = behind(status, scrub).count();
    DoneObject {
        event: "done",
        scrub,
        complete: waiting == 0,
        servers,
        servers_done: servers - waiting,
        corrupt_found: corrupt(status).saturating_sub(before),
        elapsed_ms: super::published::millis(started.elapsed()),
    }
}

async fn wait(
    context: &Context,
    cluster: &Cluster,
    scrub: u64,
    until: Option<Instant>,
) -> Result<Status, Failure> {
    let progress = Progress::new(&context.out);
    loop {
        let status = status::ask(cluster).await?;
        let waiting = behind(&status, scrub).count();
        let late = until.is_some_and(|until| Instant::now() >= until);
        if waiting == 0 || late {
            progress.clear();
            return Ok(status);
        }
        progress.say(format!("verifying: {} to go", text::count(waiting as u64, "chunkserver")));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
