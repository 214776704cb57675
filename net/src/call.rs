//! What a caller gives to a call and what it may get back.
//!
//! [`crate::Endpoint::call`] makes the call; this module only holds its options and its errors.
//! The errors tell apart what every protocol above needs to know: surely not executed, outcome
//! unknown, and refused with a reason.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_proto::{Retry, WireError};

use crate::telemetry::TraceContext;

/// How a call is made.
#[derive(Clone, Debug)]
pub struct CallOptions {
    /// How long the caller waits, everything included. It travels with the request.
    pub deadline: Duration,
    /// The token of the user behind the call.
    pub token: Option<Arc<str>>,
    /// The trace this call belongs to; without one it starts its own.
    pub trace: Option<TraceContext>,
}

impl CallOptions {
    /// A call that may take this long.
    pub fn within(deadline: Duration) -> CallOptions {
        CallOptions { deadline, token: None, trace: None }
    }

    /// The same on behalf of the user with this token.
    #[must_use]
    pub fn token(mut self, token: impl Into<Arc<str>>) -> CallOptions {
        self.token = Some(token.into());
        self
    }

    /// The same as part of this trace.
    #[must_use]
    pub fn trace(mut self, trace: TraceContext) -> CallOptions {
        self.trace = Some(trace);
        self
    }
}

/// Why a call gave no answer. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The request surely was not executed: no connection, or it was lost before the request was
    /// whole.
    #[error("cannot reach {addr}: {reason}")]
    Unreachable {
        /// The node that was called.
        addr: SocketAddr,
        /// Why, and what to do about it.
        reason: String,
    },
    /// The connection was lost after the request was sent: it may have been executed.
    #[error(
        "lost the connection to {addr} while waiting for its answer ({reason}); \
         the request may have been carried out: check before repeating it"
    )]
    Lost {
        /// The node that was called.
        addr: SocketAddr,
        /// What happened to the connection.
        reason: String,
    },
    /// The deadline passed after the request was sent: it may have been executed.
    #[error(
        "no answer from {addr} within {after:?}; the request may have been carried out: check \
         before repeating it, or allow more time"
    )]
    Deadline {
        /// The node that was called.
        addr: SocketAddr,
        /// How long was waited.
        after: Duration,
    },
    /// The node answered with an error.
    #[error("{0}")]
    Refused(WireError),
    /// The node answered with something that is no answer; the request may have been executed.
    #[error(
        "{addr} answered with bytes that make no sense ({reason}); check that both sides run \
         compatible versions"
    )]
    Malformed {
        /// The node that was called.
        addr: SocketAddr,
        /// What is wrong with the bytes.
        reason: String,
    },
}

impl CallError {
    /// Whether, and where, the same request may be sent again. For an unknown outcome this holds
    /// for requests that may be executed twice; the others must ask first
    /// ([`CallError::is_unknown_outcome`]).
    pub fn retry(&self) -> Retry {
        match self {
            CallError::Unreachable { .. } | CallError::Lost { .. } | CallError::Deadline { .. } => {
                Retry::Elsewhere
            }
            CallError::Refused(error) => error.retry,
            CallError::Malformed { .. } => Retry::Never,
        }
    }

    /// Whether the request may have been executed although no answer came.
    pub fn is_unknown_outcome(&self) -> bool {
        match self {
            CallError::Lost { .. } | CallError::Deadline { .. } | CallError::Malformed { .. } => {
                true
            }
            // A server that met the deadline says so itself, but cannot say how far it came.
            CallError::Refused(error) => error.code == atoll_proto::Code::Deadline,
            CallError::Unreachable { .. } => false,
        }
    }

    /// The error's kind as a metric label.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            CallError::Unreachable { .. } => "unreachable",
            CallError::Lost { .. } => "lost",
            CallError::Deadline { .. } => "deadline",
            CallError::Refused(_) => "refused",
            CallError::Malformed { .. } => "malformed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_proto::Code;

    #[test]
    fn only_what_was_never_whole_is_surely_not_executed() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 7));
        let reason = String::from("x");
        let after = Duration::from_secs(1);
        assert!(!CallError::Unreachable { addr, reason: reason.clone() }.is_unknown_outcome());
        assert!(CallError::Lost { addr, reason: reason.clone() }.is_unknown_outcome());
        assert!(CallError::Deadline { addr, after }.is_unknown_outcome());
        assert!(CallError::Malformed { addr, reason }.is_unknown_outcome());
        let refused = CallError::Refused(WireError::not_found("no such site"));
        assert!(!refused.is_unknown_outcome());
        assert_eq!(refused.retry(), Retry::Never);
        let late = CallError::Refused(WireError::new(Code::Deadline, "too slow"));
        assert!(late.is_unknown_outcome());
    }
}
