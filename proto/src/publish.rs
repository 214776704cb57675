//! Sites, aliases, deploys, and the log of changes to them that every edge follows.

use serde::{Deserialize, Serialize};

use crate::erase::{Doomed, Named, Parent};
use crate::site::{SiteChanges, SiteSettings};
use crate::{AliasName, ChunkId, DeployId, Seq, SiteName, limits};

/// A site as its owner configured it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Its name: one DNS label.
    pub name: SiteName,
    /// Host names of its own beside `<site>.<zone>`; lower case, without a final dot.
    pub domains: Vec<String>,
    /// When it was created, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// What else its owner chose.
    pub settings: SiteSettings,
}

/// Where an alias points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// Of which site.
    pub site: SiteName,
    /// Its name.
    pub alias: AliasName,
    /// What it points at.
    pub deploy: DeployId,
    /// Since which log entry.
    pub seq: Seq,
    /// Since when, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Where it pointed before, latest first, without `deploy`, each deploy once; at most
    /// `limits::EARLIER_DEPLOYS_MAX`.
    pub earlier: Vec<Earlier>,
    /// When it is removed, milliseconds since the Unix epoch; `None`: never.
    pub expires_ms: Option<u64>,
}

/// A deploy that an alias pointed at before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// Which.
    pub deploy: DeployId,
    /// When another took its place, milliseconds since the Unix epoch.
    pub replaced_ms: u64,
}

/// A deploy the cluster holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deploy {
    /// The hash of its manifest's root page.
    pub id: DeployId,
    /// Of which site.
    pub site: SiteName,
    /// When it was first published, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// What its author wrote.
    pub message: String,
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Order of the deploys of a site: the log index of its (latest) publication.
    pub seq: Seq,
}

/// Which cached answers an invalidation is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pattern {
    /// Exactly this path, `/`-rooted.
    Path(String),
    /// Every path that starts with this, `/`-rooted.
    Prefix(String),
    /// Everything with this cache tag.
    Tag(String),
    /// The whole site.
    All,
}

/// One entry of the publish log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishEntry {
    /// Its place: a log index. Gaps are normal.
    pub seq: Seq,
    /// When, milliseconds since the Unix epoch, by the leader's clock.
    pub at_ms: u64,
    /// What changed.
    pub event: PublishEvent,
}

/// What changed. Variant numbers are stable on the wire and in the log: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PublishEvent {
    /// A site was created or its configuration changed.
    SiteSet(Site),
    /// A site was removed with all its aliases.
    SiteRemoved(SiteName),
    /// An alias points somewhere else.
    AliasSet(Alias),
    /// An alias was removed.
    AliasRemoved {
        /// Of which site.
        site: SiteName,
        /// Which.
        alias: AliasName,
    },
    /// Cached answers are to be dropped (or revalidated when soft).
    Invalidate {
        /// Of which site.
        site: SiteName,
        /// Which answers, at most `limits::INVALIDATE_PATTERNS_MAX`.
        patterns: Vec<Pattern>,
        /// Revalidate instead of drop.
        soft: bool,
    },
    /// A deploy was removed: its own host name leads nowhere any more. That a deploy was added is
    /// said by the `AliasSet` of its publication.
    DeployRemoved {
        /// Of which site.
        site: SiteName,
        /// Which.
        deploy: DeployId,
    },
    /// The list of erased chunks has changed: read what is new of it
    /// ([`crate::master::MasterRequest::Erased`]) and carry it out before anything is acknowledged.
    Erased {
        /// For the sake of which site.
        site: SiteName,
    },
}

impl PublishEvent {
    /// The site it is about.
    pub fn site(&self) -> &SiteName {
        match self {
            Self::SiteSet(site) => &site.name,
            Self::AliasSet(alias) => &alias.site,
            Self::SiteRemoved(site)
            | Self::AliasRemoved { site, .. }
            | Self::DeployRemoved { site, .. }
            | Self::Invalidate { site, .. }
            | Self::Erased { site } => site,
        }
    }
}

/// The whole state an edge needs when it cannot resume from its last seq.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishSnapshot {
    /// The state is as of this entry.
    pub seq: Seq,
    /// All sites.
    pub sites: Vec<Site>,
    /// All aliases.
    pub aliases: Vec<Alias>,
    /// The deploys that have host names of their own.
    pub deploys: Vec<SiteDeploys>,
}

/// The deploys of a site that have host names of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteDeploys {
    /// Of which site.
    pub site: SiteName,
    /// Which, the latest last; at most `limits::NAMED_DEPLOYS_MAX`.
    pub deploys: Vec<DeployId>,
}

/// A change of sites, aliases or deploys that a user asks for. Variant numbers are stable on the
/// wire and in the log: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteOp {
    /// Create a site; `Exists` when there is one.
    Create {
        /// Its name.
        site: SiteName,
        /// Its own host names.
        domains: Vec<String>,
    },
    /// Replace the host names of a site.
    SetDomains {
        /// Which site.
        site: SiteName,
        /// Its own host names.
        domains: Vec<String>,
    },
    /// Remove a site, its aliases and deploys.
    Remove {
        /// Which site.
        site: SiteName,
    },
    /// Record a deploy whose manifest pages are admitted, and point an alias at it, atomically.
    Publish {
        /// Which site.
        site: SiteName,
        /// Which alias.
        alias: AliasName,
        /// The manifest's root page.
        deploy: DeployId,
        /// Compare-and-swap: the deploy the alias must point at now; `Some(None)`: at nothing.
        if_current: Option<Option<DeployId>>,
        /// What the author wrote.
        message: String,
        /// Create the site when it does not exist.
        create: bool,
    },
    /// Point an alias at a deploy the site has (rollback, promote).
    MoveAlias {
        /// Which site.
        site: SiteName,
        /// Which alias.
        alias: AliasName,
        /// Where to; `None`: at the deploy published before the current one.
        deploy: Option<DeployId>,
        /// Compare-and-swap, as in `Publish`.
        if_current: Option<Option<DeployId>>,
    },
    /// Forget a deploy that no alias points at.
    RemoveDeploy {
        /// Which site.
        site: SiteName,
        /// Which deploy.
        deploy: DeployId,
    },
    /// Tell every edge to drop cached answers.
    Invalidate {
        /// Which site.
        site: SiteName,
        /// Which answers.
        patterns: Vec<Pattern>,
        /// Revalidate instead of drop.
        soft: bool,
    },
    /// Create a site with settings; `Exists` when there is one.
    CreateWith {
        /// Its name.
        site: SiteName,
        /// Its own host names.
        domains: Vec<String>,
        /// What else its owner chose.
        settings: SiteSettings,
    },
    /// Change what is named of a site's configuration, and leave the rest.
    Configure {
        /// Which site.
        site: SiteName,
        /// What to change.
        changes: SiteChanges,
    },
    /// As `Publish`, and the alias is removed after a while. Never for `production`.
    PublishFor {
        /// Which site.
        site: SiteName,
        /// Which alias.
        alias: AliasName,
        /// The manifest's root page.
        deploy: DeployId,
        /// Compare-and-swap, as in `Publish`.
        if_current: Option<Option<DeployId>>,
        /// What the author wrote.
        message: String,
        /// Create the site when it does not exist.
        create: bool,
        /// After so many seconds, at most `limits::ALIAS_LIFETIME_MAX`.
        lifetime_secs: u64,
    },
    /// As `MoveAlias`, and the alias is removed after a while. Never for `production`.
    MoveAliasFor {
        /// Which site.
        site: SiteName,
        /// Which alias.
        alias: AliasName,
        /// Where to, as in `MoveAlias`.
        deploy: Option<DeployId>,
        /// Compare-and-swap, as in `Publish`.
        if_current: Option<Option<DeployId>>,
        /// After so many seconds, at most `limits::ALIAS_LIFETIME_MAX`.
        lifetime_secs: u64,
    },
    /// Erase chunks, wherever they are: all of this or, with `Conflict`, nothing, when something
    /// leads to one of them that the search did not find.
    Erase(Box<Erase>),
    /// Let chunks be uploaded again that were erased.
    Unerase {
        /// For the sake of which site; it may be gone.
        site: SiteName,
        /// Which, at most `limits::ERASE_CHUNKS_MAX`. Those that were never erased are passed over.
        chunks: Vec<ChunkId>,
        /// Lists that are withheld, at most as many: those are lifted of which no chunk is erased any
        /// more.
        lists: Vec<ChunkId>,
    },
}

/// The fields of [`SiteOp::Erase`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erase {
    /// For the sake of which site.
    pub site: SiteName,
    /// Which; with `withheld` at most `limits::ERASE_CHUNKS_MAX`.
    pub chunks: Vec<Doomed>,
    /// List chunks of the contents that lose bytes.
    pub withheld: Vec<ChunkId>,
    /// Everything that leads to these chunks, at most `limits::ERASE_PARENTS_MAX`.
    pub parents: Vec<Parent>,
    /// The paths that were given, with what is erased of each.
    pub named: Vec<Named>,
}

/// The answer to a [`SiteOp`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The log entry: wait for the edges to have applied it.
    pub seq: Seq,
    /// The deploy the alias points at now, for operations on an alias.
    pub deploy: Option<DeployId>,
    /// The deploy it pointed at before.
    pub previous: Option<DeployId>,
}

/// Checks a host name given as a site's own domain.
///
/// # Errors
/// With the rule it breaks.
pub fn check_domain(domain: &str) -> Result<(), String> {
    let bad = |rule: &str| Err(format!("domain {domain:?} {rule}"));
    if domain.is_empty() || domain.len() > 253 {
        return bad("must have 1 to 253 characters");
    }
    for label in domain.split('.') {
        let fine = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
        if label.is_empty() || label.len() > limits::SITE_NAME_BYTES_MAX {
            return bad("has a label that is empty or longer than 63 characters");
        }
        if !label.bytes().all(fine) || label.starts_with('-') || label.ends_with('-') {
            return bad("has a label with characters other than a-z, 0-9, '-' and '_'");
        }
    }
    Ok(())
}
