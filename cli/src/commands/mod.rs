//! One verb per file: its arguments, what it does, how its result looks.

pub(crate) mod backup;
pub(crate) mod cat;
pub(crate) mod collection;
pub(crate) mod completions;
pub(crate) mod cp;
pub(crate) mod deploy;
pub(crate) mod deploys;
pub(crate) mod dev;
pub(crate) mod dns;
pub(crate) mod fsck;
pub(crate) mod get;
pub(crate) mod init;
pub(crate) mod invalidate;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod mkdir;
pub(crate) mod mount;
pub(crate) mod mv;
pub(crate) mod node;
pub(crate) mod promote;
pub(crate) mod publish;
pub(crate) mod published;
pub(crate) mod redirects;
pub(crate) mod restore;
pub(crate) mod rm;
pub(crate) mod role;
pub(crate) mod rollback;
pub(crate) mod scrub;
pub(crate) mod site;
pub(crate) mod stat;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod umount;
pub(crate) mod upload;
pub(crate) mod verify;

use crate::args::Command;
use crate::connect::Context;
use crate::report::Failure;

/// Does what was asked for.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Site(command) => site::run(context, command).await,
        Command::Deploy(args) => deploy::run(context, args).await,
        Command::Deploys(args) => deploys::run(context, args).await,
        Command::Rollback(args) => rollback::run(context, args).await,
        Command::Promote(args) => promote::run(context, args).await,
        Command::Publish(args) => publish::run(context, args).await,
        Command::Invalidate(args) => invalidate::run(context, args).await,
        Command::Redirects(command) => redirects::run(context, command).await,
        Command::Upload(args) => upload::run(context, args).await,
        Command::Ls(args) => ls::run(context, args).await,
        Command::Stat(args) => stat::run(context, args).await,
        Command::Cat(args) => cat::run(context, args).await,
        Command::Rm(args) => rm::run(context, args).await,
        Command::Mkdir(args) => mkdir::run(context, args).await,
        Command::Mv(args) => mv::run(context, args).await,
        Command::Cp(args) => cp::run(context, args).await,
        Command::Mount(args) => mount::run(context, args).await,
        Command::Umount(args) => umount::run(context, &args).await,
        Command::Status(args) => status::run(context, args).await,
        Command::Fsck(args) => Box::pin(fsck::run(context, args)).await,
        Command::Scrub(args) => scrub::run(context, args).await,
        Command::Collection(command) => collection::run(context, command).await,
        Command::Backup(args) => backup::run(context, args).await,
        Command::Restore(args) => restore::run(context, args).await,
        Command::Node(command) => node::run(context, command).await,
        Command::Token(command) => token::run(context, command).await,
        Command::Get(args) => Box::pin(get::run(context, args)).await,
        Command::Verify(args) => Box::pin(verify::run(context, args)).await,
        Command::Dns(command) => dns::run(context, command).await,
        Command::Dev(args) => dev::run(context, args).await,
        Command::Init(args) => init::run(context, &args),
        Command::Master(args) => role::master(context, args).await,
        Command::Chunkserver(args) => role::chunkserver(context, args).await,
        Command::Edge(args) => role::edge(context, args).await,
        Command::Completions(args) => completions::run(context, &args),
        Command::Man(args) => man::run(context, &args),
    }
}
