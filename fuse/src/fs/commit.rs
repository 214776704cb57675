//! Flush, fsync, close: the changes of a file become its content in the cluster.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_client::{ClientError, Undecided, Unsure, Verdict};
use atoll_net::task;
use atoll_proto::content::Extent;
use atoll_proto::namespace::{Attr, NamespaceOp};
use atoll_proto::receipt::Receipt;
use atoll_proto::{ChunkId, Code, Content};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::attr::{attr_of, is_not_found};
use super::file::{Doubt, File, Opened, Plan};
use super::segments::{Part, PartData, Upload, extents};
use super::snapshot::Snapshot;
use super::{FileSystem, FsError, Handle, Store, drop_file, lock};
use crate::errno;

/// Chunks that one flush sends at a time.
const PARALLEL: usize = 16;
/// How often a commit is tried when chunks turn out to be missing.
const ATTEMPTS: u32 = 4;
/// How long after a failure it is asked again what became of a commit, at first; the question itself
/// waits for the masters.
const RESOLVE_AFTER: Duration = Duration::from_millis(500);
/// The same later on. Until it is known, the numbers of the mount's later changes pile up behind it.
const RESOLVE_AFTER_MAX: Duration = Duration::from_secs(2);

impl<S: Store> FileSystem<S> {
    /// Commits the changes of an open file: what close(2) and fsync(2) wait for.
    ///
    /// # Errors
    /// Why the cluster does not have the changes. They are kept, and the next flush tries again.
    pub async fn flush(self: &Arc<Self>, handle: u64) -> Result<(), FsError> {
        match self.handle(handle)? {
            Handle::File(open) => self.flush_file(&open.file).await,
            Handle::Deployed(_) | Handle::Dir(_) => Ok(()),
        }
    }

    /// Commits the changes of all files. Returns how many could not be committed.
    pub async fn flush_all(self: &Arc<Self>) -> usize {
        let flush = |file: Arc<File>| async move {
            let outcome = self.flush_file(&file).await;
            if let Err(error) = &outcome {
                tracing::error!(%error, inode = %file.inode, "changes are not in the cluster");
            }
            usize::from(outcome.is_err())
        };
        // One that cannot be committed does not keep the others from it.
        let flushes = stream::iter(self.changed_files()).map(flush).buffer_unordered(PARALLEL);
        flushes.fold(0, |failed, one| async move { failed + one }).await
    }

    /// Tries again to commit files that nobody has open any more.
    pub async fn retry_closed(self: &Arc<Self>) {
        let closed = |file: &Arc<File>| file.lock().handles.is_empty();
        stream::iter(self.changed_files().into_iter().filter(closed))
            .for_each_concurrent(PARALLEL, |file| async move { self.settle(&file).await })
            .await;
    }

    fn changed_files(&self) -> Vec<Arc<File>> {
        let files = lock(&self.files);
        files.values().filter(|file| file.lock().is_changed()).cloned().collect()
    }

    /// Commits a file that nobody has open, and forgets it when that is done or hopeless.
    pub(super) async fn settle(self: &Arc<Self>, file: &Arc<File>) {
        let outcome = self.flush_file(file).await;
        let mut files = lock(&self.files);
        let mut state = file.lock();
        match outcome {
            Err(error) if errno::may_pass(&error) => {
                tracing::warn!(%error, inode = %file.inode, "a closed file is not in the cluster");
                return;
            }
            Err(error) if state.handles.is_empty() => {
                tracing::error!(%error, inode = %file.inode, "the changes of a file are lost");
                state.discard();
            }
            // Whoever opened it meanwhile hears of it from a flush of its own.
            Err(_) => return,
            Ok(()) => {}
        }
        if state.handles.is_empty() && (!state.is_changed() || state.is_unlinked()) {
            drop(state);
            drop_file(&mut files, file);
        }
    }

    /// Commits the changes of a file.
    pub(super) async fn flush_file(self: &Arc<Self>, file: &Arc<File>) -> Result<(), FsError> {
        if !file.lock().is_changed() {
            return Ok(());
        }
        let _alone = file.committing.lock().await;
        self.flush_alone(file).await
    }

    /// The same, called with `committing`.
    ///
    /// # Errors
    /// Why the cluster does not have the changes.
    pub(super) async fn flush_alone(self: &Arc<Self>, file: &Arc<File>) -> Result<(), FsError> {
        let outcome = self.flush_changes(file).await;
        if outcome.is_err() {
            file.lock().note_failure();
        }
        outcome
    }

    async fn flush_changes(self: &Arc<Self>, file: &Arc<File>) -> Result<(), FsError> {
        self.resolve_doubt(file).await?;
        let until = Instant::now() + self.options.stall;
        loop {
            let whole = file.appending.lock().await;
            let Some((plan, parts)) = file.lock().plan() else {
                return Ok(());
            };
            drop(whole);
            match self.commit_plan(file, plan, parts).await {
                Err(error) if plan.if_version.is_some() && is_conflict(&error) => {
                    if Instant::now() > until {
                        // Not a conflict: what is to be written is kept, and tried again.
                        let reason = "others change the file all the time".to_owned();
                        return Err(FsError::Stalled { reason });
                    }
                    let next = match plan.appends {
                        true => self.append_again(file).await,
                        false => self.still_last(file).await,
                    };
                    if let Err(error) = next {
                        return self.excuse(file, error);
                    }
                }
                other => return other,
            }
        }
    }

    /// Commits a plan.
    async fn commit_plan(
        self: &Arc<Self>,
        file: &Arc<File>,
        plan: Plan,
        parts: Vec<Part>,
    ) -> Result<(), FsError> {
        let (extents, receipts) = self.upload(file, parts).await?;
        let ids: HashSet<ChunkId> = extents.iter().filter_map(|extent| extent.id).collect();
        match self.commit(file, plan, &extents, receipts).await {
            Ok((attr, content)) => {
                let content = content.id();
                let opened = Opened { content, snapshot: Arc::new(Snapshot::new(extents)) };
                self.committed(file, plan, &attr, opened, &ids);
                Ok(())
            }
            Err(Uncommitted { error, doubt: None }) => self.excuse(file, error),
            Err(Uncommitted { error, doubt: Some((undecided, content)) }) => {
                let opened = Opened { content, snapshot: Arc::new(Snapshot::new(extents)) };
                file.lock().begin_doubt(Doubt { undecided, plan, opened, ids });
                self.resolve_later(file);
                Err(error)
            }
        }
    }

    /// The file has another version than these changes began with, and they come late: whoever made
    /// them closed the file and was told that they failed.
    ///
    /// # Errors
    /// Somebody has written the file since, and was told that it is in the cluster: that stays.
    async fn still_last(&self, file: &File) -> Result<(), FsError> {
        let (attr, now) = self.ask(file.inode, false).await?;
        if file.lock().is_based_on(&attr, &now) {
            return Ok(());
        }
        lock(&self.inodes).cache(file.inode, None);
        self.stale.add(file.inode);
        Err(FsError::Overtaken)
    }

    /// A plan is in the cluster.
    fn committed(
        &self,
        file: &File,
        plan: Plan,
        attr: &Attr,
        opened: Opened,
        ids: &HashSet<ChunkId>,
    ) {
        let mut state = file.lock();
        state.committed(plan, attr, opened, ids);
        // The pages the kernel has went through these changes, unless they moved.
        let settled = state.content().filter(|_| !state.has_stale_pages());
        drop(state);
        let mut inodes = lock(&self.inodes);
        inodes.committed(attr);
        inodes.cache(file.inode, settled);
    }

    /// Finds out what became of a commit whose answer did not come, if there is one.
    ///
    /// # Errors
    /// It is still not known.
    pub(super) async fn end_doubt(&self, file: &File) -> Result<(), FsError> {
        let _alone = file.committing.lock().await;
        self.resolve_doubt(file).await
    }

    /// Finds out what became of a commit whose answer did not come. Called with `committing`.
    ///
    /// # Errors
    /// It is still not known: nothing else may be committed.
    pub(super) async fn resolve_doubt(&self, file: &File) -> Result<(), FsError> {
        let Some(doubt) = file.lock().doubt() else { return Ok(()) };
        let Doubt { undecided, plan, opened, ids } = &*doubt;
        match self.store.settle(undecided).await? {
            Verdict::Made(reply) => {
                let attr = attr_of(reply, "a commit")?;
                self.committed(file, *plan, &attr, opened.clone(), ids);
            }
            Verdict::NotMade => {}
            // Longer ago than a session lasts. What the file is now is all there is to go by.
            Verdict::Unknown => match self.ask(file.inode, true).await {
                Ok((attr, now)) if now.content == opened.content => {
                    self.committed(file, *plan, &attr, opened.clone(), ids);
                }
                Ok(_) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error),
            },
        }
        file.lock().end_doubt();
        Ok(())
    }

    /// Finds it out as soon as the masters answer, so that nothing is in doubt for long.
    fn resolve_later(self: &Arc<Self>, file: &Arc<File>) {
        let (fs, file) = (Arc::downgrade(self), file.clone());
        task::spawn("fuse_resolve", async move {
            let mut pause = RESOLVE_AFTER;
            loop {
                let Some(here) = fs.upgrade() else { return };
                match here.end_doubt(&file).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::debug!(%error, inode = %file.inode, "a commit is still in doubt");
                    }
                }
                drop(here);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RESOLVE_AFTER_MAX);
            }
        });
    }

    /// A commit of a file that has no name any more is no failure.
    fn excuse(&self, file: &File, error: FsError) -> Result<(), FsError> {
        let gone = matches!(&error, FsError::Client(error) if error.code() == Some(Code::NotFound));
        if !gone {
            return Err(error);
        }
        let mut state = file.lock();
        if !state.may_be_unlinked() {
            return Err(FsError::Stale);
        }
        state.mark_unlinked();
        Ok(())
    }

    /// Sends what is unsent of a plan; returns its extents and what covers the new ones.
    async fn upload(
        &self,
        file: &File,
        parts: Vec<Part>,
    ) -> Result<(Vec<Extent>, Vec<Receipt>), FsError> {
        let pending: Vec<Arc<Upload>> = parts
            .iter()
            .filter_map(|part| match &part.data {
                PartData::Pending(upload) => Some(upload.clone()),
                PartData::Hole | PartData::Stored(..) => None,
            })
            .collect();
        stream::iter(pending.into_iter().map(Ok))
            .try_for_each_concurrent(PARALLEL, |upload| async move {
                self.send(file, &upload).await.map(drop)
            })
            .await?;
        let mut receipts = Receipts::default();
        let mut sent_parts = Vec::with_capacity(parts.len());
        // The memory of what is sent is given back here, with the parts.
        for part in parts {
            sent_parts.push(match part.data {
                PartData::Hole => (part.len, None),
                PartData::Stored(id, cover) => {
                    cover.iter().for_each(|cover| receipts.add(cover));
                    (part.len, Some(id))
                }
                PartData::Pending(upload) => {
                    // It is sent, so this only looks.
                    let sent = upload.send(&self.store).await?;
                    receipts.add(&sent.receipts);
                    (part.len, Some(sent.id))
                }
            });
        }
        Ok((extents(sent_parts.into_iter()), receipts.all))
    }

    /// Makes the extents the file's content. Chunks that the cluster has lost sight of are sent
    /// again, as long as they can still be read.
    async fn commit(
        &self,
        file: &File,
        plan: Plan,
        extents: &[Extent],
        mut receipts: Vec<Receipt>,
    ) -> Result<(Attr, Content), Uncommitted> {
        let mut attempt = 1;
        loop {
            match self.commit_once(file, plan, extents, &receipts).await {
                Err(Uncommitted {
                    error: FsError::Client(ClientError::Missing { ids }),
                    doubt: None,
                }) if attempt < ATTEMPTS => {
                    receipts.extend(self.send_again(&ids).await?);
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    async fn commit_once(
        &self,
        file: &File,
        plan: Plan,
        extents: &[Extent],
        receipts: &[Receipt],
    ) -> Result<(Attr, Content), Uncommitted> {
        let content = self.store.seal(extents.to_vec(), receipts).await?;
        // List chunks took the receipts of what they list.
        let listed = matches!(content, Content::Lists { .. });
        let op = NamespaceOp::Write {
            inode: file.inode,
            content: content.clone(),
            mtime_ns: Some(plan.mtime_ns),
            if_version: plan.if_version,
            drop_privileges: plan.drop_privileges,
            receipts: if listed { Vec::new() } else { receipts.to_vec() },
        };
        // Not even the same content may be given once more: others may have written meanwhile.
        let reply = self.store.change_once(op).await.map_err(|Unsure { error, undecided }| {
            let doubt = undecided.map(|undecided| (undecided, content.id()));
            Uncommitted { error: error.into(), doubt }
        })?;
        Ok((attr_of(reply, "a commit")?, content))
    }

    async fn send_again(&self, ids: &[ChunkId]) -> Result<Vec<Receipt>, FsError> {
        let again = |id: ChunkId| async move {
            let bytes = match self.at_hand(id) {
                Some(bytes) => bytes,
                None => self.store.read_chunk(id).await?,
            };
            Ok::<_, FsError>(self.store.put_chunk(bytes).await?.1)
        };
        let receipts: Vec<Vec<Receipt>> =
            stream::iter(ids.iter().copied()).map(again).buffered(PARALLEL).try_collect().await?;
        Ok(receipts.into_iter().flatten().collect())
    }
}

/// A content could not be committed, or so it seems.
struct Uncommitted {
    error: FsError,
    /// When it may have been all the same: the request, and the name of the content.
    doubt: Option<(Undecided, ChunkId)>,
}

impl From<FsError> for Uncommitted {
    fn from(error: FsError) -> Uncommitted {
        Uncommitted { error, doubt: None }
    }
}

impl From<ClientError> for Uncommitted {
    fn from(error: ClientError) -> Uncommitted {
        FsError::from(error).into()
    }
}

fn is_conflict(error: &FsError) -> bool {
    matches!(error, FsError::Client(error) if error.code() == Some(Code::Conflict))
}

/// Receipts, each once: a receipt covers a batch of chunks.
#[derive(Default)]
struct Receipts {
    all: Vec<Receipt>,
    seen: HashSet<[u8; 32]>,
}

impl Receipts {
    fn add(&mut self, receipts: &Arc<[Receipt]>) {
        let new = receipts.iter().filter(|receipt| self.seen.insert(receipt.mac));
        self.all.extend(new.cloned());
    }
}
