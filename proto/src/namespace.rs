//! The mutable namespace: inodes, directory entries and the operations on them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{ByteName, Content, InodeId, receipt::Receipt};

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, socket or device.
    Special(Special),
}

/// Files that are only a name for something in the kernel that opens them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Special {
    /// A named pipe.
    Fifo,
    /// A socket of the local domain.
    Socket,
    /// A character device, with its number as in st_rdev.
    CharDevice(u32),
    /// A block device, with its number as in st_rdev.
    BlockDevice(u32),
}

/// The permission bits in a mode: the lower 12 of st_mode.
pub const PERMISSIONS: u32 = 0o7777;
/// The bits that make a program run as its owner or group.
pub const SET_IDS: u32 = 0o6000;
/// Set in [`Attr::mode`] when the inode has extended attributes, so that who asks for one need not
/// ask the master about the many inodes that have none.
pub const HAS_XATTRS: u32 = 1 << 16;

/// The attributes of an inode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Which inode.
    pub inode: InodeId,
    /// What it is.
    pub kind: FileKind,
    /// [`PERMISSIONS`], and [`HAS_XATTRS`].
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of directory entries that refer to it (directories: 2 + subdirectories).
    pub nlink: u32,
    /// Length in bytes.
    pub size: u64,
    /// Last access, nanoseconds since the Unix epoch; only set explicitly.
    pub atime_ns: i64,
    /// Last change of content.
    pub mtime_ns: i64,
    /// Last change of anything.
    pub ctime_ns: i64,
    /// Log index of the last change; grows with every change.
    pub version: u64,
}

/// A mode without the privileges that a file must not keep when it gets another owner, or other
/// content by the hand of somebody who could not give them (POSIX.1-2017, chown() and write()): the
/// set-user-ID bit, and the set-group-ID bit where the group may execute.
pub fn without_privileges(mode: u32) -> u32 {
    let group_executes = mode & 0o010 != 0;
    mode & !if group_executes { SET_IDS } else { 0o4000 }
}

impl Attr {
    /// The permission bits alone.
    pub fn permissions(&self) -> u32 {
        self.mode & PERMISSIONS
    }

    /// Whether there are extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.mode & HAS_XATTRS != 0
    }
}

/// One directory entry with the attributes of what it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name.
    pub name: ByteName,
    /// What it names.
    pub attr: Attr,
}

/// Who does an operation: owner of what it creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// How a rename treats an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace it, as rename(2) does.
    #[default]
    Replace,
    /// Fail with `Exists` (RENAME_NOREPLACE).
    NoReplace,
    /// Swap the two (RENAME_EXCHANGE).
    Exchange,
}

/// Which attributes to set; `None` leaves one alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime_ns: Option<i64>,
    /// Modification time.
    pub mtime_ns: Option<i64>,
}

/// What is to be made under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    /// An empty regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(ByteName),
    /// A pipe, socket or device.
    Special(Special),
}

/// What setting an extended attribute does when there is one of that name, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum XattrMode {
    /// Set it in either case.
    #[default]
    Set,
    /// Fail with `Exists` when there is one (XATTR_CREATE).
    Create,
    /// Answer `Xattr(None)` and change nothing when there is none (XATTR_REPLACE).
    Replace,
}

/// A change of the namespace. Variant numbers are stable on the wire and in the log: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceOp {
    /// Make an empty regular file. Answered with its attributes.
    Create {
        /// In which directory.
        parent: InodeId,
        /// Its name.
        name: ByteName,
        /// Permission bits.
        mode: u32,
        /// Its owner.
        caller: Caller,
        /// Fail with `Exists` when there is one; otherwise the existing file is the answer.
        exclusive: bool,
    },
    /// Make a directory.
    Mkdir {
        /// In which directory.
        parent: InodeId,
        /// Its name.
        name: ByteName,
        /// Permission bits.
        mode: u32,
        /// Its owner.
        caller: Caller,
    },
    /// Make a symbolic link.
    Symlink {
        /// In which directory.
        parent: InodeId,
        /// Its name.
        name: ByteName,
        /// What it points at.
        target: ByteName,
        /// Its owner.
        caller: Caller,
    },
    /// Give a file one more name.
    Link {
        /// Which file.
        inode: InodeId,
        /// In which directory.
        parent: InodeId,
        /// The new name.
        name: ByteName,
    },
    /// Remove a name of a file or symbolic link.
    Unlink {
        /// In which directory.
        parent: InodeId,
        /// Which name.
        name: ByteName,
    },
    /// Remove an empty directory.
    Rmdir {
        /// In which directory.
        parent: InodeId,
        /// Which name.
        name: ByteName,
    },
    /// Move a name.
    Rename {
        /// From which directory.
        parent: InodeId,
        /// Which name.
        name: ByteName,
        /// To which directory.
        new_parent: InodeId,
        /// As which name.
        new_name: ByteName,
        /// What to do with an existing target.
        mode: RenameMode,
    },
    /// Set attributes.
    SetAttr {
        /// Of which inode.
        inode: InodeId,
        /// Which.
        set: SetAttr,
    },
    /// Give a file new content.
    Commit {
        /// Which file.
        inode: InodeId,
        /// The new content.
        content: Content,
        /// Its modification time; `None` for now.
        mtime_ns: Option<i64>,
        /// Only if the file's version is still this one, else `Conflict`.
        if_version: Option<u64>,
        /// Cover for chunks that may not be live yet.
        receipts: Vec<Receipt>,
    },
    /// Create or replace a whole file by path, making missing parents: what `atoll upload` does.
    PutFile {
        /// Absolute path, `/` between names.
        path: ByteName,
        /// Permission bits.
        mode: u32,
        /// Its owner.
        caller: Caller,
        /// The content.
        content: Content,
        /// Its modification time; `None` for now.
        mtime_ns: Option<i64>,
        /// Cover for chunks that may not be live yet.
        receipts: Vec<Receipt>,
    },
    /// Make a directory by path with missing parents; an existing directory is fine.
    MakeDirs {
        /// Absolute path.
        path: ByteName,
        /// Permission bits of those made.
        mode: u32,
        /// Their owner.
        caller: Caller,
    },
    /// Make something by all the rules of POSIX: with the group of a directory that has the
    /// set-group-ID bit, and with the access rules a directory sets for what is made in it.
    /// Answered with its attributes.
    Make {
        /// In which directory.
        parent: InodeId,
        /// Its name.
        name: ByteName,
        /// What.
        node: NewNode,
        /// Permission bits, before the mask.
        mode: u32,
        /// Bits taken away, where the directory sets no rules.
        umask: u32,
        /// Its owner.
        caller: Caller,
        /// Fail with `Exists` when there is one; otherwise an existing regular file is the answer
        /// to `File`.
        exclusive: bool,
    },
    /// Set attributes, and take the privileges away that a file must not keep when it gets
    /// another owner or other content: the set-user-ID bit, the set-group-ID bit where the group
    /// may execute, and capabilities. Directories keep theirs.
    DropPrivileges {
        /// Of which inode.
        inode: InodeId,
        /// What to set besides.
        set: SetAttr,
    },
    /// Set an extended attribute. Answered with the attributes.
    SetXattr {
        /// Of which inode.
        inode: InodeId,
        /// Its full name, as `user.comment`.
        name: ByteName,
        /// Its value.
        value: Bytes,
        /// What to do when there is one, or none.
        mode: XattrMode,
        /// With access rules: take the set-group-ID bit, as from callers outside the group.
        drop_group_id: bool,
    },
    /// Remove an extended attribute. Answered with the attributes, or with `Xattr(None)` when
    /// there was none of that name.
    RemoveXattr {
        /// Of which inode.
        inode: InodeId,
        /// Its full name.
        name: ByteName,
    },
    /// Give a file the content that programs on a mount wrote. Answered with the attributes.
    Write {
        /// Which file.
        inode: InodeId,
        /// The new content.
        content: Content,
        /// Its modification time; `None` for now.
        mtime_ns: Option<i64>,
        /// Only if the file's version is still this one, else `Conflict`.
        if_version: Option<u64>,
        /// Take the privileges of the file away, as `DropPrivileges` does: somebody who wrote could
        /// not have given them.
        drop_privileges: bool,
        /// Cover for chunks that may not be live yet.
        receipts: Vec<Receipt>,
    },
}

/// A question about the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceQuery {
    /// The entry of this name. Answered with `Attr`.
    Lookup {
        /// In which directory.
        parent: InodeId,
        /// Which name.
        name: ByteName,
    },
    /// The attributes of an inode.
    Attr {
        /// Which.
        inode: InodeId,
    },
    /// What a path names, not following a final symbolic link. Answered with `Attr`.
    Resolve {
        /// Absolute path.
        path: ByteName,
    },
    /// Attributes and content of a file, linearizable: what open needs.
    Open {
        /// Which.
        inode: InodeId,
    },
    /// The target of a symbolic link.
    ReadLink {
        /// Which.
        inode: InodeId,
    },
    /// Entries of a directory in name order with attributes.
    ReadDir {
        /// Which.
        inode: InodeId,
        /// Only names after this one.
        after: Option<ByteName>,
        /// At most this many (and at most `limits::READDIR_ENTRIES_MAX`).
        limit: u32,
    },
    /// Size and free space of the whole.
    StatFs,
    /// The value of an extended attribute. Answered with `Xattr`.
    Xattr {
        /// Of which inode.
        inode: InodeId,
        /// Its full name.
        name: ByteName,
    },
    /// The names of all extended attributes. Answered with `Xattrs`.
    Xattrs {
        /// Of which inode.
        inode: InodeId,
    },
}

/// The answer to a [`NamespaceOp`] or [`NamespaceQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceReply {
    /// Done; nothing to tell.
    Done,
    /// The attributes of the inode asked about, made or changed. `created` tells whether this
    /// operation made it.
    Attr {
        /// The attributes.
        attr: Attr,
        /// Whether the operation made it.
        created: bool,
    },
    /// To `Open`.
    File {
        /// The attributes.
        attr: Attr,
        /// The content.
        content: Content,
    },
    /// To `ReadLink`.
    Target(Bytes),
    /// To `ReadDir`.
    Entries {
        /// In name order.
        entries: Vec<DirEntry>,
        /// The directory's parent (itself for the root).
        parent: InodeId,
        /// Whether these were the last.
        end: bool,
    },
    /// To `StatFs`.
    StatFs {
        /// Bytes the cluster can hold, counted once per replica set.
        total_bytes: u64,
        /// Bytes free, likewise.
        free_bytes: u64,
        /// Inodes in use.
        inodes: u64,
    },
    /// The value of an extended attribute; `None` when there is none of that name.
    Xattr(Option<Bytes>),
    /// The names of extended attributes, in order.
    Xattrs(Vec<ByteName>),
}
