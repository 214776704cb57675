//! `atoll man`: the manual pages, from the same definitions as `--help`.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use crate::args::Cli;
use crate::connect::Context;
use crate::report::Failure;

/// Write the manual pages, one per verb, into a directory
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The directory; it is made if need be
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Does it.
pub(crate) fn run(context: &Context, args: &ManArgs) -> Result<(), Failure> {
    std::fs::create_dir_all(&args.dir).map_err(Failure::file("make", &args.dir))?;
    clap_mangen::generate_to(Cli::command(), &args.dir)
        .map_err(Failure::file("write the manual pages to", &args.dir))?;
    context.out.note(format_args!("wrote the manual pages to {}", args.dir.display()));
    Ok(())
}
