//! What the binary `atoll` does: every verb, every role, and `atoll dev`.
//!
//! `main.rs` calls [`run`]; the testbed uses [`local`]. `args` says what can be typed, `commands` has one verb per file, `dev` runs a cluster on this
//! machine, and `report` is the one place where an error becomes a message and an exit code. What
//! a verb does to the cluster is `atoll-client`'s work; this crate parses, scans, shows and starts
//! processes.

mod args;
mod cluster_path;
mod commands;
mod connect;
mod dev;
mod fetch;
mod lifeline;
mod lifetime;
pub mod local;
mod logs;
mod node_files;
mod output;
mod program;
mod progress;
mod report;
mod scan;
mod table;
mod text;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::connect::Context;
use crate::report::Failure;

/// Carries out the command line of this process.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let context = Context::new(cli.global);
    let result = start(&context, cli.command);
    let result = result.and_then(|()| context.out.flush());
    report::finish(&context.out, result)
}

fn start(context: &Context, command: args::Command) -> Result<(), Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name("atoll");
    let runtime = builder.build().map_err(|error| Failure::failed("start the runtime", error))?;
    let result = runtime.block_on(commands::run(context, command));
    // Blocking work (a read of standard input, a lookup) must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result
}
