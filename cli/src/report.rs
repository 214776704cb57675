//! The one place where an error becomes a message and an exit code.
//!
//! Verbs return a [`Failure`]; [`finish`] prints it. The codes are part of the contract with
//! scripts: see [`Exit`]. Errors of the client library and the roles are worded where they arise;
//! here they only get a code and, where it helps, a word on what to do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use atoll_client::{ClientError, DeployError};
use atoll_net::NetError;
use atoll_proto::Code;
use serde::Serialize;

use crate::output::Output;

/// What the process says to its caller beside its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line makes no sense (also clap's own code).
    Usage = 2,
    /// The token or certificate does not allow it.
    Denied = 3,
    /// `--if-current` lost.
    Conflict = 4,
    /// Over a limit.
    Limit = 5,
    /// Committed, but not every edge confirmed.
    Unconfirmed = 6,
    /// The cluster cannot be reached.
    Unreachable = 7,
}

impl Exit {
    /// What a child process of this program said by its exit code.
    pub(crate) fn of_child(code: Option<i32>) -> Self {
        match code {
            Some(0) => Self::Done,
            Some(2) => Self::Usage,
            Some(3) => Self::Denied,
            Some(4) => Self::Conflict,
            Some(5) => Self::Limit,
            Some(6) => Self::Unconfirmed,
            Some(7) => Self::Unreachable,
            _ => Self::Failed,
        }
    }
}

/// Why a verb did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line, though well-formed, makes no sense.
    Usage(String),
    /// Something failed; the text names the thing, the reason and what to do.
    Failed(String),
    /// An operating system error on a local file.
    File {
        /// What was tried, such as `read`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The client library failed.
    Client(ClientError),
    /// The client library failed at this file or path.
    At {
        /// The file or path.
        what: String,
        /// The reason.
        source: ClientError,
    },
    /// A deploy failed.
    Deploy(DeployError),
    /// Certificates or sockets.
    Net(NetError),
    /// The change is made, but these edges have not confirmed it.
    Unconfirmed {
        /// Names of the edges.
        waiting: Vec<String>,
        /// How long they were waited for.
        seconds: u64,
    },
    /// A child process of this program failed, and said why.
    Child {
        /// What it said.
        message: String,
        /// Its exit code.
        exit: Exit,
    },
    /// Whoever read our output has gone: not an error.
    StdoutClosed,
    /// The output already says what is wrong.
    Said(Exit),
}

impl Failure {
    /// `doing` failed for this reason.
    pub(crate) fn failed(doing: &str, error: impl fmt::Display) -> Self {
        Self::Failed(format!("cannot {doing}: {error}"))
    }

    /// An adapter for `map_err` on file operations.
    pub(crate) fn file(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { verb, path, source }
    }

    /// An adapter for `map_err` on operations of the client library about one thing.
    pub(crate) fn at(what: impl fmt::Display) -> impl FnOnce(ClientError) -> Self {
        let what = what.to_string();
        move |source| Self::At { what, source }
    }

    /// The code of the cluster's refusal, when it is one.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Client(error) | Self::At { source: error, .. } => error.code(),
            Self::Deploy(DeployError::Client(error)) => error.code(),
            _ => None,
        }
    }

    /// Whether the verb printed its result all the same, as the last object of `--json`.
    fn has_result(&self) -> bool {
        matches!(self, Self::Unconfirmed { .. })
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Failed(_) | Self::File { .. } | Self::Net(_) => Exit::Failed,
            Self::Client(error) | Self::At { source: error, .. } => client_exit(error),
            Self::Deploy(DeployError::Conflict(_)) => Exit::Conflict,
            Self::Deploy(DeployError::Client(error)) => client_exit(error),
            Self::Deploy(DeployError::Rules(faults)) if faults.over_limit() => Exit::Limit,
            Self::Deploy(DeployError::RulesTooLong(_)) => Exit::Limit,
            Self::Deploy(_) => Exit::Failed,
            Self::Unconfirmed { .. } => Exit::Unconfirmed,
            Self::StdoutClosed => Exit::Done,
            Self::Child { exit, .. } | Self::Said(exit) => *exit,
        }
    }
}

fn client_exit(error: &ClientError) -> Exit {
    match error {
        ClientError::Unreachable { .. } | ClientError::Deadline { .. } => Exit::Unreachable,
        other => other.code().map_or(Exit::Failed, code_exit),
    }
}

fn code_exit(code: Code) -> Exit {
    match code {
        Code::Denied | Code::ForeignCluster => Exit::Denied,
        Code::Conflict => Exit::Conflict,
        Code::Limit => Exit::Limit,
        Code::NotLeader | Code::Unavailable | Code::Deadline => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Failed(text) | Self::Child { message: text, .. } => {
                f.write_str(text)
            }
            Self::File { verb, path, source } => {
                write!(f, "cannot {verb} {}: {source}", path.display())
            }
            Self::Client(error) => error.fmt(f),
            Self::At { what, source } => write!(f, "{what}: {source}"),
            Self::Deploy(error) => error.fmt(f),
            Self::Net(error) => error.fmt(f),
            Self::Unconfirmed { waiting, seconds } => write!(
                f,
                "the change is made, but after {seconds} s these edges have not confirmed it: {}; \
                 they will catch up by themselves, `atoll status` shows when; one that is off for \
                 good is forgotten by `atoll node rm`",
                waiting.join(", ")
            ),
            Self::StdoutClosed | Self::Said(_) => Ok(()),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<NetError> for Failure {
    fn from(error: NetError) -> Self {
        Self::Net(error)
    }
}

/// What scripts that read `--json` get as the last line when a verb has no result.
#[derive(Serialize)]
struct ErrorEvent<'a> {
    event: &'static str,
    exit: u8,
    message: &'a str,
}

/// Prints why the verb failed, if it did, and gives the process its exit code.
pub(crate) fn finish(out: &Output, result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    let exit = failure.exit();
    if !matches!(failure, Failure::StdoutClosed | Failure::Said(_)) {
        let mut message = failure.to_string();
        if exit == Exit::Denied && !message.contains("token") {
            message.push_str("; use a client configuration with a token that allows it");
        }
        if out.json() && !failure.has_result() {
            let event = ErrorEvent { event: "error", exit: exit as u8, message: &message };
            // The exit code tells all the same when nobody reads the output any more.
            drop(out.object(&event));
        }
        out.note(format_args!("atoll: {message}"));
    }
    ExitCode::from(exit as u8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use atoll_proto::WireError;

    use super::*;

    fn refused(code: Code) -> Exit {
        Failure::Client(ClientError::Refused(WireError::new(code, "x"))).exit()
    }

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        assert_eq!(Failure::Usage("x".into()).exit() as u8, 2);
        assert_eq!(Failure::Failed("x".into()).exit() as u8, 1);
        assert_eq!(refused(Code::Denied) as u8, 3);
        assert_eq!(refused(Code::Conflict) as u8, 4);
        assert_eq!(refused(Code::Limit) as u8, 5);
        assert_eq!(refused(Code::NotFound) as u8, 1);
        let unconfirmed = Failure::Unconfirmed { waiting: vec![], seconds: 1 };
        assert_eq!(unconfirmed.exit() as u8, 6);
        assert!(unconfirmed.has_result() && !Failure::Failed("x".into()).has_result());
        let gone = ClientError::Unreachable { what: "a master".into(), reason: "x".into() };
        assert_eq!(Failure::Client(gone).exit() as u8, 7);
        let late = ClientError::Deadline { what: "x".into(), after: Duration::from_secs(1) };
        assert_eq!(Failure::At { what: "/a".into(), source: late }.exit() as u8, 7);
        assert_eq!(Failure::StdoutClosed.exit() as u8, 0);
        let lost = DeployError::Conflict("someone else published".into());
        assert_eq!(Failure::Deploy(lost).exit() as u8, 4);
    }

    #[test]
    fn a_message_names_the_thing_and_the_reason() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        let text = Failure::file("read", Path::new("/x/y"))(missing).to_string();
        assert!(text.starts_with("cannot read /x/y: "), "{text}");
        let text = Failure::at("/a")(ClientError::Malformed { what: "odd".into() }).to_string();
        assert_eq!(text, "/a: odd");
    }
}
