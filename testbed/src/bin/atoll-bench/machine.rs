//! What the figures were measured on.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use atoll_testbed::process;

fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// A list of facts, as Markdown.
pub(crate) fn facts(atoll: &Path) -> Result<String> {
    let mut command = Command::new(atoll);
    command.arg("--version");
    let version = process::run(command, Duration::from_secs(20))?.ok()?.text();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".to_owned());
    Ok(format!(
        "- {version}\n- {cores} cores, {processor}\n- memory {memory}\n- Linux {}\n",
        kernel.trim()
    ))
}
