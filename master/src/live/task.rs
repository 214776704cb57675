//! When live sites are sealed: after 200 ms of quiet or 2 s at most, by the leader.
//!
//! The task wakes when a log entry changed the namespace or a site, when a user asks, and when
//! something is due; never by polling. What it keeps is worth nothing to another master: a new
//! leader, or one that starts, compares every live directory once with what was sealed last.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use atoll_proto::error::WireResult;
use atoll_proto::publish::Published;
use atoll_proto::rules::RuleSet;
use atoll_proto::{Code, InodeId, SiteName, WireError, limits};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Ask;
use super::known::Known;
use super::rules::Compiled;
use super::seal::{Sealer, Unsealed};
use crate::ops::change::store_failed;
use crate::raft::Applied;
use crate::server::Master;
use crate::store::sites;

/// A directory is sealed when nothing has changed in it for this long ...
const QUIET: Duration = Duration::from_millis(200);
/// ... and after this long in any case.
const LATEST: Duration = Duration::from_secs(2);
/// Pauses between attempts that fail.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long one attempt may take that nobody asked for.
const ATTEMPT: Duration = Duration::from_secs(30);
/// Inodes kept in memory for all live sites together, about 300 bytes each.
const INODES_KEPT: usize = 1_000_000;

/// One live site.
#[derive(Debug)]
struct Followed {
    path: String,
    known: Known,
    rules: Compiled,
    /// The settings that rules are compiled with.
    settings: RuleSet,
    /// The first and the last change that is not sealed yet.
    dirty: Option<(Instant, Instant)>,
    /// After attempts that failed: how long the pause is, and when it ends.
    retry: Option<(Duration, Instant)>,
    /// Why the last attempt failed.
    note: Option<String>,
}

impl Followed {
    fn new(path: String, settings: RuleSet, now: Instant) -> Self {
        let (known, rules, dirty) = (Known::default(), Compiled::default(), Some((now, now)));
        Self { path, known, rules, settings, dirty, retry: None, note: None }
    }

    fn changed(&mut self, now: Instant) {
        let first = self.dirty.map_or(now, |(first, _)| first);
        self.dirty = Some((first, now));
    }

    /// When it is to be sealed.
    fn due(&self) -> Option<Instant> {
        let quiet = self.dirty.map(|(first, last)| (last + QUIET).min(first + LATEST));
        match (quiet, self.retry) {
            (Some(quiet), Some((_, after))) => Some(quiet.max(after)),
            (quiet, _) => quiet,
        }
    }
}

pub(crate) async fn run(master: Arc<Master>) {
    let asked = master.live.asked.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut asked) = asked else { return };
    loop {
        // Who asks a master that does not lead is told so before it comes here.
        tokio::select! {
            leads = master.consensus.leadership_changed(false) => if !leads { return },
            ask = asked.recv() => {
                drop(ask);
                continue;
            }
            () = master.shutdown.wait() => return,
        }
        let mut sites = Sites::default();
        while master.consensus.leads() && !master.shutdown.is_triggered() {
            sites.turn(&master, &mut asked).await;
        }
        master.live.note(Vec::new());
        while asked.try_recv().is_ok() {}
    }
}

/// All live sites, as the leader follows them.
#[derive(Default)]
struct Sites {
    followed: BTreeMap<SiteName, Followed>,
    /// What was seen of the log.
    seen: Option<Applied>,
    sealer: Sealer,
}

impl Sites {
    /// Waits for something to do, and does it.
    async fn turn(&mut self, master: &Master, asked: &mut mpsc::Receiver<Ask>) {
        if let Err(error) = self.observe(master).await {
            tracing::debug!(%error, "cannot look at live sites yet");
            pause(master, RETRY_MIN).await;
            return;
        }
        let due = self.followed.iter().filter_map(|(site, it)| Some((it.due()?, site.clone())));
        let due = due.min();
        if let Some((at, site)) = &due
            && *at <= Instant::now()
        {
            let deadline = Instant::now() + ATTEMPT;
            drop(self.seal(master, site, false, deadline).await);
            return;
        }
        let seen = self.seen.unwrap_or_default();
        let news = move |applied: &Applied| {
            applied.namespace_changed != seen.namespace_changed
                || applied.sites_changed != seen.sites_changed
        };
        let mut applied = master.consensus.applied();
        let wait_due = async {
            match &due {
                Some((at, _)) => tokio::time::sleep_until(*at).await,
                None => std::future::pending().await,
            }
        };
        let ask = tokio::select! {
            Ok(_) = applied.wait_for(news) => None,
            () = wait_due => None,
            ask = asked.recv() => ask,
            _ = master.consensus.leadership_changed(true) => None,
            () = master.shutdown.wait() => None,
        };
        if let Some(Ask { site, reply }) = ask {
            let answer = self.answer(master, &site).await;
            if reply.send(answer).is_err() {
                tracing::debug!(%site, "nobody waits for this seal any more");
            }
        }
    }

    /// Takes note of what the log changed.
    async fn observe(&mut self, master: &Master) -> WireResult<()> {
        let applied = *master.consensus.applied().borrow();
        let first = self.seen.is_none();
        if first {
            master.consensus.read().await?;
        }
        let now = Instant::now();
        let seen = self.seen.unwrap_or_default();
        if first || applied.sites_changed != seen.sites_changed {
            self.reload(master, now)?;
        }
        let news = !first && applied.namespace_changed != seen.namespace_changed;
        if news && !self.followed.is_empty() {
            let changed = master.consensus.marks().between(seen.index, applied.index);
            self.changed(changed.as_deref(), now);
        }
        self.seen = Some(applied);
        Ok(())
    }

    fn changed(&mut self, changed: Option<&[InodeId]>, now: Instant) {
        for followed in self.followed.values_mut() {
            if changed.is_none_or(|changed| followed.known.depends_on(changed)) {
                followed.changed(now);
            }
        }
    }

    /// Which sites are live, and where.
    fn reload(&mut self, master: &Master, now: Instant) -> WireResult<()> {
        let all = sites::all(&*master.consensus.state()).map_err(store_failed)?;
        let mut before = std::mem::take(&mut self.followed);
        for site in all {
            let settings = RuleSet::of_settings(&site.settings);
            let Some(path) = site.settings.live else { continue };
            let followed = match before.remove(&site.name) {
                Some(mut followed) if followed.path == path => {
                    if followed.settings != settings {
                        followed.settings = settings;
                        followed.changed(now);
                    }
                    followed
                }
                _ => Followed::new(path, settings, now),
            };
            self.followed.insert(site.name, followed);
        }
        self.say(master);
        Ok(())
    }

    /// Seals a site because a user asks for it.
    async fn answer(&mut self, master: &Master, site: &SiteName) -> WireResult<Published> {
        self.observe(master).await?;
        let deadline = Instant::now() + limits::SEAL_DEADLINE / 2;
        match self.seal(master, site, true, deadline).await {
            Ok(Some(published)) => Ok(published),
            Ok(None) => Err(WireError::internal("a seal that was asked for was not published")),
            Err(error) => Err(error),
        }
    }

    async fn seal(
        &mut self,
        master: &Master,
        site: &SiteName,
        forced: bool,
        deadline: Instant,
    ) -> WireResult<Option<Published>> {
        let Some(followed) = self.followed.get_mut(site) else {
            return Err(WireError::not_found(format!("site {site} follows no directory")));
        };
        followed.dirty = None;
        let Followed { known, rules, path, .. } = followed;
        let sealing = self.sealer.seal(master, (known, rules), site, path, forced, deadline);
        let sealed = tokio::time::timeout_at(deadline, sealing).await;
        let sealed = sealed.unwrap_or_else(|_| Err(late().into()));
        let now = Instant::now();
        let before = followed.retry.take();
        let (note, answer) = match sealed {
            Ok(published) => (None, Ok(published)),
            Err(Unsealed::Absent) => {
                let message = format!("site {site} follows {path}, which does not exist (yet)");
                (None, Err(WireError::not_found(message)))
            }
            Err(Unsealed::Problems(problems)) => {
                let message = format!("live site {site}: not sealed: {problems}");
                (Some(message.clone()), Err(WireError::invalid(message)))
            }
            Err(Unsealed::Failed(error)) => {
                let pause = before.map_or(RETRY_MIN, |(pause, _)| pause * 2);
                let pause = pause.min(RETRY_MAX);
                // Whatever was read may be half of it.
                followed.known = Known::default();
                followed.changed(now);
                followed.retry = Some((pause, now + pause));
                let note = format!("live site {site}: last seal failed: {error}");
                tracing::warn!("{note}");
                (Some(note), Err(error))
            }
        };
        followed.note = note;
        self.trim();
        self.say(master);
        answer
    }

    /// Keeps memory bounded: what was read is forgotten where it is too much, not what it depended
    /// on.
    fn trim(&mut self) {
        let mut kept = 0;
        for followed in self.followed.values_mut() {
            kept += followed.known.len();
            if kept > INODES_KEPT {
                kept -= followed.known.len();
                followed.known.trim();
            }
        }
    }

    fn say(&self, master: &Master) {
        master.live.note(self.followed.values().filter_map(|it| it.note.clone()).collect());
    }
}

async fn pause(master: &Master, pause: Duration) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = master.shutdown.wait() => {}
    }
}

fn late() -> WireError {
    WireError::new(Code::Deadline, "it took too long")
}
