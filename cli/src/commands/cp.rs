//! `atoll cp`: copies within the cluster, by reference: no bytes move.

use std::pin::Pin;

use atoll_client::Cluster;
use atoll_proto::ByteName;
use atoll_proto::namespace::{Attr, FileKind, NamespaceOp, NewNode};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt};

use super::ls::PathParser;
use super::mkdir::caller;
use super::mv::{into_directory, sources_and_target, target_of};
use super::upload::{make_link, put_in_place};
use crate::cluster_path::{ClusterPath, open, read_dir, read_link, resolve, resolve_following};
use crate::connect::Context;
use crate::report::Failure;

/// Copies under way at a time, within one directory.
const PARALLEL: usize = 32;

/// Copy within the cluster's file system; the bytes are shared, not copied
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll cp /photos/sea.jpg /cover.jpg
  atoll cp -r /photos /backup/photos-november")]
pub(crate) struct CpArgs {
    /// What to copy, then where to: a new name, or a directory to copy into
    #[arg(value_name = "PATH", required = true, num_args = 2.., value_parser = PathParser)]
    paths: Vec<ClusterPath>,
    /// Copy directories and all they hold
    #[arg(short, long)]
    recursive: bool,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: CpArgs) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    let (sources, target) = sources_and_target(args.paths);
    let into = into_directory(&cluster, &sources, &target).await?;
    for source in sources {
        let target = target_of(&source, &target, into)?;
        let (source, attr) = if args.recursive {
            let attr = resolve(&cluster, &source).await?;
            (source, attr)
        } else {
            resolve_following(&cluster, &source).await?
        };
        if attr.kind == FileKind::Directory {
            if !args.recursive {
                return Err(Failure::Failed(format!("{source}: is a directory; -r copies it")));
            }
            if source.contains(&target) {
                return Err(Failure::Failed(format!("{source}: cannot be copied into itself")));
            }
        }
        copy(&cluster, source, attr, target).await?;
    }
    Ok(())
}

type Copying<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

fn copy(cluster: &Cluster, from: ClusterPath, attr: Attr, to: ClusterPath) -> Copying<'_> {
    Box::pin(async move {
        match attr.kind {
            FileKind::File => copy_file(cluster, &from, &attr, &to).await,
            FileKind::Symlink => {
                let target = read_link(cluster, &from, attr.inode).await?;
                make_link(cluster, &to, ByteName(target)).await
            }
            FileKind::Special(special) => {
                let (mode, umask, exclusive) = (attr.permissions(), 0, true);
                let (node, caller) = (NewNode::Special(special), caller());
                put_in_place(cluster, &to, |parent, name| NamespaceOp::Make {
                    parent,
                    name,
                    node,
                    mode,
                    umask,
                    caller,
                    exclusive,
                })
                .await
            }
            FileKind::Directory => {
                let op = NamespaceOp::MakeDirs {
                    path: to.bytes(),
                    mode: attr.permissions(),
                    caller: caller(),
                };
                cluster.namespace(op).await.map_err(Failure::at(&to))?;
                let entries = read_dir(cluster, &from, attr.inode).await?;
                let copies: Vec<Copying<'_>> = entries
                    .into_iter()
                    .map(|entry| {
                        let name = entry.name.as_bytes();
                        copy(cluster, from.join(name), entry.attr, to.join(name))
                    })
                    .collect();
                futures_util::stream::iter(copies)
                    .buffer_unordered(PARALLEL)
                    .try_collect::<()>()
                    .await
            }
        }
    })
}

async fn copy_file(
    cluster: &Cluster,
    from: &ClusterPath,
    attr: &Attr,
    to: &ClusterPath,
) -> Result<(), Failure> {
    let (attr, content) = open(cluster, from, attr.inode).await?;
    let op = NamespaceOp::PutFile {
        path: to.bytes(),
        mode: attr.permissions(),
        caller: caller(),
        content,
        mtime_ns: None,
        // Every chunk is live: the file that is copied refers to it.
        receipts: Vec::new(),
    };
    cluster.namespace(op).await.map_err(Failure::at(to))?;
    Ok(())
}
