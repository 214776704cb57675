//! `atoll collection`: whether chunks that nothing refers to are dropped.

use atoll_client::Cluster;
use atoll_proto::master::{Change, Changed, UpkeepOp};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::status;
use crate::cluster_path::unexpected;
use crate::connect::Context;
use crate::report::Failure;
use crate::text;

/// Stop and resume the dropping of chunks that nothing refers to any more
#[derive(Debug, Subcommand)]
#[command(after_help = "EXAMPLES
  atoll collection freeze --reason 'looking for a lost file'
  atoll collection status
  atoll collection release")]
pub(crate) enum CollectionCommand {
    /// Drop nothing, on the masters and on all chunkservers, until it is released
    #[command(after_help = "EXAMPLES
  atoll collection freeze --reason 'looking for a lost file'")]
    Freeze(FreezeArgs),
    /// Resume after a freeze, a restored backup, or a server that halted because it would have
    /// dropped too much
    #[command(after_help = "EXAMPLES
  atoll collection release")]
    Release,
    /// Show whether anything is held, why, and how much waits to be dropped
    #[command(after_help = "EXAMPLES
  atoll collection status
  atoll collection status --json")]
    Status,
}

/// Why it is frozen.
#[derive(Debug, Args)]
pub(crate) struct FreezeArgs {
    /// Shown by `atoll status` until it is released
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Serialize)]
struct StatusObject {
    frozen: Option<String>,
    halted: Vec<HaltedObject>,
    unreferenced: u64,
    quarantined: u64,
}

#[derive(Serialize)]
struct HaltedObject {
    chunkserver: String,
    reason: String,
}

/// Does it.
pub(crate) async fn run(context: &Context, command: CollectionCommand) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    match command {
        CollectionCommand::Freeze(FreezeArgs { reason }) => {
            upkeep(&cluster, UpkeepOp::Freeze { reason }).await?;
            context.out.note("nothing is dropped until `atoll collection release`");
        }
        CollectionCommand::Release => {
            upkeep(&cluster, UpkeepOp::Release).await?;
            context.out.note("what was frozen or halted goes on");
        }
        CollectionCommand::Status => {}
    }
    show(context, &cluster).await
}

/// An upkeep change; returns the number of the last scrub that was asked for.
pub(crate) async fn upkeep(cluster: &Cluster, op: UpkeepOp) -> Result<u64, Failure> {
    match cluster.change(Change::Upkeep(op)).await?.1 {
        Changed::Upkeep { scrub } => Ok(scrub),
        _ => Err(unexpected("upkeep")),
    }
}

async fn show(context: &Context, cluster: &Cluster) -> Result<(), Failure> {
    let status = status::ask(cluster).await?;
    let halted = status.chunkservers.iter().filter_map(|server| {
        let reason = server.stat.halted.clone()?;
        Some(HaltedObject { chunkserver: server.name.clone(), reason })
    });
    let object = StatusObject {
        halted: halted.collect(),
        frozen: status.frozen,
        unreferenced: status.chunks_unreferenced,
        quarantined: status.chunkservers.iter().map(|server| server.stat.quarantined).sum(),
    };
    if context.out.json() {
        return context.out.object(&object);
    }
    context.out.line(match &object.frozen {
        Some(reason) => format!("frozen: {reason}"),
        None => "not frozen".to_owned(),
    })?;
    for HaltedObject { chunkserver, reason } in &object.halted {
        context.out.line(format_args!("{chunkserver} has halted: {reason}"))?;
    }
    context.out.line(format_args!(
        "{} without references; {} in quarantine on the chunkservers, copies counted",
        text::count(object.unreferenced, "chunk"),
        text::count(object.quarantined, "copy").replace("copys", "copies"),
    ))
}
