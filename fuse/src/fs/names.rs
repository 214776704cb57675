//! Names: finding, making, moving and removing them.

use std::sync::Arc;

use atoll_proto::name::SITES_NAME;
use atoll_proto::namespace::{
    Attr, Caller, NamespaceOp, NamespaceQuery, NamespaceReply, NewNode, PERMISSIONS, RenameMode,
};
use atoll_proto::{ByteName, ChunkId, Code, InodeId, limits};

use super::attr::{attr_of, is_dir, is_not_found};
use super::file::{File, Opened, Removal};
use super::snapshot::Snapshot;
use super::{FileSystem, FsError, OpenHow, OpenedFile, Store, drop_file, lock, sites};

/// How often a file is made that others make and remove at the same time.
const CREATE_ATTEMPTS: u32 = 10;

/// The permission bits something is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewMode {
    /// What the program asks for.
    pub bits: u32,
    /// What its mask takes away, where the directory has no rules of its own for that.
    pub umask: u32,
}

impl NewMode {
    /// These bits, whatever the mask.
    pub fn exactly(bits: u32) -> NewMode {
        NewMode { bits, umask: 0 }
    }
}

impl<S: Store> FileSystem<S> {
    /// The entry of this name. The kernel holds the inode from then on, until it forgets it.
    ///
    /// # Errors
    /// `NotFound`, or the master cannot be asked.
    pub async fn lookup(&self, parent: InodeId, name: ByteName) -> Result<Attr, FsError> {
        check_length(&name)?;
        if self.options.sites && parent == self.root() && name.as_bytes() == SITES_NAME {
            return Ok(self.sites.give_root());
        }
        if sites::is_virtual(parent) {
            return self.deployed_lookup(parent, &name).await;
        }
        let query = NamespaceQuery::Lookup { parent, name: name.clone() };
        let attr = attr_of(self.store.query(query).await?, "a lookup")?;
        let attr = self.overlay(attr);
        self.give_entry(parent, &name, &attr);
        Ok(attr)
    }

    /// Makes a regular file and opens it.
    ///
    /// # Errors
    /// When there is one already: `Exists` with `exclusive`, else `MadeMeanwhile`, because nobody has
    /// looked at its permission bits. Else the master's refusal.
    pub async fn create(
        &self,
        parent: InodeId,
        name: ByteName,
        mode: NewMode,
        caller: Caller,
        exclusive: bool,
        how: OpenHow,
    ) -> Result<(Attr, OpenedFile), FsError> {
        let mut attempt = 1;
        let attr = loop {
            let made = self.make_node(parent, &name, NewNode::File, mode, caller, exclusive).await;
            match made {
                Ok((attr, true)) => break attr,
                Err(error) if exclusive || !is_exists(&error) => return Err(error),
                // Somebody else made it: a file, or a link, or a pipe. The kernel looks once more; if it
                // is gone by then, as lock files are, it would have to be made after all.
                Ok((_, false)) | Err(_) => {}
            }
            let query = NamespaceQuery::Lookup { parent, name: name.clone() };
            match self.store.query(query).await {
                Err(error) if error.code() == Some(Code::NotFound) && attempt < CREATE_ATTEMPTS => {
                    attempt += 1;
                }
                _ => return Err(FsError::MadeMeanwhile),
            }
        };
        let number = self.new_handle_number();
        let file = self.begin_empty(&attr, number);
        let attr = file.lock().attr();
        self.give_entry(parent, &name, &attr);
        let opened = self.opened(&file, number, how);
        self.keep(number, file, how.write);
        Ok((attr, opened))
    }

    /// Makes something that is not opened: a directory, a symbolic link, a pipe, a socket, a
    /// device, or a regular file.
    ///
    /// # Errors
    /// `Exists`, or the master's refusal.
    pub async fn make(
        &self,
        parent: InodeId,
        name: ByteName,
        node: NewNode,
        mode: NewMode,
        caller: Caller,
    ) -> Result<Attr, FsError> {
        if let NewNode::Symlink(target) = &node
            && target.as_bytes().len() > limits::SYMLINK_BYTES_MAX
        {
            return Err(FsError::NameTooLong);
        }
        let (attr, _) = self.make_node(parent, &name, node, mode, caller, true).await?;
        self.give_entry(parent, &name, &attr);
        Ok(attr)
    }

    async fn make_node(
        &self,
        parent: InodeId,
        name: &ByteName,
        node: NewNode,
        mode: NewMode,
        caller: Caller,
        exclusive: bool,
    ) -> Result<(Attr, bool), FsError> {
        self.check_new(parent, name)?;
        let op = NamespaceOp::Make {
            parent,
            name: name.clone(),
            node,
            mode: mode.bits & PERMISSIONS,
            umask: mode.umask & PERMISSIONS,
            caller,
            exclusive,
        };
        match self.store.change(op).await? {
            NamespaceReply::Attr { attr, created } => Ok((attr, created)),
            _ => Err(FsError::Unexpected("a make")),
        }
    }

    /// The state of a file that was made this moment: nobody needs to be asked for its content.
    fn begin_empty(&self, attr: &Attr, number: u64) -> Arc<File> {
        let opened = Opened { content: ChunkId::of(b""), snapshot: Arc::new(Snapshot::default()) };
        let mut files = lock(&self.files);
        let fresh = || Arc::new(File::new(attr.clone(), opened, self.chunk_bytes()));
        let file = files.entry(attr.inode).or_insert_with(fresh).clone();
        file.lock().handles.insert(number);
        file
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// `Exists`, or the master's refusal.
    pub async fn link(
        &self,
        inode: InodeId,
        parent: InodeId,
        name: ByteName,
    ) -> Result<Attr, FsError> {
        self.check_new(parent, &name)?;
        if sites::is_virtual(inode) {
            return Err(FsError::ReadOnly);
        }
        let op = NamespaceOp::Link { inode, parent, name: name.clone() };
        let reply = self.store.change(op).await.map_err(|error| match error.code() {
            Some(Code::Limit) => FsError::TooManyLinks,
            _ => error.into(),
        })?;
        let attr = attr_of(reply, "a link")?;
        if let Some(file) = self.open_file(inode) {
            file.lock().set_attr(&attr);
        }
        let attr = self.overlay(attr);
        self.give_entry(parent, &name, &attr);
        Ok(attr)
    }

    /// Removes a name of a file. The file lives on as long as it is open.
    ///
    /// # Errors
    /// The master's refusal.
    pub async fn unlink(&self, parent: InodeId, name: ByteName) -> Result<(), FsError> {
        self.check_old(parent, &name)?;
        let inode = lock(&self.inodes).find(parent, &name);
        let _removal = self.begin_removal(inode);
        self.store.change(NamespaceOp::Unlink { parent, name: name.clone() }).await?;
        lock(&self.inodes).removed(parent, &name);
        self.lost_a_name(inode).await;
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotEmpty`, or the master's refusal.
    pub async fn rmdir(&self, parent: InodeId, name: ByteName) -> Result<(), FsError> {
        self.check_old(parent, &name)?;
        self.store.change(NamespaceOp::Rmdir { parent, name: name.clone() }).await?;
        lock(&self.inodes).removed(parent, &name);
        Ok(())
    }

    /// Moves a name.
    ///
    /// # Errors
    /// The master's refusal.
    pub async fn rename(
        &self,
        parent: InodeId,
        name: ByteName,
        new_parent: InodeId,
        new_name: ByteName,
        mode: RenameMode,
    ) -> Result<(), FsError> {
        self.check_old(parent, &name)?;
        self.check_old(new_parent, &new_name)?;
        let op = NamespaceOp::Rename {
            parent,
            name: name.clone(),
            new_parent,
            new_name: new_name.clone(),
            mode,
        };
        let (moved, target) = {
            let inodes = lock(&self.inodes);
            (inodes.find(parent, &name), inodes.find(new_parent, &new_name))
        };
        let exchange = mode == RenameMode::Exchange;
        let replaced = target.filter(|_| !exchange);
        let _removal = self.begin_removal(replaced);
        self.store.change(op).await?;
        // Two names of one file: rename(2) leaves both.
        if moved.is_none() || moved != target {
            let mut inodes = lock(&self.inodes);
            inodes.removed(parent, &name);
            inodes.removed(new_parent, &new_name);
            if let Some(moved) = moved {
                inodes.named(new_parent, &new_name, moved);
            }
            if let Some(target) = target.filter(|_| exchange) {
                inodes.named(parent, &name, target);
            }
        }
        self.lost_a_name(replaced).await;
        Ok(())
    }

    /// Lets an open file know that this mount may take its last name: a commit that comes too
    /// late is no failure then.
    fn begin_removal(&self, inode: Option<InodeId>) -> Option<Removal> {
        inode.and_then(|inode| self.open_file(inode)).map(Removal::begin)
    }

    /// Finds out whether an open file has names left. Only the master knows: other mounts may
    /// have given it more.
    async fn lost_a_name(&self, inode: Option<InodeId>) {
        let Some(file) = inode.and_then(|inode| self.open_file(inode)) else {
            return;
        };
        let reply = self.store.query(NamespaceQuery::Attr { inode: file.inode }).await;
        match reply.map_err(FsError::from).and_then(|reply| attr_of(reply, "a question for names"))
        {
            Ok(attr) => file.lock().set_attr(&attr),
            Err(error) if is_not_found(&error) => self.lost_all_names(&file),
            Err(error) => {
                tracing::warn!(%error, inode = %file.inode, "names of an open file are unknown");
                // The removal stays open: a commit will show.
                file.lock().begin_removal();
            }
        }
    }

    /// A file without names is kept for those who have it open, and for nobody else.
    fn lost_all_names(&self, file: &Arc<File>) {
        let mut files = lock(&self.files);
        let mut state = file.lock();
        state.mark_unlinked();
        if state.handles.is_empty() {
            state.discard();
            drop(state);
            drop_file(&mut files, file);
        }
    }

    fn check_new(&self, parent: InodeId, name: &ByteName) -> Result<(), FsError> {
        self.check_parent(parent)?;
        check_length(name)?;
        if self.is_sites(parent, name) { Err(FsError::Exists) } else { Ok(()) }
    }

    fn check_old(&self, parent: InodeId, name: &ByteName) -> Result<(), FsError> {
        self.check_parent(parent)?;
        check_length(name)?;
        if self.is_sites(parent, name) { Err(FsError::ReadOnly) } else { Ok(()) }
    }

    fn is_sites(&self, parent: InodeId, name: &ByteName) -> bool {
        self.options.sites && parent == self.root() && name.as_bytes() == SITES_NAME
    }

    /// The directory at a path of the namespace, for mounting a part of it.
    ///
    /// # Errors
    /// `NotFound` or `NotADirectory`, or the master cannot be asked.
    pub async fn resolve_dir(store: &S, path: &ByteName) -> Result<InodeId, FsError> {
        let query = NamespaceQuery::Resolve { path: path.clone() };
        let reply = store.query(query).await.map_err(FsError::from);
        let attr = match reply {
            Err(error) if is_not_found(&error) => return Err(FsError::NotFound),
            reply => attr_of(reply?, "a question for a path")?,
        };
        if is_dir(&attr) { Ok(attr.inode) } else { Err(FsError::NotADirectory) }
    }
}

fn is_exists(error: &FsError) -> bool {
    matches!(error, FsError::Client(error) if error.code() == Some(Code::Exists))
}

fn check_length(name: &ByteName) -> Result<(), FsError> {
    if name.as_bytes().len() > limits::NAME_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    Ok(())
}
