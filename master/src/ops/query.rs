//! Questions about the namespace, linearizable.

use atoll_proto::cluster::{NodeKind, NodeState};
use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::namespace::{DirEntry, NamespaceQuery, NamespaceReply};
use atoll_proto::{ByteName, Code, InodeId, WireError, limits};

use super::change::failed;
use super::namespace::{directory, entry, inode, resolve};
use crate::operation::Apply;
use crate::server::Master;
use crate::store::counters::{self, Counter};
use crate::store::inodes::Body;
use crate::store::{Read, StoreError, dentries, inodes, meta, xattrs};

/// Bytes of entries in one reply, about; heads of messages are bounded.
const ENTRIES_BYTES_MAX: usize = 1 << 20;

pub(crate) async fn query(master: &Master, query: NamespaceQuery) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    if matches!(query, NamespaceQuery::StatFs) {
        return statfs(master);
    }
    let state = master.consensus.state();
    let work = move || {
        let view = state.view();
        let index = meta::applied(&view)?.map_or(0, |log_id| log_id.index);
        let reply = answer(&view, query)?;
        Apply::Ok(MasterResponse::Namespace { index, reply })
    };
    atoll_net::task::spawn_blocking("query", work)
        .await
        .map_err(|error| WireError::internal(error.to_string()))?
        .map_err(failed)
}

fn answer(read: &impl Read, query: NamespaceQuery) -> Apply<NamespaceReply> {
    let attr = |id: InodeId| {
        let attr = inode(read, id)?.attr(id);
        Apply::Ok(NamespaceReply::Attr { attr, created: false })
    };
    match query {
        NamespaceQuery::Lookup { parent, name } => {
            let holder = directory(read, parent)?;
            match (name.as_bytes(), &holder.body) {
                (b".", _) => attr(parent),
                (b"..", Body::Directory { parent }) => attr(*parent),
                _ => attr(entry(read, parent, name.as_bytes())?.inode),
            }
        }
        NamespaceQuery::Attr { inode } => attr(inode),
        NamespaceQuery::Resolve { path } => {
            let found = resolve(read, &path).map_err(|failure| name_path(failure, &path))?;
            attr(found)
        }
        NamespaceQuery::Open { inode: id } => {
            let found = inode(read, id)?;
            let attr = found.attr(id);
            match found.body {
                Body::File(content) => Ok(NamespaceReply::File { attr, content }),
                Body::Directory { .. } => {
                    let message = format!("inode {id} is a directory");
                    Err(WireError::new(Code::IsADirectory, message).into())
                }
                Body::Symlink(_) => {
                    let message = format!("inode {id} is a symbolic link: read its target");
                    Err(WireError::invalid(message).into())
                }
                Body::Special(_) => {
                    let message = format!("inode {id} is a pipe, socket or device");
                    Err(WireError::invalid(message).into())
                }
            }
        }
        NamespaceQuery::ReadLink { inode: id } => match inode(read, id)?.body {
            Body::Symlink(target) => Ok(NamespaceReply::Target(target.0.into())),
            _ => {
                let message = format!("inode {id} is not a symbolic link");
                Err(WireError::invalid(message).into())
            }
        },
        NamespaceQuery::ReadDir { inode, after, limit } => {
            read_dir(read, inode, after.as_ref(), limit)
        }
        NamespaceQuery::Xattr { inode: id, name } => {
            inode(read, id)?;
            let value = xattrs::get(read, id, name.as_bytes())?;
            Ok(NamespaceReply::Xattr(value.map(Into::into)))
        }
        NamespaceQuery::Xattrs { inode: id } => {
            inode(read, id)?;
            let names = xattrs::list(read, id)?.into_iter().map(|(name, _)| name);
            Ok(NamespaceReply::Xattrs(names.collect()))
        }
        NamespaceQuery::StatFs => Err(WireError::internal("answered elsewhere").into()),
    }
}

fn name_path(failure: crate::operation::Failure, path: &ByteName) -> crate::operation::Failure {
    use crate::operation::Failure;
    match failure {
        Failure::Refused(error) if error.code == Code::NotFound => {
            Failure::Refused(WireError::not_found(format!("there is no {path:?}")))
        }
        other => other,
    }
}

fn read_dir(
    read: &impl Read,
    id: InodeId,
    after: Option<&ByteName>,
    limit: u32,
) -> Apply<NamespaceReply> {
    let holder = directory(read, id)?;
    let parent = match holder.body {
        Body::Directory { parent } => parent,
        _ => id,
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let limit = limit.clamp(1, limits::READDIR_ENTRIES_MAX);
    let (found, mut end) = dentries::list(read, id, after, limit)?;
    let mut entries = Vec::with_capacity(found.len());
    let mut bytes = 0;
    for (name, dentry) in found {
        bytes += name.as_bytes().len() + 80;
        if bytes > ENTRIES_BYTES_MAX && !entries.is_empty() {
            end = false;
            break;
        }
        let missing = || StoreError::malformed(name.as_bytes(), &"an entry without an inode");
        let attr = inodes::get(read, dentry.inode)?.ok_or_else(missing)?.attr(dentry.inode);
        entries.push(DirEntry { name, attr });
    }
    Ok(NamespaceReply::Entries { entries, parent, end })
}

/// Room in the cluster, each byte counted once: what the chunkservers that are up have, divided
/// by the copies a chunk has.
fn statfs(master: &Master) -> WireResult<MasterResponse> {
    let state = master.consensus.state();
    let inodes = counters::get(&*state, Counter::Inodes).map_err(super::change::store_failed)?;
    let nodes = master.node_views()?;
    let mut servers = 0;
    let (mut total_bytes, mut free_bytes) = (0u64, 0u64);
    let liveness = master.liveness();
    for node in nodes {
        if node.info.kind == NodeKind::Chunkserver && node.state == NodeState::Up {
            let stat = liveness.stat(node.info.id);
            total_bytes = total_bytes.saturating_add(stat.total_bytes);
            free_bytes = free_bytes.saturating_add(stat.free_bytes);
            servers += 1;
        }
    }
    let copies = u64::try_from(limits::REPLICAS.min(servers).max(1)).unwrap_or(1);
    let (total_bytes, free_bytes) = (total_bytes / copies, free_bytes / copies);
    let index = master.consensus.applied().borrow().index;
    let reply = NamespaceReply::StatFs { total_bytes, free_bytes, inodes };
    Ok(MasterResponse::Namespace { index, reply })
}
