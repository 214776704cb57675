//! Replies: a failure becomes an errno, and is logged when it is not an everyday one.

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use crate::errno;
use crate::fs::FsError;

/// A reply that can tell of a failure.
pub(super) trait Fail {
    fn fail(self, errno: Errno);
}

macro_rules! fail {
    ($($reply:ty),*) => {
        $(impl Fail for $reply {
            fn fail(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

fail!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Sends a reply or the errno of a failure, which is logged when it is not an everyday one.
pub(super) fn answer<R: Fail, T>(
    what: &str,
    reply: R,
    outcome: Result<T, FsError>,
    ok: impl FnOnce(R, T),
) {
    match outcome {
        Ok(value) => ok(reply, value),
        Err(error) => {
            let errno = errno::of(&error);
            let everyday = matches!(error, FsError::MadeMeanwhile);
            if (errno == libc::EIO || errno == libc::ESTALE) && !everyday {
                tracing::warn!(%error, what, "a request failed");
            }
            metrics::counter!("atoll_fuse_errors_total", "op" => what.to_owned()).increment(1);
            reply.fail(Errno::from_i32(errno));
        }
    }
}

/// Sends a value, or its length to who asks with no room at all.
pub(super) fn sized(reply: ReplyXattr, room: u32, value: &[u8]) {
    // At most 64 KiB.
    let len = value.len() as u32;
    match room {
        0 => reply.size(len),
        _ if len > room => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}
