//! Processes: running a command with a deadline, finding and signalling those of a cluster.
//!
//! Nothing here signals a process by name; every pid comes from a cluster's own data directory on
//! its command line.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::wait;

/// What a command came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was run, for messages.
    pub command: String,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: String,
    /// How long it took.
    pub elapsed: Duration,
}

impl Outcome {
    /// The same, if it exited with 0.
    ///
    /// # Errors
    /// When it did not, with all it said.
    pub fn ok(self) -> Result<Self> {
        self.expect_code(0)
    }

    /// The same, if it exited with this code.
    ///
    /// # Errors
    /// When it did not, with all it said.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        ensure!(self.code == Some(code), "expected exit code {code}: {self}");
        Ok(self)
    }

    /// stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// The objects of `--json`, one a line.
    ///
    /// # Errors
    /// When a line is no JSON.
    pub fn events(&self) -> Result<Vec<Value>> {
        let text = String::from_utf8_lossy(&self.stdout);
        text.lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| serde_json::from_str(line).with_context(|| format!("{line:?} of {self}")))
            .collect()
    }

    /// The last object of `--json`.
    ///
    /// # Errors
    /// When there is none.
    pub fn last(&self) -> Result<Value> {
        self.events()?.pop().with_context(|| format!("no JSON on stdout: {self}"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let out = String::from_utf8_lossy(&self.stdout);
        write!(
            f,
            "`{}` ended with {:?} (signal {:?}) after {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.code,
            self.signal,
            self.elapsed,
            shortened(&out),
            shortened(&self.stderr)
        )
    }
}

/// The two ends of a long text.
fn shortened(text: &str) -> String {
    const END: usize = 3000;
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= 2 * END {
        return text.to_owned();
    }
    let head: String = characters[..END].iter().collect();
    let tail: String = characters[characters.len() - END..].iter().collect();
    format!("{head}\n[…]\n{tail}")
}

/// A command that was started and is not waited for yet.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
    start: Instant,
}

impl Running {
    /// Starts a command with nothing on its stdin.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let text = shown(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start `{text}`"))?;
        let mut out = child.stdout.take().context("stdout is piped")?;
        let mut err = child.stderr.take().context("stderr is piped")?;
        let stdout = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            drop(out.read_to_end(&mut bytes));
            bytes
        });
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            drop(err.read_to_end(&mut bytes));
            bytes
        });
        Ok(Self { command: text, child, stdout, stderr, start })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill `{}`", self.command))
    }

    /// Waits for its end, and kills it at the deadline.
    ///
    /// # Errors
    /// When it did not end in time.
    pub fn finish(mut self, timeout: Duration) -> Result<Outcome> {
        let ended = wait_child(&mut self.child, timeout);
        if ended.is_err() {
            self.child.kill()?;
            self.child.wait()?;
        }
        let (code, signal) = match &ended {
            Ok(status) => (status.code(), status.signal()),
            Err(_) => (None, None),
        };
        // A grandchild may hold the pipes open (`atoll mount` goes to the background): what it
        // says is not this command's, so after the end they get a moment only.
        let outcome = Outcome {
            command: self.command,
            code,
            signal,
            stdout: joined(self.stdout),
            stderr: String::from_utf8_lossy(&joined(self.stderr)).into_owned(),
            elapsed: self.start.elapsed(),
        };
        match ended {
            Ok(_) => Ok(outcome),
            Err(error) => bail!("{error:#}: {outcome}"),
        }
    }
}

fn joined(thread: JoinHandle<Vec<u8>>) -> Vec<u8> {
    let patience = Duration::from_secs(2);
    if wait::holds("pipe closed", patience, || thread.is_finished()).is_err() {
        return b"(a process in the background keeps the pipe open)".to_vec();
    }
    thread.join().unwrap_or_default()
}

/// Waits for a child without blocking for ever.
///
/// # Errors
/// When it still runs at the deadline.
pub fn wait_child(child: &mut Child, timeout: Duration) -> Result<ExitStatus> {
    let what = format!("end of process {}", child.id());
    wait::until(&what, timeout, || Ok(child.try_wait()?))
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub fn run(command: Command, timeout: Duration) -> Result<Outcome> {
    Running::start(command)?.finish(timeout)
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// A running process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command line.
    pub arguments: Vec<String>,
}

/// Every process (zombies excepted) that has this directory on its command line.
pub fn naming(directory: &Path) -> Vec<Process> {
    let wanted = directory.to_string_lossy();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let arguments: Vec<String> = line
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            let named = arguments.iter().any(|word| word.contains(&*wanted));
            (named && alive(pid)).then_some(Process { pid, arguments })
        })
        .collect()
}

/// Whether a process exists and is no zombie.
pub fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

/// The letter of its state in `/proc/PID/stat`.
pub fn state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.trim_start().chars().next()
}

/// User and system CPU time of a process.
///
/// # Errors
/// When it does not exist.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').context("stat has a name in brackets")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?
        .and_then(|ticks| u32::try_from(ticks).ok())
        .unwrap_or(100);
    Ok(Duration::from_secs(ticks) / per_second)
}

/// Sends a signal to one process.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).context("a pid fits")?;
    ensure!(raw > 1, "refusing to signal pid {raw}");
    kill(Pid::from_raw(raw), signal).with_context(|| format!("{signal} to {pid}"))
}

/// An open file for a child's output, appended to.
///
/// # Errors
/// When it cannot be opened.
pub fn log_file(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_command_is_run_and_its_output_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let outcome = run(command, Duration::from_secs(20)).unwrap();
        assert_eq!((outcome.code, outcome.text().as_str()), (Some(3), "out"));
        assert_eq!(outcome.stderr, "err\n");
        assert!(outcome.ok().is_err());
    }

    #[test]
    fn the_deadline_kills() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let running = Running::start(command).unwrap();
        let pid = running.pid();
        assert!(running.finish(Duration::from_millis(50)).is_err());
        assert!(!alive(pid));
    }

    #[test]
    fn own_time_and_life_are_seen() {
        assert!(alive(std::process::id()));
        cpu_time(std::process::id()).unwrap();
        assert!(signal(1, Signal::SIGKILL).is_err());
    }
}
