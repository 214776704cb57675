//! `atoll completions`: what a shell needs to complete commands.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::connect::Context;
use crate::report::Failure;

/// Print the completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll completions bash > /etc/bash_completion.d/atoll
  atoll completions zsh > ~/.zfunc/_atoll
  atoll completions fish > ~/.config/fish/completions/atoll.fish")]
pub(crate) struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Does it.
pub(crate) fn run(context: &Context, args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "atoll", &mut script);
    context.out.bytes(&script)
}
