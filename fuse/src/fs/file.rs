//! The state of a file that is open, or has changes the cluster does not have yet.
//!
//! All handles of an inode on this mount share one [`File`]. While nobody changes it, it is the
//! content the master had at the latest open; a change turns it into [`Segments`] until the next
//! commit. A reader that opened an older content than a later open found keeps it: its handle is
//! pinned to the older snapshot until this mount writes the file or opens it for writing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use atoll_client::Undecided;
use atoll_proto::namespace::{Attr, PERMISSIONS, SetAttr, without_privileges};
use atoll_proto::{ChunkId, InodeId};

use super::TTL;
use super::segments::{Part, Segments};
use super::snapshot::{Piece, Snapshot};

/// A file with handles or changes.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) inode: InodeId,
    state: Mutex<State>,
    /// Held by whoever commits: commits of one file happen one after the other.
    pub(crate) committing: tokio::sync::Mutex<()>,
    /// Held by whoever appends, and while what to commit is fixed or appended again: so each
    /// append stays in one piece. Taken after `committing`.
    pub(crate) appending: tokio::sync::Mutex<()>,
}

/// What the mount knows of the file.
#[derive(Debug)]
pub(crate) struct State {
    /// The master's last word.
    attr: Attr,
    /// When it was heard.
    heard: Instant,
    /// The name of the snapshot's content.
    content: Option<ChunkId>,
    /// The version of the inode of which it is known that it has this content.
    content_version: u64,
    snapshot: Arc<Snapshot>,
    local: Option<Local>,
    /// How often the file was changed here.
    changes: u64,
    /// A commit of which it is not known whether it was made.
    doubt: Option<Arc<Doubt>>,
    /// The kernel has pages of what was appended, in another place than it is now.
    stale_pages: bool,
    /// The numbers of the open handles.
    pub(crate) handles: HashSet<u64>,
    pins: HashMap<u64, Arc<Snapshot>>,
    /// No name is left; the master does not know the inode any more.
    unlinked: bool,
    /// Removals of a name by this mount of which it is not known what they left.
    removals: u32,
    chunk_bytes: u64,
}

/// Changes that are not committed.
#[derive(Debug)]
struct Local {
    segments: Segments,
    /// The number of the latest change.
    change: u64,
    /// The number of the change with which these began: a plan from before says nothing about them.
    began: u64,
    mtime_ns: i64,
    /// When the latest change was made, whatever time the file was given.
    ctime_ns: i64,
    /// The length before the changes, when all of them appended: the content may be another one
    /// by the time they are committed.
    appended_from: Option<u64>,
    /// The latest change that did not append.
    other: u64,
    /// A flush of these failed: whoever made them may have been told so.
    failed: bool,
    /// The latest change by somebody who could not give the file the privileges it has.
    outside: Option<u64>,
}

/// A commit whose answer did not come. As long as it is not known what became of it nothing else of the
/// file is committed: what was appended could be in it twice, and what was written could take the
/// place of what somebody else has written after it.
#[derive(Debug)]
pub(crate) struct Doubt {
    pub(crate) undecided: Undecided,
    pub(crate) plan: Plan,
    pub(crate) opened: Opened,
    pub(crate) ids: HashSet<ChunkId>,
}

/// A part of a file that is written again elsewhere.
#[derive(Debug)]
pub(crate) enum Next {
    /// A chunk, to be referred to.
    Chunk(Part),
    /// Bytes to copy.
    Bytes(Vec<Piece>),
}

/// What a file was at some moment.
#[derive(Debug)]
pub(crate) struct Before {
    changes: u64,
    local: Option<Local>,
}

/// A content to commit, whose parts are apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) mtime_ns: i64,
    /// The version that the inode must have still.
    pub(crate) if_version: Option<u64>,
    /// All it does is append.
    pub(crate) appends: bool,
    /// Take the file's privileges.
    pub(crate) drop_privileges: bool,
    change: u64,
    size: u64,
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl File {
    pub(crate) fn new(attr: Attr, opened: Opened, chunk_bytes: u64) -> File {
        File {
            inode: attr.inode,
            state: Mutex::new(State {
                content_version: attr.version,
                attr,
                heard: Instant::now(),
                content: Some(opened.content),
                snapshot: opened.snapshot,
                local: None,
                changes: 0,
                doubt: None,
                stale_pages: false,
                handles: HashSet::new(),
                pins: HashMap::new(),
                unlinked: false,
                removals: 0,
                chunk_bytes,
            }),
            committing: tokio::sync::Mutex::new(()),
            appending: tokio::sync::Mutex::new(()),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name of an open file is being removed by this mount, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Removal(Arc<File>);

impl Removal {
    pub(crate) fn begin(file: Arc<File>) -> Removal {
        file.lock().begin_removal();
        Removal(file)
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.removals = state.removals.saturating_sub(1);
    }
}

/// A content as the master answered an open.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) content: ChunkId,
    pub(crate) snapshot: Arc<Snapshot>,
}

impl State {
    /// Whether there are changes that are not committed.
    pub(crate) fn is_changed(&self) -> bool {
        self.local.is_some()
    }

    /// Whether this mount's word on the file counts, not the master's.
    pub(crate) fn is_ours(&self) -> bool {
        self.local.is_some() || self.unlinked
    }

    pub(crate) fn is_unlinked(&self) -> bool {
        self.unlinked
    }

    pub(crate) fn has_pins(&self) -> bool {
        !self.pins.is_empty()
    }

    /// Whether the master need not be asked for attributes: what it said a moment ago, with the
    /// changes made here, is as new as what the kernel keeps.
    pub(crate) fn is_fresh(&self) -> bool {
        self.unlinked || (self.local.is_some() && self.heard.elapsed() < TTL)
    }

    /// The attributes with the changes made here.
    pub(crate) fn attr(&self) -> Attr {
        let mut attr = self.attr.clone();
        attr.size = self.size();
        if let Some(local) = &self.local {
            attr.mtime_ns = local.mtime_ns;
            attr.ctime_ns = attr.ctime_ns.max(local.ctime_ns);
            if local.outside.is_some() {
                attr.mode = without_privileges(attr.mode);
            }
        }
        if self.unlinked {
            attr.nlink = 0;
        }
        attr
    }

    pub(crate) fn size(&self) -> u64 {
        self.local.as_ref().map_or(self.snapshot.size(), |local| local.segments.size())
    }

    /// The master's attributes as they are shown here. The length stays that of the content that
    /// is open: the kernel lets nobody read past the length it was told.
    pub(crate) fn show(&mut self, mut attr: Attr) -> Attr {
        self.set_attr(&attr);
        if self.is_ours() {
            return self.attr();
        }
        if !self.handles.is_empty() {
            attr.size = self.snapshot.size();
        }
        attr
    }

    /// The name of the content, when it has one.
    pub(crate) fn content(&self) -> Option<ChunkId> {
        if self.local.is_some() { None } else { self.content }
    }

    /// The master has newer attributes. The content is left alone: open looks at that.
    pub(crate) fn set_attr(&mut self, attr: &Attr) {
        if attr.version >= self.attr.version {
            self.attr = attr.clone();
            self.heard = Instant::now();
        }
    }

    /// Takes what the master answered an open, unless changes here or a newer answer forbid it.
    /// The handles that are open go on with what they opened when `pin` says so.
    pub(crate) fn adopt(&mut self, attr: &Attr, opened: Opened, pin: bool) {
        // Attributes alone may be newer: that says nothing of the content.
        if self.is_ours() || attr.version < self.content_version {
            return;
        }
        self.set_attr(attr);
        self.content_version = attr.version;
        if self.content == Some(opened.content) {
            return;
        }
        for handle in self.handles.iter().filter(|_| pin) {
            self.pins.entry(*handle).or_insert_with(|| self.snapshot.clone());
        }
        self.content = Some(opened.content);
        self.snapshot = opened.snapshot;
    }

    /// All handles see the same from now on.
    pub(crate) fn unpin_all(&mut self) {
        self.pins.clear();
    }

    pub(crate) fn unpin(&mut self, handle: u64) {
        self.pins.remove(&handle);
    }

    /// The parts of a range as this handle sees the file.
    pub(crate) fn pieces(&self, handle: u64, offset: u64, len: u64) -> Vec<Piece> {
        match (self.pins.get(&handle), &self.local) {
            (Some(snapshot), _) => snapshot.pieces(offset, len),
            (None, Some(local)) => local.segments.pieces(offset, len),
            (None, None) => self.snapshot.pieces(offset, len),
        }
    }

    /// The next data or hole as this handle sees the file.
    pub(crate) fn seek(&self, handle: u64, offset: u64, hole: bool) -> Option<u64> {
        match (self.pins.get(&handle), &self.local) {
            (Some(snapshot), _) => snapshot.seek(offset, hole),
            (None, Some(local)) => local.segments.seek(offset, hole),
            (None, None) => self.snapshot.seek(offset, hole),
        }
    }

    /// The segments, for `outsider` or somebody else to change them.
    pub(crate) fn change(&mut self, outsider: bool) -> &mut Segments {
        let local = self.local(outsider);
        local.appended_from = None;
        local.other = local.change;
        &mut local.segments
    }

    /// The segments, to write at their end and nowhere else.
    pub(crate) fn append(&mut self, outsider: bool) -> &mut Segments {
        &mut self.local(outsider).segments
    }

    fn local(&mut self, outsider: bool) -> &mut Local {
        self.pins.clear();
        self.changes += 1;
        let (snapshot, chunk_bytes, began) = (&self.snapshot, self.chunk_bytes, self.changes);
        let local = self.local.get_or_insert_with(|| Local {
            segments: Segments::new(snapshot, chunk_bytes),
            change: 0,
            began,
            failed: false,
            mtime_ns: 0,
            ctime_ns: 0,
            appended_from: Some(snapshot.size()),
            other: 0,
            outside: None,
        });
        local.change = self.changes;
        local.outside = if outsider { Some(local.change) } else { local.outside };
        local.mtime_ns = now_ns();
        local.ctime_ns = local.mtime_ns;
        local
    }

    /// What was appended and is not committed: from where on, and up to where.
    pub(crate) fn appended(&self) -> Option<(u64, u64)> {
        let local = self.local.as_ref()?;
        Some((local.appended_from?, local.segments.size()))
    }

    /// What comes next of the changed file, from an offset on: a whole chunk, or up to `len` bytes
    /// before the next one, whoever reads them.
    pub(crate) fn next_of_changes(&self, offset: u64, len: u64) -> Next {
        let Some(local) = &self.local else { return Next::Bytes(Vec::new()) };
        if let Some(chunk) = local.segments.chunk_at(offset) {
            return Next::Chunk(chunk);
        }
        let end = local.segments.segment_end(offset);
        Next::Bytes(local.segments.pieces(offset, len.min(end.saturating_sub(offset))))
    }

    /// The master has this content now. Returns whether that is what the changes began with: then
    /// they still fit.
    pub(crate) fn is_based_on(&mut self, attr: &Attr, opened: &Opened) -> bool {
        let same = self.content == Some(opened.content);
        if same {
            self.content_version = self.content_version.max(attr.version);
        }
        same
    }

    /// All that was appended was written again at the end of a newer content.
    pub(crate) fn appended_again(&mut self, attr: &Attr, opened: Opened, segments: Segments) {
        self.set_attr(attr);
        self.stale_pages = true;
        let size = opened.snapshot.size();
        self.content = Some(opened.content);
        self.content_version = attr.version;
        self.snapshot = opened.snapshot;
        if let Some(local) = &mut self.local {
            self.changes += 1;
            local.segments = segments;
            local.change = self.changes;
            local.appended_from = Some(size);
        }
    }

    /// Forgets the content without reading it: what O_TRUNC does.
    pub(crate) fn clear(&mut self, outsider: bool) {
        self.pins.clear();
        self.changes += 1;
        let (change, now) = (self.changes, now_ns());
        let was = self.local.as_ref().and_then(|local| local.outside);
        self.local = Some(Local {
            segments: Segments::new(&Snapshot::default(), self.chunk_bytes),
            change,
            began: change,
            failed: false,
            mtime_ns: now,
            ctime_ns: now,
            appended_from: None,
            other: change,
            outside: if outsider { Some(change) } else { was },
        });
    }

    /// As [`State::clear`]; returns what there is to go back to.
    pub(crate) fn clear_for_now(&mut self, outsider: bool) -> Before {
        let before = Before { changes: self.changes, local: self.local.take() };
        self.clear(outsider);
        if let (Some(local), Some(was)) = (&mut self.local, &before.local) {
            local.outside = local.outside.or(was.outside);
        }
        before
    }

    /// What there is to go back to; `None` while there are changes that are not committed.
    pub(crate) fn before(&self) -> Option<Before> {
        let before = Before { changes: self.changes, local: None };
        self.local.is_none().then_some(before)
    }

    /// Makes the file what it was before so many changes, if nothing else was done to it since. The
    /// kernel may have read what it was meanwhile.
    pub(crate) fn take_back(&mut self, before: Before, changes: u64) {
        let last = before.changes + changes;
        if self.local.as_ref().is_some_and(|local| local.change == last) {
            self.changes += 1;
            let number = self.changes;
            // What was done to it may be committed all the same: that is not what these grew from.
            self.local = before.local.map(|local| Local { change: number, began: number, ..local });
            self.stale_pages = true;
        }
    }

    /// The privileges of the file were given after all changes so far.
    pub(crate) fn mode_was_set(&mut self) {
        if let Some(local) = &mut self.local {
            local.outside = None;
        }
    }

    /// Sets the modification time of changes that are not committed; tells whether there are any.
    pub(crate) fn set_mtime(&mut self, mtime_ns: i64) -> bool {
        match &mut self.local {
            Some(local) => {
                self.changes += 1;
                local.mtime_ns = mtime_ns;
                local.ctime_ns = now_ns();
                local.change = self.changes;
                true
            }
            None => false,
        }
    }

    /// This mount may be taking the last name away.
    pub(crate) fn begin_removal(&mut self) {
        self.removals = self.removals.saturating_add(1);
    }

    /// Whether it is no surprise when the master does not know the inode any more.
    pub(crate) fn may_be_unlinked(&self) -> bool {
        self.unlinked || self.removals > 0
    }

    /// The master does not know the inode any more.
    pub(crate) fn mark_unlinked(&mut self) {
        if !self.unlinked {
            self.unlinked = true;
            self.attr.ctime_ns = self.attr.ctime_ns.max(now_ns());
        }
    }

    /// Sets attributes of a file without a name, of which nobody else knows any more.
    pub(crate) fn set_own(&mut self, set: &SetAttr, drop_privileges: bool) {
        let attr = &mut self.attr;
        if drop_privileges {
            attr.mode = without_privileges(attr.mode);
        }
        if let Some(mode) = set.mode {
            attr.mode = attr.mode & !PERMISSIONS | mode & PERMISSIONS;
        }
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.atime_ns = set.atime_ns.unwrap_or(attr.atime_ns);
        attr.mtime_ns = set.mtime_ns.unwrap_or(attr.mtime_ns);
        attr.ctime_ns = now_ns();
    }

    /// What there is to commit. Changes of a file without a name are kept and go nowhere.
    pub(crate) fn plan(&mut self) -> Option<(Plan, Vec<Part>)> {
        if self.unlinked {
            return None;
        }
        let local = self.local.as_mut()?;
        let (change, mtime_ns, size) = (local.change, local.mtime_ns, local.segments.size());
        let appends = local.appended_from.is_some();
        // The last close wins, but not a close that failed before others succeeded.
        let late = local.failed && self.handles.is_empty();
        let if_version = (appends || late).then_some(self.content_version);
        let drop_privileges = local.outside.is_some();
        let plan = Plan { mtime_ns, if_version, appends, drop_privileges, change, size };
        Some((plan, local.segments.plan()))
    }

    /// The changes could not be committed this time.
    pub(crate) fn note_failure(&mut self) {
        if let Some(local) = &mut self.local {
            local.failed = true;
        }
    }

    /// A commit may have been made, or not.
    pub(crate) fn begin_doubt(&mut self, doubt: Doubt) {
        self.doubt = Some(Arc::new(doubt));
    }

    pub(crate) fn doubt(&self) -> Option<Arc<Doubt>> {
        self.doubt.clone()
    }

    /// What became of the commit is known.
    pub(crate) fn end_doubt(&mut self) {
        self.doubt = None;
    }

    /// What the kernel has in its pages is in another place.
    pub(crate) fn pages_moved(&mut self) {
        self.stale_pages = true;
    }

    /// Whether the kernel may have pages that are in another place now.
    pub(crate) fn has_stale_pages(&self) -> bool {
        self.stale_pages
    }

    /// An open makes the kernel drop its pages.
    pub(crate) fn pages_dropped(&mut self) {
        self.stale_pages = false;
    }

    /// The segments, if there are changes.
    pub(crate) fn segments(&mut self) -> Option<&mut Segments> {
        self.local.as_mut().map(|local| &mut local.segments)
    }

    /// A plan was committed as this content.
    pub(crate) fn committed(
        &mut self,
        plan: Plan,
        attr: &Attr,
        opened: Opened,
        ids: &HashSet<ChunkId>,
    ) {
        self.set_attr(attr);
        let Some(local) = &mut self.local else { return };
        local.outside = local.outside.filter(|change| *change > plan.change);
        if local.began > plan.change {
            // Taken back since, and changed again: what is appended goes behind what there is now.
            return;
        }
        self.content = Some(opened.content);
        self.content_version = attr.version;
        self.snapshot = opened.snapshot;
        if local.change == plan.change {
            self.local = None;
        } else {
            local.appended_from = (local.other <= plan.change).then_some(plan.size);
            local.failed = false;
            local.segments.committed(ids);
        }
    }

    /// Gives up changes that can never be committed.
    pub(crate) fn discard(&mut self) {
        self.local = None;
        self.doubt = None;
    }
}
