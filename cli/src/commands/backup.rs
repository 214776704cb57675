//! `atoll backup`: a copy of the cluster's metadata in one file.

use std::path::PathBuf;
use std::time::Instant;

use atoll_client::BackupProgress;
use clap::Args;
use serde::Serialize;

use crate::connect::Context;
use crate::progress::Progress;
use crate::report::Failure;
use crate::text;

/// Write a copy of the cluster's metadata to one file, while everything goes on
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll backup /backups/atoll-monday
  atoll backup /backups/atoll-monday --json

It holds names, sites, deploys, tokens (hashed) and which chunks belong to what; the bytes of files
stay on the chunkservers. Keep it as you keep a private key. `atoll restore` makes a master of it.")]
pub(crate) struct BackupArgs {
    /// The file to write; it appears whole or not at all
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Serialize)]
struct DoneObject<'a> {
    event: &'static str,
    file: &'a std::path::Path,
    bytes: u64,
    cluster: String,
    index: u64,
    epoch: u64,
    term: u64,
    made_at: String,
    elapsed_ms: u64,
}

impl BackupProgress for Progress {
    fn expect(&self, bytes: u64) {
        Progress::expect(self, bytes);
    }

    fn received(&self, bytes: u64) {
        self.sent(bytes);
    }
}

/// Does it.
pub(crate) async fn run(context: &Context, args: BackupArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let cluster = context.cluster().await?;
    let progress = Progress::new(&context.out);
    let result = atoll_client::backup(&cluster, &args.file, &progress).await;
    progress.clear();
    let header = result?;
    let bytes = std::fs::metadata(&args.file).map_err(Failure::file("read", &args.file))?.len();
    let made_at = text::utc(i64::try_from(header.made_at_ms).unwrap_or(i64::MAX));
    if context.out.json() {
        return context.out.object(&DoneObject {
            event: "done",
            file: &args.file,
            bytes,
            cluster: header.cluster.to_string(),
            index: header.index,
            epoch: header.epoch.0,
            term: header.term,
            made_at,
            elapsed_ms: super::published::millis(started.elapsed()),
        });
    }
    context.out.note(format_args!(
        "wrote the metadata as of {made_at} UTC (log index {}, {}) to {}",
        header.index,
        text::bytes(bytes),
        args.file.display()
    ));
    Ok(())
}
