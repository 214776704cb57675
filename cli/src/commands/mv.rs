//! `atoll mv`: names in the cluster's file system.

use atoll_client::Cluster;
use atoll_proto::ByteName;
use atoll_proto::namespace::{NamespaceOp, RenameMode};
use clap::Args;

use super::ls::PathParser;
use crate::cluster_path::{ClusterPath, is_directory, resolve, resolve_following};
use crate::connect::Context;
use crate::report::Failure;

/// Move or rename within the cluster's file system
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll mv /draft.txt /final.txt
  atoll mv /a.jpg /b.jpg /photos/
  atoll mv --no-clobber /new /maybe-there")]
pub(crate) struct MvArgs {
    /// What to move, then where to: a new name, or a directory to move into
    #[arg(value_name = "PATH", required = true, num_args = 2.., value_parser = PathParser)]
    paths: Vec<ClusterPath>,
    /// Fail rather than replace an existing file
    #[arg(short, long)]
    no_clobber: bool,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: MvArgs) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    let mode = if args.no_clobber { RenameMode::NoReplace } else { RenameMode::Replace };
    let (sources, target) = sources_and_target(args.paths);
    let into = into_directory(&cluster, &sources, &target).await?;
    for source in sources {
        let target = target_of(&source, &target, into)?;
        if source.contains(&target) && source != target {
            return Err(Failure::Failed(format!("{source}: cannot be moved into itself")));
        }
        rename(&cluster, &source, &target, mode).await?;
    }
    Ok(())
}

/// The last path is the target; clap made sure that there are two.
pub(crate) fn sources_and_target(mut paths: Vec<ClusterPath>) -> (Vec<ClusterPath>, ClusterPath) {
    let target = paths.pop().expect("clap asks for two paths or more");
    (paths, target)
}

/// Whether the sources go into the target, as cp(1) and mv(1) decide it.
pub(crate) async fn into_directory(
    cluster: &Cluster,
    sources: &[ClusterPath],
    target: &ClusterPath,
) -> Result<bool, Failure> {
    let directory = is_directory(cluster, target).await?;
    if !directory && sources.len() > 1 {
        return Err(Failure::Failed(format!("{target}: is not a directory")));
    }
    Ok(directory)
}

/// Where one source goes.
pub(crate) fn target_of(
    source: &ClusterPath,
    target: &ClusterPath,
    into: bool,
) -> Result<ClusterPath, Failure> {
    let Some(name) = source.name() else {
        return Err(Failure::Failed("/: the root directory has no other name".to_owned()));
    };
    Ok(if into { target.join(name) } else { target.clone() })
}

async fn rename(
    cluster: &Cluster,
    source: &ClusterPath,
    target: &ClusterPath,
    mode: RenameMode,
) -> Result<(), Failure> {
    let (Some(name), Some(new_name)) = (source.name(), target.name()) else {
        return Err(Failure::Failed(format!("{target}: cannot be replaced")));
    };
    // Also refuses `mv file/ x`.
    resolve(cluster, source).await?;
    let parent = resolve_following(cluster, &source.parent()).await?.1.inode;
    let new_parent = resolve_following(cluster, &target.parent()).await?.1.inode;
    let op = NamespaceOp::Rename {
        parent,
        name: ByteName(name.to_vec()),
        new_parent,
        new_name: ByteName(new_name.to_vec()),
        mode,
    };
    cluster.namespace(op).await.map_err(Failure::at(format_args!("{source} to {target}")))?;
    Ok(())
}
