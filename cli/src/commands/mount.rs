//! `atoll mount`: the cluster's file system as a directory.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Args;

use crate::connect::Context;
use crate::node_files::write_whole;
use crate::report::{Exit, Failure};
use crate::{lifeline, logs, program};

/// The mount in the background has this long to be ready.
const READY: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines of its log shown when it does not come up.
const LINES_SHOWN: usize = 12;

/// Mount the cluster's file system on a directory, in the background once it is ready
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll mount /mnt/lagoon
  atoll mount ./photos --path /photos --read-only
  atoll mount /mnt/lagoon --foreground --memory-limit 1G
  atoll umount /mnt/lagoon

Every deploy is readable under /.sites/<site>/<deploy id>/.")]
pub(crate) struct MountArgs {
    #[command(flatten)]
    mount: atoll_fuse::Args,
    /// Written once the directory can be used
    #[arg(long, hide = true, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// End with the standard input
    #[arg(long, hide = true)]
    lifeline: bool,
    /// Leave the terminal
    #[arg(long, hide = true)]
    detached: bool,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: MountArgs) -> Result<(), Failure> {
    if args.mount.foreground {
        foreground(context, args).await
    } else {
        background(context, &args).await
    }
}

async fn foreground(context: &Context, args: MountArgs) -> Result<(), Failure> {
    if args.lifeline {
        lifeline::hold().map_err(|error| Failure::failed("watch the parent process", error))?;
    }
    if args.detached {
        nix::unistd::setsid().map_err(|error| Failure::failed("leave the terminal", error))?;
    }
    drop(atoll_net::telemetry::init("mount", "info"));
    let shutdown = atoll_net::shutdown::on_signals();
    let cluster = context.cluster().await?;
    let options = atoll_fuse::MountOptions::from(&args.mount);
    let on_ready = Box::new(|| {
        let Some(path) = &args.ready_file else { return };
        if let Err(failure) = write_whole(path, "{}\n") {
            tracing::error!("{failure}");
        }
    });
    let mounted = atoll_fuse::mount(cluster, options, shutdown, on_ready).await;
    mounted.map_err(|error| match error {
        atoll_fuse::MountError::Client(error) => Failure::Client(error),
        other => Failure::Failed(other.to_string()),
    })
}

/// Starts this program again in the foreground, detached, and waits until it is ready.
async fn background(context: &Context, args: &MountArgs) -> Result<(), Failure> {
    let dir =
        std::path::absolute(&args.mount.dir).map_err(Failure::file("find", &args.mount.dir))?;
    let config = context.config_path()?;
    let log = log_path(&dir)?;
    let ready = log.with_extension("ready");
    drop(std::fs::remove_file(&ready));
    let file = std::fs::File::create(&log).map_err(Failure::file("write", &log))?;
    let copy = file.try_clone().map_err(Failure::file("write", &log))?;
    let mut command = program::command().map_err(|error| Failure::failed("mount", error))?;
    command.arg("mount").arg("--config").arg(config).args(["--foreground", "--detached"]);
    command.arg("--ready-file").arg(&ready);
    if let Some(path) = &args.mount.path {
        command.arg("--path").arg(path);
    }
    if args.mount.read_only {
        command.arg("--read-only");
    }
    if args.mount.allow_other {
        command.arg("--allow-other");
    }
    if let Some(bytes) = args.mount.memory_limit {
        command.arg("--memory-limit").arg(bytes.to_string());
    }
    command.arg("--").arg(&dir);
    command.stdin(Stdio::null()).stdout(file).stderr(copy).current_dir("/");
    let mut child = command.spawn().map_err(|error| Failure::failed("mount", error))?;
    let since = Instant::now();
    loop {
        if ready.exists() {
            drop(std::fs::remove_file(&ready));
            context.out.note(format_args!(
                "mounted on {}; `atoll umount {}` ends it; it logs to {}",
                dir.display(),
                dir.display(),
                log.display()
            ));
            return Ok(());
        }
        let ended = child.try_wait();
        if let Some(status) = ended.map_err(|error| Failure::failed("mount", error))? {
            let exit = Exit::of_child(status.code().filter(|code| *code != 0));
            return Err(Failure::Child { message: last_words(&dir, &log), exit });
        }
        if since.elapsed() > READY {
            // It ended this very moment, if this fails.
            drop(child.kill());
            return Err(Failure::Failed(last_words(&dir, &log)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Why the process in the background did not come up, by its own words.
fn last_words(dir: &Path, log: &Path) -> String {
    let tail = logs::tail(log, LINES_SHOWN);
    let said = tail.lines().rev().find_map(|line| line.trim().strip_prefix("atoll: "));
    said.map_or_else(
        || format!("cannot mount on {}; it said:\n{}", dir.display(), tail.trim_end()),
        str::to_owned,
    )
}

/// A log file for a mount on this directory.
fn log_path(dir: &Path) -> Result<PathBuf, Failure> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME")
        .or_else(|| Some(set("HOME")?.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("atoll");
    std::fs::create_dir_all(&state).map_err(Failure::file("make", &state))?;
    let key = blake3::hash(dir.as_os_str().as_bytes()).to_hex();
    Ok(state.join(format!("mount-{}.log", &key[..16])))
}
