//! This program, to be started once more: by `atoll dev` for its children, by `atoll mount` to
//! leave the terminal.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The kernel's own link to the running program. It works also after the file was replaced or
/// removed, as an update or a build does.
const RUNNING: &str = "/proc/self/exe";

/// A command that starts this very program again.
///
/// # Errors
/// When the system does not tell which program this is.
pub(crate) fn command() -> std::io::Result<Command> {
    Ok(command_at(&std::env::current_exe()?))
}

/// The path is preferred while it lasts: a process that was started by the link is called `exe`
/// in `ps` and `top`.
fn command_at(path: &Path) -> Command {
    if path.exists() {
        return Command::new(path);
    }
    let mut command = Command::new(RUNNING);
    command.arg0("atoll");
    command
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_program_whose_file_was_replaced_starts_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let gone = command_at(&dir.path().join("atoll (deleted)")).arg("--list").output().unwrap();
        let there = command().unwrap().arg("--list").output().unwrap();
        assert!(gone.status.success() && there.status.success());
        assert_eq!(gone.stdout, there.stdout);
    }
}
