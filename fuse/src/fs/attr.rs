//! Attributes: reading them, setting them, and the room in the cluster.

use std::sync::Arc;

use atoll_proto::namespace::{
    Attr, FileKind, NamespaceOp, NamespaceQuery, NamespaceReply, PERMISSIONS, SET_IDS, SetAttr,
    without_privileges,
};
use atoll_proto::{Code, InodeId};

use super::file::File;
use super::{FileSystem, FsError, OpenHow, Store, lock, sites};

/// Which attributes to set; `None` leaves one alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttrs {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time, nanoseconds since the Unix epoch.
    pub atime_ns: Option<i64>,
    /// Modification time, nanoseconds since the Unix epoch.
    pub mtime_ns: Option<i64>,
    /// Take the privileges that the file must not keep, as with a new owner.
    pub drop_privileges: bool,
    /// The length is set by somebody who could not give the file the privileges it has.
    pub outsider: bool,
}

/// The room in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes the cluster can hold, counted once per file.
    pub total_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// The attributes in a reply.
pub(super) fn attr_of(reply: NamespaceReply, question: &'static str) -> Result<Attr, FsError> {
    match reply {
        NamespaceReply::Attr { attr, .. } => Ok(attr),
        _ => Err(FsError::Unexpected(question)),
    }
}

pub(super) fn is_not_found(error: &FsError) -> bool {
    match error {
        FsError::NotFound => true,
        FsError::Client(error) => error.code() == Some(Code::NotFound),
        _ => false,
    }
}

impl<S: Store> FileSystem<S> {
    /// The attributes of an inode, with the changes made here.
    ///
    /// # Errors
    /// `NotFound`, or the master cannot be asked.
    pub async fn getattr(&self, inode: InodeId) -> Result<Attr, FsError> {
        if sites::is_virtual(inode) {
            return self.deployed_attr(inode).await;
        }
        let file = self.open_file(inode);
        let attr = match self.own_attr(file.as_deref()) {
            Some(attr) => attr,
            None => self.ask_attr(inode, file.as_deref()).await?,
        };
        lock(&self.inodes).tell(&attr);
        Ok(attr)
    }

    /// The attributes of a file of which this mount's word counts.
    fn own_attr(&self, file: Option<&File>) -> Option<Attr> {
        let state = file?.lock();
        state.is_fresh().then(|| state.attr())
    }

    async fn ask_attr(&self, inode: InodeId, file: Option<&File>) -> Result<Attr, FsError> {
        let reply = self.store.query(NamespaceQuery::Attr { inode }).await;
        match (reply, file) {
            (Ok(reply), _) => {
                let attr = attr_of(reply, "a question for attributes")?;
                // It may have been changed here while the master was asked.
                Ok(show(file, attr))
            }
            (Err(error), Some(file)) if error.code() == Some(Code::NotFound) => {
                // Open here, removed elsewhere: what is written here and has nowhere to go must be told
                // to who flushes it.
                let mut state = file.lock();
                if !state.is_changed() {
                    state.mark_unlinked();
                }
                Ok(state.attr())
            }
            // Writers go on while the master is away.
            (Err(_), Some(file)) if file.lock().is_ours() => Ok(file.lock().attr()),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Attributes that came with a name, with the changes made here.
    pub(super) fn overlay(&self, attr: Attr) -> Attr {
        let file = self.open_file(attr.inode);
        show(file.as_deref(), attr)
    }

    /// Sets attributes. `handle` tells that the length is set through an open file, whose close
    /// will commit it; without one it is committed at once.
    ///
    /// # Errors
    /// As the parts: the master's refusal, or why a new length could not be committed.
    pub async fn setattr(
        self: &Arc<Self>,
        inode: InodeId,
        handle: Option<u64>,
        set: SetAttrs,
    ) -> Result<Attr, FsError> {
        if sites::is_virtual(inode) {
            return Err(FsError::ReadOnly);
        }
        let mut fresh = match set.size {
            Some(size) => self.set_size(inode, handle, size, set.outsider).await?,
            None => None,
        };
        let rest = self.set_locally(inode, set);
        // Privileges are not for a commit to take that began before they were given.
        let file = self.open_file(inode).filter(|_| rest.mode.is_some_and(|it| it & SET_IDS != 0));
        let _alone = match &file {
            Some(file) => Some(file.committing.lock().await),
            None => None,
        };
        if rest != SetAttr::default() || set.drop_privileges {
            let op = if set.drop_privileges {
                NamespaceOp::DropPrivileges { inode, set: rest }
            } else {
                NamespaceOp::SetAttr { inode, set: rest }
            };
            match self.store.change(op).await {
                Ok(reply) => {
                    let attr = attr_of(reply, "a change of attributes")?;
                    if let Some(file) = self.open_file(inode) {
                        let mut state = file.lock();
                        state.set_attr(&attr);
                        if rest.mode.is_some() {
                            state.mode_was_set();
                        }
                    }
                    fresh = Some(attr);
                }
                // A file without a name is only known here.
                Err(error) => self.set_unlinked(inode, &rest, set.drop_privileges, error)?,
            }
        }
        match fresh {
            Some(attr) => {
                let attr = self.overlay(attr);
                lock(&self.inodes).tell(&attr);
                Ok(attr)
            }
            None => self.getattr(inode).await,
        }
    }

    /// Whether the file of a handle has bits that it loses when others than its owner write it.
    pub fn has_privileges(&self, handle: u64) -> bool {
        match self.handle(handle) {
            Ok(super::Handle::File(open)) => {
                let mode = open.file.lock().attr().mode;
                without_privileges(mode) != mode
            }
            _ => false,
        }
    }

    /// The master could not set attributes: no failure when this mount took the last name.
    fn set_unlinked(
        &self,
        inode: InodeId,
        set: &SetAttr,
        drop_privileges: bool,
        error: atoll_client::ClientError,
    ) -> Result<(), FsError> {
        let Some(file) = self.open_file(inode) else { return Err(error.into()) };
        let mut state = file.lock();
        if error.code() != Some(Code::NotFound) || !state.may_be_unlinked() {
            return Err(error.into());
        }
        state.mark_unlinked();
        state.set_own(set, drop_privileges);
        Ok(())
    }

    /// What is left for the master: the modification time of a file with changes travels with
    /// their commit, and what does not change needs no request then either.
    fn set_locally(&self, inode: InodeId, set: SetAttrs) -> SetAttr {
        let mut rest = SetAttr {
            mode: set.mode.map(|mode| mode & PERMISSIONS),
            uid: set.uid,
            gid: set.gid,
            atime_ns: set.atime_ns,
            mtime_ns: set.mtime_ns,
        };
        let Some(file) = self.open_file(inode) else {
            return rest;
        };
        let mut state = file.lock();
        if !state.is_changed() {
            return rest;
        }
        if let Some(mtime_ns) = rest.mtime_ns.take() {
            state.set_mtime(mtime_ns);
        }
        let now = state.attr();
        rest.mode = rest.mode.filter(|mode| *mode != now.permissions());
        rest.uid = rest.uid.filter(|uid| *uid != now.uid);
        rest.gid = rest.gid.filter(|gid| *gid != now.gid);
        rest.atime_ns = rest.atime_ns.filter(|atime_ns| *atime_ns != now.atime_ns);
        rest
    }

    /// Sets the length; returns the attributes if that asked the master for them.
    async fn set_size(
        self: &Arc<Self>,
        inode: InodeId,
        handle: Option<u64>,
        size: u64,
        outsider: bool,
    ) -> Result<Option<Attr>, FsError> {
        if let Some(handle) = handle
            && let Ok(super::Handle::File(open)) = self.handle(handle)
        {
            return self.truncate(&open.file, size, outsider, &mut 0).await.map(|()| None);
        }
        let how = OpenHow { write: true, ..OpenHow::default() };
        let number = self.new_handle_number();
        let file = match self.acquire(inode, how, number).await {
            // Some of its content cannot be read. It need not be, to go; but then there is no way back.
            Err(error) if size == 0 && !is_not_found(&error) => {
                let how = OpenHow { truncate: true, outsider, ..how };
                self.acquire(inode, how, number).await?
            }
            other => other?,
        };
        let outcome = self.resize(&file, size, outsider).await;
        let attr = file.lock().attr();
        self.let_go(&file, number);
        outcome.map(|()| Some(attr))
    }

    /// Sets the length of a file in the cluster. When that fails the file is as it was.
    async fn resize(
        self: &Arc<Self>,
        file: &Arc<File>,
        size: u64,
        outsider: bool,
    ) -> Result<(), FsError> {
        if size == 0 {
            return self.empty(file, outsider).await;
        }
        // What was written before is committed first, so that there is something to go back to.
        self.flush_file(file).await?;
        let (before, mut changes) = (file.lock().before(), 0);
        let cut = self.truncate(file, size, outsider, &mut changes).await;
        let outcome = match cut {
            Ok(()) => self.flush_file(file).await,
            Err(error) => Err(error),
        };
        if let (Err(_), Some(before)) = (&outcome, before) {
            file.lock().take_back(before, changes);
            // Whoever read it meanwhile got a page that ends too early.
            self.stale.add(file.inode);
        }
        outcome
    }

    /// Takes all of a file in the cluster away. Nothing of it has to reach the cluster before: there may
    /// be no room for that. No other commit may come in between: going back would undo it.
    async fn empty(self: &Arc<Self>, file: &Arc<File>, outsider: bool) -> Result<(), FsError> {
        let _alone = file.committing.lock().await;
        self.resolve_doubt(file).await?;
        let before = file.lock().clear_for_now(outsider);
        lock(&self.inodes).cache(file.inode, None);
        let outcome = self.flush_alone(file).await;
        if outcome.is_err() {
            file.lock().take_back(before, 1);
            // Whoever read it meanwhile got a page that ends too early.
            self.stale.add(file.inode);
        }
        outcome
    }

    /// The room in the cluster.
    ///
    /// # Errors
    /// When the master cannot be asked.
    pub async fn statfs(&self) -> Result<Space, FsError> {
        match self.store.query(NamespaceQuery::StatFs).await? {
            NamespaceReply::StatFs { total_bytes, free_bytes, inodes } => {
                Ok(Space { total_bytes, free_bytes, inodes })
            }
            _ => Err(FsError::Unexpected("a question for space")),
        }
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// When it is none, or the master cannot be asked.
    pub async fn readlink(&self, inode: InodeId) -> Result<bytes::Bytes, FsError> {
        if sites::is_virtual(inode) {
            return self.alias_target(inode);
        }
        match self.store.query(NamespaceQuery::ReadLink { inode }).await? {
            NamespaceReply::Target(target) => Ok(target),
            _ => Err(FsError::Unexpected("a question for a link's target")),
        }
    }

    /// Fails unless the inode is a directory of the namespace that things can be made in.
    pub(super) fn check_parent(&self, parent: InodeId) -> Result<(), FsError> {
        if sites::is_virtual(parent) { Err(FsError::ReadOnly) } else { Ok(()) }
    }
}

fn show(file: Option<&File>, attr: Attr) -> Attr {
    match file {
        Some(file) => file.lock().show(attr),
        None => attr,
    }
}

/// Whether an attribute is a directory's.
pub(super) fn is_dir(attr: &Attr) -> bool {
    attr.kind == FileKind::Directory
}
