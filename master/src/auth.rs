//! Who may ask for what.
//!
//! Nodes are known by their certificates and may do what their role needs. Users come with the
//! role client and a token; the token's grant must allow the verb the request needs, on the site
//! it is about.

use atoll_net::{Context, Role};
use atoll_proto::cluster::NodeInfo;
use atoll_proto::error::WireResult;
use atoll_proto::master::{Change, Grant, MasterRequest, Verb};
use atoll_proto::publish::SiteOp;
use atoll_proto::{ChunkId, Code, SiteName, WireError};

use crate::ops::change::store_failed;
use crate::server::Master;
use crate::store::tokens::{self, TokenRecord};

/// Somebody who may make this request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    /// For sessions: `token 3` or `edge edge-1`.
    pub(crate) id: String,
    role: Role,
    name: String,
    grant: Option<Grant>,
}

impl Principal {
    /// The master itself, for what it changes on its own.
    pub(crate) fn own(name: &str) -> Self {
        let (id, name) = (format!("master {name}"), name.to_owned());
        Self { id, role: Role::Master, name, grant: None }
    }

    /// Whether this is the node itself.
    pub(crate) fn is_node(&self, info: &NodeInfo) -> bool {
        self.role != Role::Client && self.name == info.name
    }

    /// Whether this token may know of a site.
    pub(crate) fn sees(&self, site: &SiteName) -> bool {
        let scope = self.grant.as_ref().and_then(|grant| grant.site.as_ref());
        scope.is_none_or(|scope| scope == site)
    }
}

/// Lets a request pass or says what is missing.
///
/// # Errors
/// `Denied`, or `ForeignCluster` for a node of another cluster.
pub(crate) async fn authorise(
    master: &Master,
    context: &Context,
    request: &MasterRequest,
) -> WireResult<Principal> {
    let peer = &context.peer;
    if peer.cluster != master.settings.cluster {
        let message = format!(
            "{} {:?} belongs to cluster {}, not to {}: check its configuration",
            peer.role, peer.name, peer.cluster, master.settings.cluster
        );
        return Err(WireError::new(Code::ForeignCluster, message));
    }
    if peer.role != Role::Client {
        return node(peer.role, &peer.name, request);
    }
    let record = token(master, context).await?;
    check_grant(&record.grant, request, crate::server::now_ms())?;
    Ok(Principal {
        id: format!("token {}", record.id),
        role: Role::Client,
        name: peer.name.clone(),
        grant: Some(record.grant),
    })
}

fn node(role: Role, name: &str, request: &MasterRequest) -> WireResult<Principal> {
    let allowed = match request {
        MasterRequest::Register { .. } | MasterRequest::Heartbeat { .. } => {
            matches!(role, Role::Chunkserver | Role::Edge)
        }
        MasterRequest::Deltas { .. } | MasterRequest::Walk { .. } => role == Role::Chunkserver,
        MasterRequest::Objects { .. } => role == Role::Chunkserver,
        MasterRequest::Erased { .. } => matches!(role, Role::Chunkserver | Role::Edge),
        MasterRequest::Cluster { .. } => true,
        MasterRequest::Watch { .. }
        | MasterRequest::Sites
        | MasterRequest::Site { .. }
        | MasterRequest::Farewell { .. }
        | MasterRequest::Renew { .. }
        | MasterRequest::Enrol { .. }
        | MasterRequest::Relay { .. }
        | MasterRequest::Deploys { .. } => role == Role::Edge,
        MasterRequest::Raft { .. } | MasterRequest::Greet { .. } => role == Role::Master,
        MasterRequest::Masters => true,
        MasterRequest::OpenSession { .. }
        | MasterRequest::Change { .. }
        | MasterRequest::Namespace(_)
        | MasterRequest::Known { .. }
        | MasterRequest::WaitApplied { .. }
        | MasterRequest::Seal { .. }
        | MasterRequest::WaitPublished { .. }
        | MasterRequest::ErasedBy { .. }
        | MasterRequest::Erasures { .. }
        | MasterRequest::Unreferenced { .. }
        | MasterRequest::Status
        | MasterRequest::Audit { .. }
        | MasterRequest::Backup(_)
        | MasterRequest::ChangeMasters(_)
        | MasterRequest::Tokens => false,
    };
    if !allowed {
        let message = format!(
            "{role} {name:?} may not ask this: use a certificate of the right role, or a client \
             with a token"
        );
        return Err(WireError::new(Code::Denied, message));
    }
    Ok(Principal { id: format!("{role} {name}"), role, name: name.to_owned(), grant: None })
}

async fn token(master: &Master, context: &Context) -> WireResult<TokenRecord> {
    let denied = |message: &str| WireError::new(Code::Denied, message);
    let secret = context.token.as_deref().ok_or_else(|| {
        denied("this needs a token: ask an administrator for one (`atoll token create`)")
    })?;
    let hash = ChunkId::of(secret.as_bytes());
    let find = || tokens::get(&*master.consensus.state(), &hash).map_err(store_failed);
    if let Some(record) = find()? {
        return Ok(record);
    }
    // A new leader may not have applied everything yet: only then is it surely unknown.
    master.consensus.read().await?;
    find()?.ok_or_else(|| {
        denied("the token is not known to this cluster: was it removed? ask for a new one")
    })
}

/// Whether a grant allows a request.
fn check_grant(grant: &Grant, request: &MasterRequest, now_ms: u64) -> WireResult<()> {
    let denied = |message: String| Err(WireError::new(Code::Denied, message));
    if grant.expires_ms.is_some_and(|expires| expires <= now_ms) {
        return denied(format!("token {:?} has expired: ask for a new one", grant.name));
    }
    let Some(needs) = needs(request) else {
        return denied("only nodes of the cluster may ask this, not users".to_owned());
    };
    if !needs.verbs.is_empty() && !needs.verbs.iter().any(|verb| grant.verbs.contains(verb)) {
        let verbs: Vec<&str> = needs.verbs.iter().copied().map(word).collect();
        return denied(format!(
            "token {:?} does not allow this: it needs {}",
            grant.name,
            verbs.join(" or ")
        ));
    }
    let Some(scope) = &grant.site else { return Ok(()) };
    match needs.about {
        About::Anything => Ok(()),
        About::Site(site) if site == scope => Ok(()),
        About::Site(site) => {
            denied(format!("token {:?} is for site {scope} only, not for {site}", grant.name))
        }
        About::Everything => denied(format!("token {:?} is for site {scope} only", grant.name)),
    }
}

fn word(verb: Verb) -> &'static str {
    match verb {
        Verb::Read => "read",
        Verb::Write => "write",
        Verb::Deploy => "deploy",
        Verb::Admin => "admin",
    }
}

/// What a request needs.
struct Needs<'a> {
    /// One of these verbs; none: any token will do.
    verbs: &'static [Verb],
    about: About<'a>,
}

/// What a request is about.
enum About<'a> {
    /// Fine for a token of one site.
    Anything,
    /// One site.
    Site(&'a SiteName),
    /// Not for a token of one site.
    Everything,
}

const LOOK: &[Verb] = &[Verb::Read, Verb::Deploy, Verb::Admin];

/// `None`: not for users.
fn needs(request: &MasterRequest) -> Option<Needs<'_>> {
    let needs = |verbs: &'static [Verb], about| Some(Needs { verbs, about });
    match request {
        // What every use of the cluster begins with. `Known` answers by hash only.
        MasterRequest::OpenSession { .. }
        | MasterRequest::Cluster { .. }
        | MasterRequest::Known { .. }
        | MasterRequest::Erased { node: None, .. }
        | MasterRequest::Masters
        | MasterRequest::WaitApplied { .. }
        | MasterRequest::WaitPublished { .. } => needs(&[], About::Anything),
        MasterRequest::Change { change, .. } => Some(needs_change(change)),
        MasterRequest::Namespace(_) => needs(&[Verb::Read, Verb::Write], About::Everything),
        MasterRequest::Sites => needs(LOOK, About::Anything),
        MasterRequest::Site { site } | MasterRequest::Deploys { site, .. } => {
            needs(LOOK, About::Site(site))
        }
        MasterRequest::Seal { site } => needs(&[Verb::Deploy], About::Site(site)),
        MasterRequest::Watch { edge: None, .. } => needs(&[Verb::Read], About::Everything),
        MasterRequest::Objects { .. } => needs(&[Verb::Read, Verb::Admin], About::Everything),
        MasterRequest::Status => needs(&[Verb::Read, Verb::Admin], About::Everything),
        MasterRequest::Tokens
        | MasterRequest::Audit { .. }
        | MasterRequest::ErasedBy { .. }
        | MasterRequest::Erasures { .. }
        | MasterRequest::Unreferenced { .. }
        | MasterRequest::Backup(_)
        | MasterRequest::ChangeMasters(_) => needs(&[Verb::Admin], About::Everything),
        MasterRequest::Watch { edge: Some(_), .. }
        | MasterRequest::Erased { node: Some(_), .. }
        | MasterRequest::Farewell { .. }
        | MasterRequest::Renew { .. }
        | MasterRequest::Enrol { .. }
        | MasterRequest::Relay { .. }
        | MasterRequest::Register { .. }
        | MasterRequest::Heartbeat { .. }
        | MasterRequest::Deltas { .. }
        | MasterRequest::Walk { .. }
        | MasterRequest::Greet { .. }
        | MasterRequest::Raft { .. } => None,
    }
}

fn needs_change(change: &Change) -> Needs<'_> {
    match change {
        Change::Namespace(_) => Needs { verbs: &[Verb::Write], about: About::Everything },
        // About a request of one's own session, and changes nothing.
        Change::Abandon => Needs { verbs: &[], about: About::Anything },
        // Pages belong to no site yet; they are admitted by hash.
        Change::Admit { .. } => {
            Needs { verbs: &[Verb::Write, Verb::Deploy], about: About::Anything }
        }
        Change::TokenCreate { .. }
        | Change::TokenRemove { .. }
        | Change::Node(_)
        | Change::Upkeep(_) => Needs { verbs: &[Verb::Admin], about: About::Everything },
        // What a site's bytes are shared with is nobody's but an administrator's to decide.
        Change::Site(SiteOp::Erase(_) | SiteOp::Unerase { .. }) => {
            Needs { verbs: &[Verb::Admin], about: About::Everything }
        }
        Change::Site(op) => {
            let (verbs, site): (&'static [Verb], _) = match op {
                SiteOp::Erase(erase) => (&[Verb::Admin], &erase.site),
                SiteOp::Create { site, .. }
                | SiteOp::SetDomains { site, .. }
                | SiteOp::CreateWith { site, .. }
                | SiteOp::Configure { site, .. }
                | SiteOp::Unerase { site, .. }
                | SiteOp::Remove { site } => (&[Verb::Admin], site),
                SiteOp::Publish { site, .. }
                | SiteOp::MoveAlias { site, .. }
                | SiteOp::PublishFor { site, .. }
                | SiteOp::MoveAliasFor { site, .. }
                | SiteOp::RemoveDeploy { site, .. }
                | SiteOp::Invalidate { site, .. } => (&[Verb::Deploy], site),
            };
            Needs { verbs, about: About::Site(site) }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use atoll_proto::{NodeId, Seq};

    fn grant(verbs: &[Verb], site: Option<&str>) -> Grant {
        Grant {
            name: "ci".into(),
            verbs: verbs.to_vec(),
            site: site.map(|site| site.parse().unwrap()),
            expires_ms: Some(1000),
        }
    }

    fn publish(site: &str) -> MasterRequest {
        let change = Change::Site(SiteOp::Publish {
            site: site.parse().unwrap(),
            alias: atoll_proto::AliasName::production(),
            deploy: ChunkId::of(b"x"),
            if_current: None,
            message: String::new(),
            create: false,
        });
        MasterRequest::Change {
            session: atoll_proto::SessionId(1),
            number: 1,
            acked_below: 0,
            change,
        }
    }

    #[test]
    fn verb_site_and_expiry_must_all_fit() {
        let deploy = grant(&[Verb::Deploy], Some("blog"));
        assert!(check_grant(&deploy, &publish("blog"), 999).is_ok());
        let expired = check_grant(&deploy, &publish("blog"), 1000).unwrap_err();
        assert!(expired.message.contains("expired"));
        let other = check_grant(&deploy, &publish("shop"), 0).unwrap_err();
        assert!(other.message.contains("blog"), "{other}");
        let read = check_grant(&grant(&[Verb::Read], None), &publish("blog"), 0).unwrap_err();
        assert_eq!(read.code, Code::Denied);
        assert!(read.message.contains("needs deploy"), "{read}");
        assert!(check_grant(&deploy, &MasterRequest::Tokens, 0).is_err());
        assert!(check_grant(&deploy, &MasterRequest::Known { ids: vec![] }, 0).is_ok());
        assert!(check_grant(&deploy, &MasterRequest::Status, 0).is_err());
    }

    #[test]
    fn no_token_makes_a_user_a_node() {
        let all = grant(&[Verb::Read, Verb::Write, Verb::Deploy, Verb::Admin], None);
        let edge = MasterRequest::Watch { after: Seq(0), edge: Some(NodeId(1)), wait_ms: 0 };
        let beat =
            MasterRequest::Heartbeat { node: NodeId(1), ready: true, stat: None, tree: None };
        let enrol = MasterRequest::Enrol { node: NodeId(1) };
        let relay = MasterRequest::Relay { shield: NodeId(1), acks: vec![], renewals: vec![] };
        let raft = MasterRequest::Raft { message: bytes::Bytes::new() };
        for request in [edge, beat, enrol, relay, raft] {
            assert!(check_grant(&all, &request, 0).is_err());
        }
    }

    #[test]
    fn each_role_may_do_its_own_work_only() {
        let raft = MasterRequest::Raft { message: bytes::Bytes::new() };
        assert!(node(Role::Master, "m", &raft).is_ok());
        assert!(node(Role::Edge, "e", &raft).is_err());
        assert!(node(Role::Chunkserver, "c", &publish("blog")).is_err());
        assert!(node(Role::Edge, "e", &MasterRequest::Sites).is_ok());
        assert!(node(Role::Chunkserver, "c", &MasterRequest::Sites).is_err());
    }
}
