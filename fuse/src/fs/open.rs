//! Opening and closing files.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use atoll_net::task;
use atoll_proto::InodeId;
use atoll_proto::namespace::{Attr, FileKind, NamespaceQuery, NamespaceReply};

use super::file::{File, Opened};
use super::snapshot::Snapshot;
use super::{FileSystem, FsError, Handle, OpenFile, Store, drop_file, lock, sites};

/// How a file is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenHow {
    /// For writing (also).
    pub write: bool,
    /// Empty it.
    pub truncate: bool,
    /// By somebody who could not give the file the privileges it has.
    pub outsider: bool,
}

/// An open file and what the kernel may assume of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedFile {
    /// The handle.
    pub handle: u64,
    /// The kernel's cached pages of the file are good.
    pub keep_cache: bool,
    /// The kernel must not use cached pages: other handles see another content.
    pub direct: bool,
    /// The attributes the kernel has are old.
    pub attr_changed: bool,
}

/// How often an open asks when commits of this mount overtake the answers.
const QUESTIONS_MAX: u32 = 16;

impl<S: Store> FileSystem<S> {
    /// Opens a file.
    ///
    /// # Errors
    /// When it is not a file, is gone, or the master cannot be asked.
    pub async fn open(
        self: &Arc<Self>,
        inode: InodeId,
        how: OpenHow,
    ) -> Result<OpenedFile, FsError> {
        if sites::is_virtual(inode) {
            return self.open_deployed(inode, how).await;
        }
        let number = self.new_handle_number();
        let file = self.acquire(inode, how, number).await?;
        let opened = self.opened(&file, number, how);
        self.keep(number, file, how.write);
        Ok(opened)
    }

    /// Finds or makes the state of a file and counts a handle on it.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        inode: InodeId,
        how: OpenHow,
        number: u64,
    ) -> Result<Arc<File>, FsError> {
        if let Some(file) = self.share(inode, number, how) {
            return Ok(file);
        }
        let mut questions = 0;
        let (attr, opened, mut files) = loop {
            if questions == QUESTIONS_MAX {
                let reason = "the file is written and closed here all the time".to_owned();
                return Err(FsError::Stalled { reason });
            }
            questions += 1;
            let known = lock(&self.inodes).last_commit(inode);
            let (attr, opened) = self.ask(inode, how.truncate).await?;
            let files = lock(&self.files);
            // Another handle may have committed and closed the file while this waited for the answer: a
            // content from before must not be taken for the newest. What was known before the question
            // and is not true any more is another story: the masters' state was restored.
            let last = lock(&self.inodes).last_commit(inode);
            if files.contains_key(&inode) || last <= attr.version || last == known {
                break (attr, opened, files);
            }
        };
        let fresh = || Arc::new(File::new(attr.clone(), opened.clone(), self.chunk_bytes()));
        let file = files.entry(inode).or_insert_with(fresh).clone();
        let mut state = file.lock();
        // A writer sees the newest content and changes it for everybody.
        let pin = !how.write && !how.truncate;
        state.adopt(&attr, opened, pin);
        if !pin {
            state.unpin_all();
        }
        if how.truncate {
            state.clear(how.outsider);
        }
        state.handles.insert(number);
        drop(state);
        drop(files);
        Ok(file)
    }

    /// A file whose changes or whose being unlinked make this mount's word count.
    fn share(&self, inode: InodeId, number: u64, how: OpenHow) -> Option<Arc<File>> {
        let files = lock(&self.files);
        let file = files.get(&inode)?.clone();
        let mut state = file.lock();
        if !state.is_ours() {
            return None;
        }
        if how.truncate {
            state.clear(how.outsider);
        }
        state.handles.insert(number);
        drop(state);
        Some(file)
    }

    /// Asks the master for a file's attributes and content.
    pub(super) async fn ask(
        &self,
        inode: InodeId,
        truncate: bool,
    ) -> Result<(Attr, Opened), FsError> {
        match self.store.query(NamespaceQuery::Open { inode }).await? {
            NamespaceReply::File { attr, content } => {
                if attr.kind == FileKind::Directory {
                    return Err(FsError::IsADirectory);
                }
                // Whoever empties the file does not need its list chunks.
                let extents =
                    if truncate { Vec::new() } else { self.store.extents(&content).await? };
                let snapshot = Arc::new(Snapshot::new(extents));
                if !truncate && snapshot.size() != attr.size {
                    return Err(FsError::Unexpected("an open, with a size unlike its content,"));
                }
                Ok((attr, Opened { content: content.id(), snapshot }))
            }
            _ => Err(FsError::Unexpected("an open")),
        }
    }

    /// What the kernel may assume of a file that was just opened.
    pub(super) fn opened(&self, file: &File, handle: u64, how: OpenHow) -> OpenedFile {
        let (attr, content, direct, stale) = {
            let mut state = file.lock();
            let stale = state.has_stale_pages();
            state.pages_dropped();
            (state.attr(), state.content(), state.has_pins(), stale)
        };
        let ours = content.is_none();
        let mut inodes = lock(&self.inodes);
        let cached = inodes.cache(file.inode, if direct { None } else { content });
        let attr_changed = inodes.tell(&attr);
        OpenedFile {
            handle,
            // Pages of a file with changes here went through these changes.
            keep_cache: !direct && !stale && !how.truncate && (ours || cached == content),
            direct,
            attr_changed,
        }
    }

    /// Makes a handle usable.
    pub(super) fn keep(&self, number: u64, file: Arc<File>, writable: bool) {
        let open = OpenFile { file, writable, read_end: AtomicU64::new(0) };
        lock(&self.handles).insert(number, Handle::File(Arc::new(open)));
    }

    /// The last descriptor of a handle is closed. Errors were returned by the flush before.
    pub fn release(self: &Arc<Self>, handle: u64) {
        let Some(was) = lock(&self.handles).remove(&handle) else {
            return;
        };
        if let Handle::File(open) = was {
            self.let_go(&open.file, handle);
        }
    }

    /// Counts a handle less; drops the state when nobody needs it.
    pub(super) fn let_go(self: &Arc<Self>, file: &Arc<File>, handle: u64) {
        let mut files = lock(&self.files);
        let mut state = file.lock();
        state.unpin(handle);
        state.handles.remove(&handle);
        if !state.handles.is_empty() {
            return;
        }
        if state.is_changed() && !state.is_unlinked() {
            // Written after the last flush (a mapping, a passed descriptor), or not committed by
            // it: it stays until it is.
            drop(state);
            drop(files);
            let (fs, file) = (self.clone(), file.clone());
            task::spawn("fuse_late_flush", async move { fs.settle(&file).await });
            return;
        }
        drop_file(&mut files, file);
    }
}
