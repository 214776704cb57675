//! The child processes of `atoll dev`: started, watched, stopped.
//!
//! Each child is owned by one task, which alone waits for it and alone sends it signals: so a
//! signal never reaches a process that has taken over the number of one that ended. Children are
//! in process groups of their own, so that Ctrl-C reaches only `atoll dev`, which then stops them
//! in order.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use atoll_net::Shutdown;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};

use crate::report::Failure;
use crate::{logs, program};

/// How often a file is looked for that a child writes.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often it is said what is waited for, beginning so long after the start.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(5);
/// A log longer than this is set aside at the next start.
const LOG_BYTES_MAX: u64 = 32 << 20;
/// Lines of a log shown when a child ends before it is ready.
const LINES_SHOWN: usize = 12;

/// How to start a child.
#[derive(Debug, Clone)]
pub(crate) struct ChildSpec {
    /// Such as `edge-1`.
    pub(crate) name: String,
    /// What follows the program's name.
    pub(crate) args: Vec<OsString>,
    /// Where its output goes.
    pub(crate) log: PathBuf,
    /// The file it writes once it is ready.
    pub(crate) ready: PathBuf,
    /// The file for its process id.
    pub(crate) pid_file: PathBuf,
}

/// A child that was started.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its process id.
    pub(crate) pid: u32,
    orders: mpsc::Sender<Signal>,
    exit: watch::Receiver<Option<String>>,
}

/// A child has ended.
#[derive(Debug)]
pub(crate) struct Exit {
    /// Which child.
    pub(crate) name: String,
    /// Which process.
    pub(crate) pid: u32,
    /// How.
    pub(crate) how: String,
}

/// Starts a child. `exits` is told when it ends.
pub(crate) fn start(spec: &ChildSpec, exits: mpsc::Sender<Exit>) -> Result<Running, Failure> {
    let doing = format!("start {}", spec.name);
    remove(&spec.ready)?;
    let log = open_log(spec)?;
    let copy = log.try_clone().map_err(|error| Failure::failed(&doing, error))?;
    let program = program::command().map_err(|error| Failure::failed(&doing, error))?;
    let mut child = Command::from(program)
        .args(&spec.args)
        // Its lifeline: see that module.
        .stdin(Stdio::piped())
        .stdout(log)
        .stderr(copy)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::failed(&doing, error))?;
    let pid = child.id().ok_or_else(|| Failure::failed(&doing, "it ended at once"))?;
    fs::write(&spec.pid_file, format!("{pid}\n"))
        .map_err(Failure::file("write", &spec.pid_file))?;
    let lifeline = child.stdin.take();
    let (orders, ordered) = mpsc::channel(8);
    let (tell, exit) = watch::channel(None);
    let name = spec.name.clone();
    let pid_file = spec.pid_file.clone();
    drop(atoll_net::task::spawn("child", async move {
        let how = own(child, lifeline, ordered).await;
        drop(fs::remove_file(pid_file));
        tell.send_replace(Some(how.clone()));
        // Nobody needs to know once `atoll dev` itself ends.
        drop(exits.send(Exit { name, pid, how }).await);
    }));
    Ok(Running { pid, orders, exit })
}

async fn own(
    mut child: Child,
    lifeline: Option<ChildStdin>,
    mut ordered: mpsc::Receiver<Signal>,
) -> String {
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            order = ordered.recv() => match (order, child.id()) {
                (Some(signal), Some(pid)) => {
                    // It may have ended this very moment, but nobody else waited for it yet.
                    kill(Pid::from_raw(pid.cast_signed()), signal).ok();
                }
                _ => break child.wait().await,
            },
        }
    };
    drop(lifeline);
    match status {
        Ok(status) => describe(status),
        Err(error) => error.to_string(),
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(0), _) => "ended".to_owned(),
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(Ok(signal))) => format!("was ended by {signal}"),
        (None, _) => status.to_string(),
    }
}

impl Running {
    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<String> {
        self.exit.borrow().clone()
    }

    /// Sends a signal, unless it has ended.
    pub(crate) async fn signal(&self, signal: Signal) {
        // A closed channel means that it has ended.
        self.orders.send(signal).await.ok();
    }

    /// Waits until it has ended; false if it has not within the bound.
    pub(crate) async fn wait(&self, bound: Duration) -> bool {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some);
        tokio::time::timeout(bound, ended).await.is_ok()
    }

    /// Asks it to end, and makes it end if it has not within the bound.
    pub(crate) async fn stop(&self, bound: Duration) {
        self.signal(Signal::SIGTERM).await;
        if !self.wait(bound).await {
            self.signal(Signal::SIGKILL).await;
            self.wait(Duration::from_secs(1)).await;
        }
    }
}

/// Waits until the child has written its ready file.
///
/// # Errors
/// When it ends first (with the last lines of its log), when it takes longer than `bound`, or when
/// `atoll dev` is asked to stop.
pub(crate) async fn ready(
    spec: &ChildSpec,
    running: &Running,
    bound: Duration,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    let since = Instant::now();
    let with_log = |text: String| {
        let tail = logs::tail(&spec.log, LINES_SHOWN);
        Failure::Failed(format!("{text}; the end of {}:\n{}", spec.log.display(), tail.trim_end()))
    };
    let mut told = since;
    loop {
        if spec.ready.exists() {
            return Ok(());
        }
        if let Some(how) = running.ended() {
            return Err(with_log(format!("{} {how} before it was ready", spec.name)));
        }
        if since.elapsed() > bound {
            let seconds = bound.as_secs();
            return Err(with_log(format!("{} was not ready after {seconds} s", spec.name)));
        }
        if shutdown.is_triggered() {
            return Err(Failure::Failed(format!("stopped while {} was starting", spec.name)));
        }
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            let tail = logs::tail(&spec.log, 1);
            tell(&format!("waiting for {}; its log says: {}", spec.name, tail.trim()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Says what is waited for, on standard error.
pub(super) fn tell(what: &str) {
    // With nobody to read it, it is not needed.
    drop(writeln!(std::io::stderr(), "{what}"));
}

fn open_log(spec: &ChildSpec) -> Result<File, Failure> {
    let path = &spec.log;
    if fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        fs::rename(path, path.with_extension("log.1")).map_err(Failure::file("set aside", path))?;
    }
    let mut options = OpenOptions::new();
    let mut file =
        options.create(true).append(true).open(path).map_err(Failure::file("open", path))?;
    let started = crate::text::utc(i64::try_from(crate::text::now_ms()).unwrap_or(0));
    writeln!(file, "--- {} started {started} UTC ---", spec.name)
        .map_err(Failure::file("write", path))?;
    Ok(file)
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Whether the process is on its way out: its memory, and with it its command line, is gone, but
/// not yet its sockets, locks and mounts. They are once it is a zombie (proc_pid_stat(5)).
fn is_ending(pid: i32) -> bool {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).ok();
    let (Some(line), Some(stat)) = (read("cmdline"), read("stat")) else {
        return false;
    };
    let stat = String::from_utf8_lossy(&stat).into_owned();
    // The name before it, in parentheses, may have any bytes.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    line.is_empty() && !matches!(state, None | Some('Z' | 'X'))
}

/// Makes sure that a process of an earlier `atoll dev` has ended: one that was killed leaves
/// children behind that take a moment to notice. `mark` tells its command line from that of an
/// unrelated process with the same number.
pub(crate) async fn settle_leftover(pid_file: &Path, mark: &str) {
    let Ok(text) = fs::read_to_string(pid_file) else {
        return;
    };
    let Ok(pid) = text.trim().parse::<i32>() else {
        return;
    };
    let ours = || {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(mark)
    };
    for attempt in 0..200 {
        let ours = ours();
        if !ours && !is_ending(pid) {
            break;
        }
        match attempt {
            // It should be ending by itself.
            0 if ours => kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap_or_default(),
            150 if ours => kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default(),
            _ => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    drop(fs::remove_file(pid_file));
}
