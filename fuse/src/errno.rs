//! The one place where failures become errno values.
//!
//! The kernel adapter calls [`of`] for every failed request. Nothing else in the crate names an
//! errno. `EAGAIN` is never returned: applications would spin on it.

use atoll_client::ClientError;
use atoll_proto::Code;

use crate::fs::FsError;

/// What the application sees.
pub fn of(error: &FsError) -> i32 {
    match error {
        FsError::Client(error) => of_client(error),
        FsError::NotFound => libc::ENOENT,
        FsError::Exists => libc::EEXIST,
        FsError::ReadOnly => libc::EROFS,
        FsError::Invalid(_) => libc::EINVAL,
        FsError::Unsupported => libc::EOPNOTSUPP,
        FsError::BadHandle => libc::EBADF,
        FsError::IsADirectory => libc::EISDIR,
        FsError::NotADirectory => libc::ENOTDIR,
        FsError::NameTooLong => libc::ENAMETOOLONG,
        FsError::TooLarge => libc::EFBIG,
        FsError::NoData => libc::ENXIO,
        FsError::NoAttribute => libc::ENODATA,
        FsError::TooManyLinks => libc::EMLINK,
        // The kernel looks the name up again, and opens what is there by its permission bits.
        FsError::MadeMeanwhile | FsError::Stale | FsError::Overtaken => libc::ESTALE,
        FsError::Stalled { .. } | FsError::Unexpected(_) => libc::EIO,
    }
}

fn of_client(error: &ClientError) -> i32 {
    match error {
        ClientError::Refused(error) => of_code(error.code),
        // The request could not be carried out and may be tried again by whoever wants to: for
        // a file system that is an input/output error.
        ClientError::Unreachable { .. }
        | ClientError::Deadline { .. }
        | ClientError::Missing { .. }
        | ClientError::Lost { .. }
        | ClientError::TooFewReplicas { .. }
        | ClientError::Io { .. }
        | ClientError::Changed { .. }
        | ClientError::Malformed { .. }
        | ClientError::Config { .. } => libc::EIO,
    }
}

fn of_code(code: Code) -> i32 {
    match code {
        Code::Invalid => libc::EINVAL,
        Code::Denied => libc::EACCES,
        Code::Erased => libc::EPERM,
        Code::NotFound => libc::ENOENT,
        Code::Exists => libc::EEXIST,
        Code::NotADirectory => libc::ENOTDIR,
        Code::IsADirectory => libc::EISDIR,
        Code::NotEmpty => libc::ENOTEMPTY,
        Code::Conflict => libc::ESTALE,
        Code::Full => libc::ENOSPC,
        Code::Limit => libc::EDQUOT,
        Code::UnsupportedVersion
        | Code::Missing
        | Code::BadReceipt
        | Code::StaleEpoch
        | Code::NotLeader
        | Code::Corrupt
        | Code::TooFewReplicas
        | Code::Unavailable
        | Code::Deadline
        | Code::ForeignCluster
        | Code::Internal => libc::EIO,
    }
}

/// Whether trying the same again later may help. Used to decide whether data that could not be
/// committed is worth keeping after its last handle is closed.
pub fn may_pass(error: &FsError) -> bool {
    matches!(of(error), libc::EIO | libc::ENOSPC | libc::EDQUOT)
}

#[cfg(test)]
mod tests {
    use atoll_proto::WireError;

    use super::*;

    #[test]
    fn what_applications_decide_by_keeps_its_meaning() {
        let refused =
            |code| of(&FsError::Client(ClientError::Refused(WireError::new(code, "because"))));
        for (code, errno) in [
            (Code::NotFound, libc::ENOENT),
            (Code::Exists, libc::EEXIST),
            (Code::NotADirectory, libc::ENOTDIR),
            (Code::IsADirectory, libc::EISDIR),
            (Code::NotEmpty, libc::ENOTEMPTY),
            (Code::Denied, libc::EACCES),
            (Code::Full, libc::ENOSPC),
            (Code::Conflict, libc::ESTALE),
            (Code::Invalid, libc::EINVAL),
            (Code::TooFewReplicas, libc::EIO),
            (Code::Unavailable, libc::EIO),
        ] {
            assert_eq!(refused(code), errno, "{code:?}");
        }
        let away = ClientError::Unreachable { what: "a master".into(), reason: "gone".into() };
        assert_eq!(of(&FsError::Client(away)), libc::EIO);
        assert_eq!(of(&FsError::ReadOnly), libc::EROFS);
        assert_eq!(of(&FsError::NoData), libc::ENXIO);
    }

    #[test]
    fn only_passing_troubles_are_worth_another_try() {
        let refused = |code| FsError::Client(ClientError::Refused(WireError::new(code, "because")));
        assert!(may_pass(&refused(Code::TooFewReplicas)));
        assert!(may_pass(&refused(Code::Full)));
        assert!(!may_pass(&refused(Code::Denied)));
        assert!(!may_pass(&FsError::Stale));
    }
}
