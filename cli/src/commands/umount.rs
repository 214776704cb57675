//! `atoll umount`: ends a mount.

use std::path::PathBuf;

use clap::Args;

use crate::connect::Context;
use crate::report::Failure;

/// Unmount a directory that `atoll mount` mounted, after what was written is stored
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll umount /mnt/lagoon
  atoll umount --lazy /mnt/lagoon")]
pub(crate) struct UmountArgs {
    /// The directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Take it out of the tree even while somebody uses it
    #[arg(long)]
    lazy: bool,
}

/// Does it.
pub(crate) async fn run(_context: &Context, args: &UmountArgs) -> Result<(), Failure> {
    let (dir, lazy) = (args.dir.clone(), args.lazy);
    // It may wait for the mount's process.
    atoll_net::task::spawn_blocking("umount", move || atoll_fuse::unmount(&dir, lazy))
        .await
        .map_err(|error| Failure::failed("unmount", error))?
        .map_err(|error| Failure::Failed(error.to_string()))
}
