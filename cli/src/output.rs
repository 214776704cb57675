//! Standard output carries the result and nothing else; messages go to standard error.
//!
//! Every verb writes through [`Output`], so that a reader who has gone (`atoll ls | head`) ends
//! the verb quietly instead of with a panic.

use std::fmt;
use std::io::{BufWriter, IsTerminal, Stdout, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::report::Failure;

/// Where a verb's result goes.
pub(crate) struct Output {
    json: bool,
    stdout: Mutex<BufWriter<Stdout>>,
}

impl Output {
    /// The process's own output; `json` is what the user asked for.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, stdout: Mutex::new(BufWriter::new(std::io::stdout())) }
    }

    /// Whether the result is to be JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Whether a person reads the result.
    pub(crate) fn is_terminal(&self) -> bool {
        std::io::stdout().is_terminal()
    }

    /// Whether a person reads the messages.
    pub(crate) fn messages_to_terminal(&self) -> bool {
        std::io::stderr().is_terminal()
    }

    /// Bytes of the result, as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.lock().write_all(bytes).map_err(stdout_failure)
    }

    /// A line of the result.
    pub(crate) fn line(&self, text: impl fmt::Display) -> Result<(), Failure> {
        writeln!(self.lock(), "{text}").map_err(stdout_failure)
    }

    /// An object of the result on a line of its own, visible to its reader at once.
    pub(crate) fn object<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::failed("write the result as JSON", error))?;
        self.line(text)?;
        self.flush()
    }

    /// Hands everything written so far to whoever reads it.
    pub(crate) fn flush(&self) -> Result<(), Failure> {
        self.lock().flush().map_err(stdout_failure)
    }

    /// A message for people.
    pub(crate) fn note(&self, text: impl fmt::Display) {
        // Nothing is left to tell when standard error is closed.
        drop(writeln!(std::io::stderr(), "{text}"));
    }

    fn lock(&self) -> MutexGuard<'_, BufWriter<Stdout>> {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stdout_failure(error: std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::StdoutClosed,
        _ => Failure::failed("write to standard output", error),
    }
}
