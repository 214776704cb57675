//! `atoll restore`: a backup becomes the data directory of a master.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use atoll_master::{Restore, RestoreError};
use clap::Args;
use serde::Serialize;

use crate::connect::Context;
use crate::report::Failure;
use crate::text;

/// Make the data directory of a master out of a backup. No master may run on it
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll restore /backups/atoll-monday --data /var/lib/atoll/master
  atoll restore /backups/atoll-monday --data .atoll/nodes/master-1
  atoll restore b --data d --id 2 --peer 1=10.0.0.1:7000 --peer 2=10.0.0.2:7000 --peer 3=10.0.0.3:7000

Stop all masters, move their data directories away, restore, start. With several masters, restore the
same backup for each of them with the same --peer list. Chunkservers keep running and follow. Nothing
is dropped until `atoll collection release`, so look around first (`atoll fsck`).

For a local cluster: atoll dev stop master 1, move .atoll/nodes/master-1 away, restore, atoll dev start
master 1.")]
pub(crate) struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The data directory to make; it must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The id of the master
    #[arg(long, value_name = "N", default_value_t = 1)]
    id: u64,
    /// All masters, this one too, when there are several; may be given several times
    #[arg(long = "peer", value_name = "ID=ADDR", value_parser = peer)]
    peers: Vec<(u64, SocketAddr)>,
}

fn peer(typed: &str) -> Result<(u64, SocketAddr), String> {
    let wrong =
        || format!("{typed:?} is no master; write ID=ADDRESS:PORT, such as 1=10.0.0.1:7000");
    let (id, addr) = typed.split_once('=').ok_or_else(wrong)?;
    let id: u64 = id.parse().map_err(|_| wrong())?;
    let addr = addr.parse().map_err(|_| wrong())?;
    if id == 0 { Err("masters are numbered from 1".to_owned()) } else { Ok((id, addr)) }
}

#[derive(Serialize)]
struct DoneObject<'a> {
    event: &'static str,
    data: &'a std::path::Path,
    id: u64,
    cluster: String,
    index: u64,
    made_at: String,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: RestoreArgs) -> Result<(), Failure> {
    let voters = voters(&args)?;
    let RestoreArgs { file, data, id, .. } = args;
    let place = data.clone();
    let work = move || {
        let moment = |header: &atoll_proto::backup::BackupHeader| {
            text::utc(i64::try_from(header.made_at_ms).unwrap_or(i64::MAX))
        };
        let made = moment(&atoll_master::inspect(&file)?) + " UTC";
        let request = Restore { file: &file, data: &place, id, voters: &voters, made: &made };
        Ok((atoll_master::restore(&request)?, made))
    };
    let restored: Result<_, RestoreError> = atoll_net::task::spawn_blocking("restore", work)
        .await
        .map_err(|error| Failure::failed("restore", error))?;
    let (header, made_at) = restored.map_err(|error| Failure::Failed(error.to_string()))?;
    if context.out.json() {
        let cluster = header.cluster.to_string();
        let index = header.index;
        let event = "done";
        return context.out.object(&DoneObject { event, data: &data, id, cluster, index, made_at });
    }
    context.out.note(format_args!(
        "{} holds the metadata as of {made_at} (log index {}); start master {id} on it. What was \
         changed after that is lost. Nothing is dropped until `atoll collection release`",
        data.display(),
        header.index
    ));
    Ok(())
}

/// All masters that will vote. A single one needs no address to reach itself.
fn voters(args: &RestoreArgs) -> Result<BTreeMap<u64, SocketAddr>, Failure> {
    if args.id == 0 {
        return Err(Failure::Usage("--id: masters are numbered from 1".to_owned()));
    }
    if args.peers.is_empty() {
        return Ok(BTreeMap::from([(args.id, SocketAddr::from(([0, 0, 0, 0], 0)))]));
    }
    let voters: BTreeMap<u64, SocketAddr> = args.peers.iter().copied().collect();
    if voters.len() != args.peers.len() {
        return Err(Failure::Usage("--peer: the same id is given twice".to_owned()));
    }
    if !voters.contains_key(&args.id) {
        return Err(Failure::Usage(format!("--peer: master {} is not among them", args.id)));
    }
    Ok(voters)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn peers_must_fit_together() {
        assert_eq!(peer("2=10.0.0.2:7000").unwrap().0, 2);
        for bad in ["", "2", "2=", "x=10.0.0.2:7000", "0=10.0.0.2:7000", "2=10.0.0.2"] {
            assert!(peer(bad).is_err(), "{bad}");
        }
        let args = |id, peers: &[&str]| RestoreArgs {
            file: "f".into(),
            data: "d".into(),
            id,
            peers: peers.iter().map(|text| peer(text).unwrap()).collect(),
        };
        assert_eq!(voters(&args(3, &[])).unwrap().len(), 1);
        assert_eq!(voters(&args(1, &["1=1.1.1.1:1", "2=1.1.1.1:2"])).unwrap().len(), 2);
        assert!(voters(&args(3, &["1=1.1.1.1:1"])).is_err());
        assert!(voters(&args(1, &["1=1.1.1.1:1", "1=1.1.1.1:2"])).is_err());
        assert!(voters(&args(0, &[])).is_err());
    }
}
