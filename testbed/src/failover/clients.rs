//! Clients that change names and an alias, through the client library as every role uses it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use atoll_client::{ClientError, Cluster};
use atoll_proto::master::{Change, Changed, MasterRequest, MasterResponse};
use atoll_proto::namespace::{Caller, NamespaceOp, NamespaceQuery, NamespaceReply, RenameMode};
use atoll_proto::publish::SiteOp;
use atoll_proto::{
    AliasName, ByteName, Code, DeployId, InodeId, Retry, SessionId, SiteName, limits,
};
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;

use super::history::{
    Alias, AliasAnswer, AliasAsk, AliasOp, Deploy, History, NameAnswer, NameAsk, NameOp,
};
use super::micros;
use crate::linear::Model;

/// The two names in each directory.
pub(super) const NAMES: [&str; 2] = ["a", "b"];
/// How long a client pauses between two operations, at most.
const PAUSE_MS_MAX: u64 = 12;
/// What a client that repeats its requests waits for one of them.
const REPEAT_DEADLINE: Duration = Duration::from_secs(20);

/// What all clients of a round act on.
pub(super) struct Stage {
    /// Directories with two names each.
    pub(super) directories: Vec<InodeId>,
    /// The site.
    pub(super) site: SiteName,
    /// The alias.
    pub(super) alias: AliasName,
    /// Where it may point at.
    pub(super) deploys: Vec<DeployId>,
    /// What they saw.
    pub(super) history: Mutex<History>,
    /// When time began.
    pub(super) began: Instant,
}

impl Stage {
    fn deploy(&self, id: DeployId) -> Option<Deploy> {
        self.deploys.iter().position(|known| *known == id)
    }

    fn note(&self, record: impl FnOnce(&mut History)) {
        record(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// One client.
pub(super) struct Client {
    /// From 0; also makes the owners of its files different from others'.
    pub(super) number: usize,
    /// The library.
    pub(super) cluster: Cluster,
    /// For one that sends every request several times: another handle, and its session.
    pub(super) repeats: Option<Repeats>,
    /// Where its choices come from.
    pub(super) rng: StdRng,
}

/// What sending a request several times needs.
pub(super) struct Repeats {
    other: Cluster,
    session: SessionId,
    next: u64,
}

impl Repeats {
    /// A session of its own.
    pub(super) async fn open(cluster: &Cluster, other: Cluster) -> Result<Self> {
        let request = MasterRequest::OpenSession { name: "repeats".to_owned() };
        match cluster.master(&request, REPEAT_DEADLINE).await? {
            MasterResponse::Session { session, .. } => Ok(Self { other, session, next: 1 }),
            other => bail!("opening a session gave {other:?}"),
        }
    }
}

/// An answer that settles what became of a change.
type Settled = Result<Changed, Code>;

impl Client {
    /// Acts until it is told to stop.
    ///
    /// # Errors
    /// When it is answered with what no operation of its own can be answered with.
    pub(super) async fn act(
        &mut self,
        stage: Arc<Stage>,
        stop: watch::Receiver<bool>,
    ) -> Result<()> {
        let mut owner = u32::try_from(self.number)? * 1_000_000;
        // Guesses of where the alias points at, so that many of its swaps win.
        let mut alias = Alias.start();
        while !*stop.borrow() {
            if self.rng.random_bool(0.3) {
                self.on_alias(&stage, &mut alias).await?;
            } else {
                owner += 1;
                self.on_names(&stage, owner).await?;
            }
            let pause = self.rng.random_range(0..=PAUSE_MS_MAX);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Ok(())
    }

    /// Looks at everything, once all is well.
    ///
    /// # Errors
    /// When anything stays unanswered.
    pub(super) async fn look_at_all(&mut self, stage: &Stage) -> Result<()> {
        for directory in 0..stage.directories.len() {
            let answered = self.ask_names(stage, directory, NameAsk::List).await?;
            answered.context("a directory is not listed, though all is well")?;
        }
        let answered = self.ask_alias(stage, AliasAsk::Show).await?;
        answered.context("the alias is not shown, though all is well")?;
        Ok(())
    }

    async fn on_names(&mut self, stage: &Stage, owner: u32) -> Result<()> {
        let directory = self.rng.random_range(0..stage.directories.len());
        let at = self.rng.random_range(0..NAMES.len());
        let ask = match self.rng.random_range(0..10) {
            0..=2 => NameAsk::Make(at, owner),
            3 => NameAsk::Remove(at),
            4..=6 => NameAsk::Exchange,
            7 => NameAsk::Look(at),
            _ => NameAsk::List,
        };
        self.ask_names(stage, directory, ask).await.map(drop)
    }

    async fn ask_names(
        &mut self,
        stage: &Stage,
        directory: usize,
        ask: NameAsk,
    ) -> Result<Option<NameAnswer>> {
        let parent = stage.directories[directory];
        let name = |at: usize| ByteName(NAMES[at].as_bytes().to_vec());
        let asked = micros(stage.began);
        let op = match ask {
            NameAsk::Look(_) | NameAsk::List => None,
            NameAsk::Make(at, owner) => Some(NamespaceOp::Create {
                parent,
                name: name(at),
                mode: 0o644,
                caller: Caller { uid: owner, gid: 0 },
                exclusive: true,
            }),
            NameAsk::Remove(at) => Some(NamespaceOp::Unlink { parent, name: name(at) }),
            NameAsk::Exchange => Some(NamespaceOp::Rename {
                parent,
                name: name(0),
                new_parent: parent,
                new_name: name(1),
                mode: RenameMode::Exchange,
            }),
        };
        let answer = match op {
            Some(op) => match self.change(stage, Change::Namespace(op)).await? {
                Some((at, Ok(Changed::Namespace(_)))) => Some((at, NameAnswer::Done)),
                Some((at, Err(Code::Exists))) => Some((at, NameAnswer::Exists)),
                Some((at, Err(Code::NotFound))) => Some((at, NameAnswer::Absent)),
                Some((_, other)) => bail!("{ask:?} was answered with {other:?}"),
                None => None,
            },
            None => {
                let answer = self.look(parent, ask).await?;
                answer.map(|answer| (micros(stage.began), answer))
            }
        };
        let told = answer.map(|(_, answer)| answer);
        let op = NameOp { client: self.number, input: ask, asked, answer };
        stage.note(|history| history.names.entry(directory).or_default().push(op));
        Ok(told)
    }

    async fn look(&self, parent: InodeId, ask: NameAsk) -> Result<Option<NameAnswer>> {
        let query = match ask {
            NameAsk::Look(at) => {
                NamespaceQuery::Lookup { parent, name: ByteName(NAMES[at].as_bytes().to_vec()) }
            }
            _ => NamespaceQuery::ReadDir { inode: parent, after: None, limit: 10 },
        };
        match self.cluster.query(query).await {
            Ok(NamespaceReply::Attr { attr, .. }) => Ok(Some(NameAnswer::Owner(attr.uid))),
            Ok(NamespaceReply::Entries { entries, .. }) => {
                let owner = |name: &&str| {
                    let found = entries.iter().find(|entry| entry.name.0 == name.as_bytes());
                    found.map(|entry| entry.attr.uid)
                };
                let [a, b] = NAMES.each_ref().map(owner);
                Ok(Some(NameAnswer::Owners([a, b])))
            }
            Ok(other) => bail!("{ask:?} was answered with {other:?}"),
            Err(error) => match settled(error)? {
                Some(Code::NotFound) => Ok(Some(NameAnswer::Absent)),
                Some(code) => bail!("{ask:?} was refused with {code:?}"),
                None => Ok(None),
            },
        }
    }

    async fn on_alias(&mut self, stage: &Stage, guess: &mut Option<Deploy>) -> Result<()> {
        let show = self.rng.random_bool(0.4);
        let to = self.rng.random_range(0..stage.deploys.len());
        let ask = if show { AliasAsk::Show } else { AliasAsk::Move { from: *guess, to } };
        match self.ask_alias(stage, ask).await? {
            Some(AliasAnswer::At(at)) => *guess = at,
            Some(AliasAnswer::Moved(..)) => *guess = Some(to),
            Some(AliasAnswer::Conflict) => {
                if let Some(AliasAnswer::At(at)) = self.ask_alias(stage, AliasAsk::Show).await? {
                    *guess = at;
                }
            }
            None => {}
        }
        Ok(())
    }

    async fn ask_alias(&mut self, stage: &Stage, ask: AliasAsk) -> Result<Option<AliasAnswer>> {
        let asked = micros(stage.began);
        let known = |id: DeployId| stage.deploy(id).with_context(|| format!("deploy {id} is new"));
        let answer = match ask {
            AliasAsk::Show => {
                let request = MasterRequest::Site { site: stage.site.clone() };
                match self.cluster.master(&request, limits::METADATA_DEADLINE).await {
                    Ok(MasterResponse::Site { aliases, .. }) => {
                        let found = aliases.iter().find(|alias| alias.alias == stage.alias);
                        let at = found.map(|alias| known(alias.deploy)).transpose()?;
                        Some((micros(stage.began), AliasAnswer::At(at)))
                    }
                    Ok(other) => bail!("{ask:?} was answered with {other:?}"),
                    Err(error) => match settled(error)? {
                        Some(code) => bail!("{ask:?} was refused with {code:?}"),
                        None => None,
                    },
                }
            }
            AliasAsk::Move { from, to } => {
                let op = SiteOp::MoveAlias {
                    site: stage.site.clone(),
                    alias: stage.alias.clone(),
                    deploy: Some(stage.deploys[to]),
                    if_current: Some(from.map(|from| stage.deploys[from])),
                };
                match self.change(stage, Change::Site(op)).await? {
                    Some((at, Ok(Changed::Site(published)))) => {
                        let previous = published.previous.map(known).transpose()?;
                        Some((at, AliasAnswer::Moved(previous, published.seq.0)))
                    }
                    Some((at, Err(Code::Conflict))) => Some((at, AliasAnswer::Conflict)),
                    Some((_, other)) => bail!("{ask:?} was answered with {other:?}"),
                    None => None,
                }
            }
        };
        let told = answer.map(|(_, answer)| answer);
        stage.note(|history| {
            history.alias.push(AliasOp { client: self.number, input: ask, asked, answer });
        });
        Ok(told)
    }

    /// Makes a change; when it is known what became of it, since when and what.
    async fn change(&mut self, stage: &Stage, change: Change) -> Result<Option<(u64, Settled)>> {
        let Some(repeats) = &mut self.repeats else {
            let answer = match self.cluster.change(change).await {
                Ok((_, changed)) => Some(Ok(changed)),
                Err(error) => settled(error)?.map(Err),
            };
            return Ok(answer.map(|answer| (micros(stage.began), answer)));
        };
        let number = repeats.next;
        repeats.next += 1;
        let session = repeats.session;
        let request = MasterRequest::Change { session, number, acked_below: number, change };
        let send = |cluster: &Cluster, after_ms: u64| {
            let (cluster, request) = (cluster.clone(), request.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                let answer = cluster.master(&request, REPEAT_DEADLINE).await;
                (micros(stage.began), answer)
            }
        };
        let later = [self.rng.random_range(0..5), self.rng.random_range(0..400)];
        let (one, two, three) = tokio::join!(
            send(&self.cluster, 0),
            send(&repeats.other, later[0]),
            send(&repeats.other, later[1])
        );
        let mut first: Option<(u64, Settled, u64)> = None;
        for (at, answer) in [one, two, three] {
            let (answer, index) = match answer {
                Ok(MasterResponse::Changed { index, reply }) => (Ok(reply), index),
                Ok(other) => bail!("a change was answered with {other:?}"),
                Err(error) => match settled(error)? {
                    Some(code) => (Err(code), 0),
                    None => continue,
                },
            };
            match &first {
                Some((_, before, at_index)) if (before, *at_index) != (&answer, index) => {
                    stage.note(|history| {
                        history.wrong.push(format!(
                            "request {number} of session {session} was answered with {before:?} \
                             at index {at_index}, and with {answer:?} at index {index}: {request:?}"
                        ));
                    });
                }
                Some((earlier, ..)) if *earlier <= at => {}
                _ => first = Some((at, answer, index)),
            }
        }
        Ok(first.map(|(at, answer, _)| (at, answer)))
    }
}

/// What a failure says about the operation: the refusal, or `None` when nothing is known.
fn settled(error: ClientError) -> Result<Option<Code>> {
    match error {
        ClientError::Refused(refusal) if refusal.retry == Retry::Never => match refusal.code {
            Code::Exists | Code::NotFound | Code::Conflict
                if !refusal.message.contains("session") =>
            {
                Ok(Some(refusal.code))
            }
            code => bail!("refused with {code:?}: {refusal}"),
        },
        ClientError::Refused(_)
        | ClientError::Unreachable { .. }
        | ClientError::Deadline { .. } => Ok(None),
        other => Err(other.into()),
    }
}
