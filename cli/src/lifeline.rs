//! How a child process notices that `atoll dev` is gone.
//!
//! The parent holds the other end of the child's standard input and never writes to it. When the
//! parent ends, however it ends (also by SIGKILL), the kernel closes that end and the child reads
//! the end of its input. `PR_SET_PDEATHSIG` would not do: it fires when the parent's *thread* that
//! started the child ends.

use std::io::Read;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Time for an orderly end before the process ends itself.
const GRACE: Duration = Duration::from_secs(6);

/// From now on this process ends when its standard input does.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn hold() -> std::io::Result<()> {
    thread::Builder::new().name("lifeline".into()).spawn(|| {
        let mut byte = [0; 64];
        let mut input = std::io::stdin().lock();
        while input.read(&mut byte).is_ok_and(|read| read > 0) {}
        let own = Pid::this();
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            // Sending a signal to oneself cannot fail for want of permission or of a process.
            kill(own, signal).ok();
            thread::sleep(GRACE);
        }
    })?;
    Ok(())
}
