//! `atoll rm`: files and directories of the cluster's file system.

use std::pin::Pin;

use atoll_client::Cluster;
use atoll_proto::namespace::{FileKind, NamespaceOp};
use atoll_proto::{ByteName, Code, InodeId};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt};

use super::ls::PathParser;
use crate::cluster_path::{ClusterPath, read_dir, resolve, resolve_maybe};
use crate::connect::Context;
use crate::report::Failure;

/// Removals under way at a time, within one directory.
const PARALLEL: usize = 32;

/// Remove files of the cluster's file system
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll rm /notes/todo.txt
  atoll rm -r /photos/2019
  atoll rm -f /may/not/exist")]
pub(crate) struct RmArgs {
    /// Absolute paths in the cluster
    #[arg(value_name = "PATH", required = true, value_parser = PathParser)]
    paths: Vec<ClusterPath>,
    /// Remove directories and all they hold
    #[arg(short, long)]
    recursive: bool,
    /// What is not there is no error
    #[arg(short, long)]
    force: bool,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: RmArgs) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    for path in &args.paths {
        let Some(name) = path.name() else {
            return Err(Failure::Failed("/: the root directory cannot be removed".to_owned()));
        };
        let Some(attr) = resolve_maybe(&cluster, path).await? else {
            if args.force {
                continue;
            }
            return Err(Failure::Failed(format!("{path}: there is no such file or directory")));
        };
        let parent = resolve(&cluster, &path.parent()).await?.inode;
        let name = ByteName(name.to_vec());
        if attr.kind != FileKind::Directory {
            unlink(&cluster, path, parent, name).await?;
        } else if args.recursive {
            remove_tree(&cluster, path.clone(), parent, name, attr.inode).await?;
        } else {
            return Err(Failure::Failed(format!("{path}: is a directory; -r removes it")));
        }
    }
    Ok(())
}

type Removing<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// Removes a directory after all it holds.
fn remove_tree(
    cluster: &Cluster,
    path: ClusterPath,
    parent: InodeId,
    name: ByteName,
    inode: InodeId,
) -> Removing<'_> {
    Box::pin(async move {
        let (directories, files): (Vec<_>, Vec<_>) = read_dir(cluster, &path, inode)
            .await?
            .into_iter()
            .partition(|entry| entry.attr.kind == FileKind::Directory);
        futures_util::stream::iter(files)
            .map(|entry| unlink(cluster, &path, inode, entry.name))
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        for entry in directories {
            let below = path.join(entry.name.as_bytes());
            remove_tree(cluster, below, inode, entry.name, entry.attr.inode).await?;
        }
        gone(cluster.namespace(NamespaceOp::Rmdir { parent, name }).await, &path)
    })
}

async fn unlink(
    cluster: &Cluster,
    path: &ClusterPath,
    parent: InodeId,
    name: ByteName,
) -> Result<(), Failure> {
    gone(cluster.namespace(NamespaceOp::Unlink { parent, name }).await, path)
}

/// Somebody else may have removed it meanwhile: then it is gone all the same.
fn gone<T>(
    result: Result<T, atoll_client::ClientError>,
    path: &ClusterPath,
) -> Result<(), Failure> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some(Code::NotFound) => Ok(()),
        Err(error) => Err(Failure::at(path)(error)),
    }
}
