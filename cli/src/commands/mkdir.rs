//! `atoll mkdir`: directories of the cluster's file system.

use atoll_proto::ByteName;
use atoll_proto::namespace::{Caller, NamespaceOp};
use clap::Args;

use super::ls::PathParser;
use crate::cluster_path::{ClusterPath, resolve_following};
use crate::connect::Context;
use crate::report::Failure;

/// Make directories in the cluster's file system
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll mkdir /photos
  atoll mkdir -p /photos/2026/november")]
pub(crate) struct MkdirArgs {
    /// Absolute paths in the cluster
    #[arg(value_name = "PATH", required = true, value_parser = PathParser)]
    paths: Vec<ClusterPath>,
    /// Make missing parents; a directory that exists is no error
    #[arg(short, long)]
    parents: bool,
    /// Permission bits, in octal
    #[arg(short, long, value_name = "MODE", default_value = "755", value_parser = octal)]
    mode: u32,
}

fn octal(typed: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(typed, 8).map_err(|error| error.to_string())?;
    if mode > 0o7777 { Err("more than 7777".to_owned()) } else { Ok(mode) }
}

/// Who owns what this process makes.
pub(crate) fn caller() -> Caller {
    Caller { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
}

/// Does it.
pub(crate) async fn run(context: &Context, args: MkdirArgs) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    for path in &args.paths {
        let (mode, caller) = (args.mode, caller());
        let op = if args.parents {
            NamespaceOp::MakeDirs { path: path.bytes(), mode, caller }
        } else {
            let Some(name) = path.name() else {
                return Err(Failure::Failed("/: exists".to_owned()));
            };
            let parent = resolve_following(&cluster, &path.parent()).await?.1.inode;
            NamespaceOp::Mkdir { parent, name: ByteName(name.to_vec()), mode, caller }
        };
        cluster.namespace(op).await.map_err(Failure::at(path))?;
    }
    Ok(())
}
