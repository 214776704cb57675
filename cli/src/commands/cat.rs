//! `atoll cat`: the bytes of files, verified, to standard output.

use atoll_client::Cluster;
use atoll_proto::namespace::FileKind;
use clap::Args;
use futures_util::{StreamExt, TryStreamExt};

use super::ls::PathParser;
use crate::cluster_path::{ClusterPath, open, resolve_following};
use crate::connect::Context;
use crate::report::Failure;

/// Bytes asked for at a time.
const READ_BYTES: usize = 4 << 20;
/// Reads under way at a time.
const READ_AHEAD: usize = 4;

/// Write files of the cluster to standard output
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll cat /notes/todo.txt
  atoll cat /photos/sea.jpg > sea.jpg")]
pub(crate) struct CatArgs {
    /// Absolute paths in the cluster
    #[arg(value_name = "PATH", required = true, value_parser = PathParser)]
    paths: Vec<ClusterPath>,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: CatArgs) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    for path in &args.paths {
        write_out(context, &cluster, path).await?;
    }
    Ok(())
}

async fn write_out(
    context: &Context,
    cluster: &Cluster,
    path: &ClusterPath,
) -> Result<(), Failure> {
    let (path, attr) = resolve_following(cluster, path).await?;
    if attr.kind == FileKind::Directory {
        return Err(Failure::Failed(format!("{path}: is a directory")));
    }
    let (attr, content) = open(cluster, &path, attr.inode).await?;
    let extents = cluster.extents(&content).await.map_err(Failure::at(&path))?;
    let starts = (0..attr.size).step_by(READ_BYTES);
    let mut parts = futures_util::stream::iter(starts)
        .map(|offset| cluster.read_at(&extents, offset, READ_BYTES))
        .buffered(READ_AHEAD);
    while let Some(bytes) = parts.try_next().await.map_err(Failure::at(&path))? {
        context.out.bytes(&bytes)?;
    }
    Ok(())
}
