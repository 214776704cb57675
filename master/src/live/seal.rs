//! Sealing one site: look, build, store the new pages, admit them, propose.

use std::collections::HashSet;
use std::sync::Arc;

use atoll_net::{Context, TraceContext};
use atoll_proto::error::WireResult;
use atoll_proto::manifest::build::{BuiltManifest, BuiltPage, build};
use atoll_proto::master::{AdmitPage, Change, Changed, MasterResponse, ObjectKind};
use atoll_proto::publish::Published;
use atoll_proto::receipt::Receipt;
use atoll_proto::rules::stored::StoredRules;
use atoll_proto::{
    AliasName, ChunkId, Code, DeployId, Seq, SessionId, SiteName, WireError, limits,
};
use bytes::Bytes;
use tokio::time::Instant;

use super::known::{Known, Look};
use super::marks::Marks;
use super::rules::{self, Compiled, Source};
use super::walk::{Walked, walk};
use crate::auth::Principal;
use crate::operation::{Operation, Outcome, RootFacts, Seal};
use crate::ops::change::{self, Numbers, store_failed};
use crate::server::Master;
use crate::store::rocks::Rocks;
use crate::store::{StoreError, aliases, live, meta, objects, sites};

/// How often rules are compiled for one seal, when they change meanwhile.
const COMPILATIONS_MAX: usize = 3;
/// Children that one admission may name, so that its receipts stay small.
const ADMIT_CHILDREN: usize = 8_000;

/// The session in which one master's sealer changes things.
#[derive(Debug, Default)]
pub(super) struct Sealer {
    /// With when it was last used.
    session: Option<(SessionId, Instant)>,
    number: u64,
}

/// Why a site was not sealed.
#[derive(Debug)]
pub(super) enum Unsealed {
    /// Its directory does not exist: wait until it does.
    Absent,
    /// Something in it cannot be served: wait until that changes.
    Problems(String),
    /// Something failed that may work later.
    Failed(WireError),
}

impl From<WireError> for Unsealed {
    fn from(error: WireError) -> Self {
        Self::Failed(error)
    }
}

/// What a look at a site's directory came to.
enum Looked {
    Absent,
    Problems(String),
    /// Rules must be compiled from this first.
    Rules(Source),
    Built(Built),
}

struct Built {
    manifest: BuiltManifest,
    /// Its pages that are not admitted yet, children first.
    new: Vec<BuiltPage>,
    /// Where `production` points, and since when.
    current: Option<(DeployId, Seq)>,
    /// What the directory was last sealed as.
    sealed: Option<DeployId>,
}

impl Sealer {
    /// Seals a site's directory, and publishes it when that is called for: it is not what was
    /// sealed last, or a user asks for it and it is not what is served.
    pub(super) async fn seal(
        &mut self,
        master: &Master,
        (known, rules): (&mut Known, &mut Compiled),
        site: &SiteName,
        path: &str,
        forced: bool,
        deadline: Instant,
    ) -> Result<Option<Published>, Unsealed> {
        master.consensus.read().await?;
        let mut compilations = 0;
        let built = loop {
            match look(master, known, rules, site, path).await? {
                Looked::Absent => return Err(Unsealed::Absent),
                Looked::Problems(problems) => return Err(Unsealed::Problems(problems)),
                Looked::Rules(source) if compilations < COMPILATIONS_MAX => {
                    compilations += 1;
                    let compiled = rules::compile(master, &source, deadline).await?;
                    let content = compiled.content.clone();
                    self.store_rules(master, compiled, deadline).await?;
                    *rules = Compiled::new(source, content);
                }
                Looked::Rules(_) => {
                    let message = "its rules change faster than they can be compiled";
                    return Err(WireError::new(Code::Unavailable, message).into());
                }
                Looked::Built(built) => break built,
            }
        };
        let deploy = built.manifest.root;
        if built.sealed == Some(deploy) {
            match built.current {
                Some((current, seq)) if current == deploy => {
                    let deploy = Some(deploy);
                    return Ok(Some(Published { seq, deploy, previous: deploy }));
                }
                // Somebody went back to another deploy, and nothing has changed since.
                _ if !forced => return Ok(None),
                _ => {}
            }
        }
        let new = built.new.len();
        self.store(master, built.new, deadline).await?;
        let BuiltManifest { files, bytes, .. } = built.manifest;
        let seal = Seal {
            site: site.clone(),
            live: path.to_owned(),
            deploy,
            root: RootFacts { files, bytes },
            current: built.current.map(|(current, _)| current),
            forced,
        };
        let principal = own(master);
        let numbers = self.numbers(master, &principal, deadline).await?;
        let changed = change::seal(master, &principal, numbers, seal, deadline).await;
        match self.checked(changed)? {
            Changed::Site(published) => {
                tracing::info!(%site, %deploy, files, new_pages = new, "sealed a live site");
                Ok(Some(published))
            }
            other => Err(missing(&other).into()),
        }
    }

    /// Stores pages and admits them, children first.
    async fn store(
        &mut self,
        master: &Master,
        pages: Vec<BuiltPage>,
        deadline: Instant,
    ) -> WireResult<()> {
        let mut batch: Vec<BuiltPage> = Vec::new();
        let mut children = 0;
        let last = pages.len();
        for (at, page) in (1..).zip(pages) {
            children += page.references.len() + 1;
            batch.push(page);
            if children >= ADMIT_CHILDREN || at == last {
                children = 0;
                self.store_some(master, std::mem::take(&mut batch), deadline).await?;
            }
        }
        Ok(())
    }

    async fn store_some(
        &mut self,
        master: &Master,
        pages: Vec<BuiltPage>,
        deadline: Instant,
    ) -> WireResult<()> {
        let chunks: Vec<_> = pages.into_iter().map(|page| (page.id, page.bytes)).collect();
        self.store_chunks(master, ObjectKind::Page, chunks, deadline).await
    }

    /// Stores the chunks of rules, so that a root page may refer to them.
    async fn store_rules(
        &mut self,
        master: &Master,
        rules: StoredRules,
        deadline: Instant,
    ) -> WireResult<()> {
        if rules.chunks.is_empty() {
            return Ok(());
        }
        self.store_chunks(master, ObjectKind::Data, rules.chunks, deadline).await
    }

    async fn store_chunks(
        &mut self,
        master: &Master,
        kind: ObjectKind,
        chunks: Vec<(ChunkId, Bytes)>,
        deadline: Instant,
    ) -> WireResult<()> {
        let principal = own(master);
        let numbers = self.numbers(master, &principal, deadline).await?;
        let admitted = chunks.iter().map(|(id, _)| AdmitPage { id: *id, kind }).collect();
        let receipts = master.put_chunks(numbers.session, &chunks, deadline).await?;
        let changed = admit(master, &principal, numbers, admitted, receipts, deadline).await;
        match self.checked(changed)? {
            Changed::Admitted => Ok(()),
            other => Err(missing(&other)),
        }
    }

    /// The numbers of the next request, in a session that is opened when there is none.
    async fn numbers(
        &mut self,
        master: &Master,
        principal: &Principal,
        deadline: Instant,
    ) -> WireResult<Numbers> {
        let now = Instant::now();
        let fresh = |used: Instant| now - used < limits::SESSION_LIFETIME / 2;
        let session = match self.session {
            Some((session, used)) if fresh(used) => session,
            _ => {
                *self = Self::default();
                let (name, owner) = ("live sites".to_owned(), principal.id.clone());
                let operation = Operation::OpenSession { name, owner };
                match master.consensus.propose(&operation, deadline).await? {
                    Outcome::Session(session) => session,
                    other => return Err(WireError::internal(format!("a session: {other:?}"))),
                }
            }
        };
        self.session = Some((session, now));
        // One request at a time: all earlier ones are answered, or nobody waits for them.
        self.number += 1;
        Ok(Numbers { session, number: self.number, acked_below: self.number })
    }

    /// A session that failed in any way is not used again.
    fn checked(&mut self, changed: WireResult<Changed>) -> WireResult<Changed> {
        if changed.is_err() {
            *self = Self::default();
        }
        changed
    }
}

fn own(master: &Master) -> Principal {
    Principal::own(&master.endpoint.identity_peer().name)
}

fn missing(changed: &Changed) -> WireError {
    let message = match changed {
        Changed::Missing { ids } => format!("{} chunks went missing meanwhile", ids.len()),
        other => format!("a seal was answered with {other:?}"),
    };
    WireError::new(Code::Unavailable, message)
}

async fn admit(
    master: &Master,
    principal: &Principal,
    numbers: Numbers,
    pages: Vec<AdmitPage>,
    receipts: Vec<Receipt>,
    deadline: Instant,
) -> WireResult<Changed> {
    let context = Context {
        peer: master.endpoint.identity_peer().clone(),
        remote: master.addr(),
        deadline,
        token: None,
        trace: TraceContext::root(),
    };
    let change = Change::Admit { pages, receipts };
    match change::change(master, &context, principal, numbers, change).await? {
        MasterResponse::Changed { reply, .. } => Ok(reply),
        _ => Err(WireError::internal("an admission was answered with something else")),
    }
}

/// Looks at the directory as the state has it now, where waiting harms nobody.
async fn look(
    master: &Master,
    known: &mut Known,
    rules: &Compiled,
    site: &SiteName,
    path: &str,
) -> WireResult<Looked> {
    let (site, path, rules) = (site.clone(), path.to_owned(), rules.clone());
    let (state, marks) = (master.consensus.state(), master.consensus.marks());
    let mut lent = std::mem::take(known);
    let looked = atoll_net::task::spawn_blocking("seal", move || {
        let looked = look_now(&state, &marks, &mut lent, &rules, &site, &path);
        (lent, looked)
    });
    let (back, looked) = looked.await.map_err(|error| WireError::internal(error.to_string()))?;
    *known = back;
    looked.map_err(store_failed)
}

fn look_now(
    state: &Arc<Rocks>,
    marks: &Marks,
    known: &mut Known,
    rules: &Compiled,
    site: &SiteName,
    path: &str,
) -> Result<Looked, StoreError> {
    let view = state.view();
    let index = meta::applied(&view)?.map_or(0, |log_id| log_id.index);
    known.refresh(marks, index);
    let mut look = Look::new(&view, known);
    let walked = walk(&mut look, path);
    metrics::counter!("atoll_master_live_reads_total").increment(look.reads);
    look.finish();
    let entries = match walked? {
        Walked::Absent => return Ok(Looked::Absent),
        Walked::Problems(problems) => return Ok(Looked::Problems(problems)),
        Walked::Files(entries) => entries,
    };
    let settings = sites::get(&view, site)?.map(|site| site.settings).unwrap_or_default();
    let source = Source::new(&entries, &settings);
    let Some(rules) = rules.content(&source, &view)? else { return Ok(Looked::Rules(source)) };
    let manifest = match build(entries, rules) {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Looked::Problems(format!("{path}: {error}"))),
    };
    let mut new = Vec::new();
    let mut seen = HashSet::new();
    for page in &manifest.pages {
        let known = objects::get(&view, &page.id)?;
        let admitted = known.is_some_and(|object| object.kind == ObjectKind::Page);
        if !admitted && seen.insert(page.id) {
            new.push(page.clone());
        }
    }
    metrics::counter!("atoll_master_live_pages_total").increment(new.len() as u64);
    let record = aliases::get(&view, site, &AliasName::production())?;
    let current = record.map(|record| (record.alias.deploy, record.alias.seq));
    let sealed = live::sealed(&view, site)?;
    Ok(Looked::Built(Built { manifest, new, current, sealed }))
}
