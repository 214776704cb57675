//! Which masters there are: as the configuration names them, and as the cluster itself said last.
//!
//! Masters come and go while a cluster runs, and the configurations of other nodes do not follow by
//! themselves. So whoever reaches the leading master asks it for all of them now and then, turns to those
//! first from then on, and keeps them in a file for its next start, when those of the configuration may
//! be gone. No address is trusted: who answers there proves by its certificate what it is.
//!
//! What does not fit the configuration is not used. Where masters are reached by other addresses than
//! their own (through a tunnel or a forwarded port), none of those configured is among those they name,
//! and then theirs lead nowhere; and a file that was written under another configuration is older than
//! what the operator has written since.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_proto::ClusterId;
use atoll_proto::masters::MasterView;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// The name of the file in the data directory of a node.
pub const MASTERS_FILE: &str = "masters.json";
/// How often the leading master is asked which masters there are, while it is asked other things.
const ASK_EVERY: Duration = Duration::from_secs(3);
/// Within which whoever is in touch with the masters knows of a change of them.
pub const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// More are not remembered; a cluster has at most five that vote.
const MASTERS_MAX: usize = 16;
/// The format of the file.
const FORMAT: u32 = 1;

/// The masters a node or a client may turn to.
#[derive(Debug)]
pub struct KnownMasters {
    cluster: ClusterId,
    configured: Vec<SocketAddr>,
    file: Option<PathBuf>,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    all: Arc<[SocketAddr]>,
    asked: Option<Instant>,
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    format: u32,
    cluster: String,
    /// What the configuration said when it was written.
    configured: Vec<SocketAddr>,
    masters: Vec<SocketAddr>,
}

impl KnownMasters {
    /// As the configuration has them, and as this file has, if it was written under the same one.
    pub fn new(cluster: ClusterId, configured: Vec<SocketAddr>, file: Option<PathBuf>) -> Self {
        let kept = file.as_deref().and_then(|file| read(file, cluster, &configured));
        let all = joined(&kept.unwrap_or_default(), &configured);
        let now = Mutex::new(Now { all, asked: None });
        Self { cluster, configured, file, now }
    }

    /// All of them: those the cluster named last, and then those that only the configuration does.
    pub fn all(&self) -> Arc<[SocketAddr]> {
        self.now().all.clone()
    }

    /// Whether it is time to ask again; whoever is told so does it.
    pub fn is_due(&self) -> bool {
        self.is_due_at(Instant::now())
    }

    fn is_due_at(&self, time: Instant) -> bool {
        let mut now = self.now();
        let due = now.asked.is_none_or(|asked| time >= asked + ASK_EVERY);
        if due {
            now.asked = Some(time);
        }
        due
    }

    /// Takes over what the leading master says. Whether that changed anything.
    pub async fn learn(self: &Arc<Self>, masters: &[MasterView]) -> bool {
        let voters = masters.iter().filter(|master| master.voter);
        let named: Vec<SocketAddr> = voters
            .filter_map(|master| master.addr.parse().ok())
            .filter(|addr: &SocketAddr| !addr.ip().is_unspecified() && addr.port() != 0)
            .take(MASTERS_MAX)
            .collect();
        {
            let mut now = self.now();
            if !named.iter().any(|addr| now.all.contains(addr)) {
                return false;
            }
            let all = joined(&named, &self.configured);
            if all == now.all {
                return false;
            }
            tracing::info!(masters = ?named, "the cluster has other masters now");
            now.all = all;
        }
        self.keep(named).await;
        true
    }

    /// What cannot be kept is asked for again after the next start, of those configured.
    async fn keep(&self, masters: Vec<SocketAddr>) {
        let Some(file) = self.file.clone() else { return };
        let kept = Kept {
            format: FORMAT,
            cluster: self.cluster.to_string(),
            configured: self.configured.clone(),
            masters,
        };
        let path = file.clone();
        let written =
            crate::task::spawn_blocking("keep-masters", move || write(&path, &kept)).await;
        let reason = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::debug!(reason, file = %file.display(), "cannot keep which masters there are");
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn joined(named: &[SocketAddr], configured: &[SocketAddr]) -> Arc<[SocketAddr]> {
    let mut seen = BTreeSet::new();
    named.iter().chain(configured).filter(|addr| seen.insert(**addr)).copied().collect()
}

fn read(file: &Path, cluster: ClusterId, configured: &[SocketAddr]) -> Option<Vec<SocketAddr>> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(%error, file = %file.display(), "cannot read which masters there were");
            }
            return None;
        }
    };
    let kept: Kept = match serde_json::from_slice(&text) {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "cannot read which masters there were");
            return None;
        }
    };
    let fits = kept.format == FORMAT
        && kept.cluster == cluster.to_string()
        && kept.configured == configured
        && kept.masters.len() <= MASTERS_MAX;
    fits.then_some(kept.masters)
}

fn write(file: &Path, kept: &Kept) -> std::io::Result<()> {
    // Several processes may share the file; whole is each of them.
    let draft = file.with_extension(format!("{}.new", std::process::id()));
    let mut out = File::create(&draft)?;
    out.write_all(&serde_json::to_vec_pretty(kept)?)?;
    out.sync_all()?;
    fs::rename(&draft, file)?;
    match file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    fn addr(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn view(port: u16) -> MasterView {
        let (id, addr) = (u64::from(port), addr(port).to_string());
        MasterView { id, addr, voter: true, leads: false, log_index: 0, behind: 0 }
    }

    fn known(configured: &[u16], file: &Path) -> Arc<KnownMasters> {
        let configured = configured.iter().copied().map(addr).collect();
        Arc::new(KnownMasters::new(CLUSTER, configured, Some(file.to_owned())))
    }

    fn ports(known: &KnownMasters) -> Vec<u16> {
        known.all().iter().map(SocketAddr::port).collect()
    }

    #[tokio::test]
    async fn masters_that_came_are_known_after_a_restart_when_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("masters.json");
        let first = known(&[1], &file);
        assert_eq!(ports(&first), [1]);
        assert!(first.learn(&[view(1), view(2), view(3)]).await);
        assert!(!first.learn(&[view(1), view(2), view(3)]).await, "nothing new");
        assert_eq!(ports(&first), [1, 2, 3]);
        assert!(first.learn(&[view(2), view(3)]).await);
        assert_eq!(ports(&known(&[1], &file)), [2, 3, 1]);
    }

    #[tokio::test]
    async fn one_without_a_vote_or_an_address_is_not_turned_to() {
        let dir = tempfile::tempdir().unwrap();
        let known = known(&[1], &dir.path().join("masters.json"));
        let learner = MasterView { voter: false, ..view(2) };
        let nowhere = MasterView { addr: "0.0.0.0:7000".to_owned(), ..view(3) };
        let nonsense = MasterView { addr: "nonsense".to_owned(), ..view(4) };
        assert!(!known.learn(&[view(1), learner, nowhere, nonsense]).await);
        assert_eq!(ports(&known), [1]);
    }

    #[tokio::test]
    async fn what_does_not_fit_the_configuration_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("masters.json");
        // Reached through a tunnel: their own addresses lead nowhere.
        let tunnel = known(&[9], &file);
        assert!(!tunnel.learn(&[view(1), view(2)]).await);
        assert_eq!(ports(&tunnel), [9]);
        assert!(known(&[1], &file).learn(&[view(1), view(2)]).await);
        assert_eq!(ports(&known(&[1], &file)), [1, 2]);
        assert_eq!(ports(&known(&[9], &file)), [9], "written under another configuration");
        let other = KnownMasters::new(ClusterId([8; 16]), vec![addr(1)], Some(file.clone()));
        assert_eq!(ports(&other), [1], "of another cluster");
        fs::write(&file, "{\"format\":1").unwrap();
        assert_eq!(ports(&known(&[1], &file)), [1], "torn");
        // What cannot be written is known as long as the process runs.
        let nowhere = known(&[1], Path::new("/nonexistent/masters.json"));
        assert!(nowhere.learn(&[view(1), view(2)]).await);
        assert_eq!(ports(&nowhere), [1, 2]);
    }

    #[test]
    fn it_is_asked_for_now_and_then() {
        let known = KnownMasters::new(CLUSTER, vec![addr(1)], None);
        let now = Instant::now();
        assert!(known.is_due_at(now) && !known.is_due_at(now));
        assert!(known.is_due_at(now + ASK_EVERY) && !known.is_due_at(now + ASK_EVERY));
    }
}
