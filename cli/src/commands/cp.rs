//! `atoll cp`: copies within the cluster, by reference: no bytes move.

use std::pin::Pin;

use atoll_client::Cluster;
use atoll_proto::ByteName;
use atoll_proto::namespace::{
    Attr, FileKind, NamespaceOp, NamespaceQuery, NamespaceReply, NewNode,
};
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
                let (umask, exclusive) = (0, true);
                let mode = permissions(cluster, &from, &attr).await?;
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
                let mode = permissions(cluster, &from, &attr).await?;
                let op = NamespaceOp::MakeDirs { path: to.bytes(), mode, caller: caller() };
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
        mode: permissions(cluster, from, &attr).await?,
        caller: caller(),
        content,
        mtime_ns: None,
        // Every chunk is live: the file that is copied refers to it.
        receipts: Vec::new(),
    };
    cluster.namespace(op).await.map_err(Failure::at(to))?;
    Ok(())
}

/// The permission bits of a copy, which has no access list.
async fn permissions(cluster: &Cluster, of: &ClusterPath, attr: &Attr) -> Result<u32, Failure> {
    if !attr.has_xattrs() {
        return Ok(attr.permissions());
    }
    let name = "system.posix_acl_access".into();
    let query = NamespaceQuery::Xattr { inode: attr.inode, name };
    match cluster.query(query).await.map_err(Failure::at(of))? {
        NamespaceReply::Xattr(Some(list)) => Ok(without_list(attr.permissions(), &list)),
        _ => Ok(attr.permissions()),
    }
}

/// Beside an access list the bits of the group are the mask of all that the list names (acl(5)). Without
/// it they are the group's own, which may do less. A list is in the kernel's layout: four bytes, then
/// entries of eight, each with its kind and its bits in two bytes.
fn without_list(mode: u32, list: &[u8]) -> u32 {
    const GROUP: [u8; 2] = [4, 0];
    let mut entries = list.get(4..).unwrap_or_default().chunks_exact(8);
    let group = entries.find(|entry| entry[..2] == GROUP).map_or(0, |entry| u32::from(entry[2]));
    mode & (!0o070 | (group & 7) << 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_lets_the_group_do_no_more_than_the_list_did() {
        let entry = |kind: u8, bits: u8| [kind, 0, bits, 0, 255, 255, 255, 255];
        let list = |group| [entry(1, 6), entry(2, 6), entry(4, group), entry(16, 6), entry(32, 0)];
        for (group, mode) in [(0, 0o2600), (4, 0o2640), (7, 0o2660)] {
            let list = [&[2, 0, 0, 0], &list(group).concat()[..]].concat();
            assert_eq!(without_list(0o2660, &list), mode);
        }
        assert_eq!(without_list(0o664, b""), 0o604, "what cannot be read allows nothing");
    }
}
