//! What the verbs that change what a site serves have in common: names of deploys, the wait for
//! the edges, the URL, the final object.

use atoll_client::{Cluster, wait_applied};
use atoll_edge::index::host::deploy_digits;
use atoll_proto::cluster::ClusterView;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::publish::{Alias, Deploy, Published, Site};
use atoll_proto::{AliasName, DeployId, SiteName, limits};
use serde::Serialize;

use crate::args::{WaitArgs, WaitFor};
use crate::cluster_path::unexpected;
use crate::connect::Context;
use crate::report::Failure;
use crate::text;

/// Digits of a deploy id that must be typed at least.
const PREFIX_MIN: usize = 6;
/// Deploys asked for at a time.
const PAGE: u32 = 1000;

/// The final object of a verb that published something.
#[derive(Debug, Serialize)]
pub(crate) struct Done {
    /// Always `done`.
    pub(crate) event: &'static str,
    pub(crate) site: SiteName,
    pub(crate) deploy: Option<DeployText>,
    pub(crate) alias: Option<AliasName>,
    pub(crate) url: String,
    pub(crate) seq: u64,
    pub(crate) edges: usize,
    pub(crate) edges_acked: usize,
    pub(crate) edges_down: Vec<String>,
    pub(crate) edges_unreached: Vec<String>,
    pub(crate) elapsed_ms: Elapsed,
}

/// Where the time went.
#[derive(Debug, Serialize)]
pub(crate) struct Elapsed {
    pub(crate) commit: u64,
    pub(crate) wait: u64,
    pub(crate) total: u64,
}

/// A deploy's id as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeployText(pub(crate) DeployId);

impl Serialize for DeployText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A deploy as typed: an id, or the start of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeployName(String);

impl std::fmt::Display for DeployName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for DeployName {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        let fine = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if !typed.bytes().all(fine) || !(PREFIX_MIN..=64).contains(&typed.len()) {
            return Err(format!(
                "a deploy id has 64 hex digits; give at least {PREFIX_MIN} of them"
            ));
        }
        Ok(Self(typed.to_owned()))
    }
}

impl DeployName {
    /// The id, where all of it was typed. Whether there is such a deploy is another matter.
    pub(crate) fn whole(&self) -> Option<DeployId> {
        self.0.parse().ok()
    }

    /// The one deploy of the site that it names. A whole id is looked for, too: that of another
    /// site's deploy or of none is an error here, and not only where its pages cannot be read.
    pub(crate) async fn find(
        &self,
        cluster: &Cluster,
        site: &SiteName,
    ) -> Result<DeployId, Failure> {
        let all = all_deploys(cluster, site).await?;
        self.pick(site, all.into_iter().map(|deploy| deploy.id))
    }

    /// The same, or `None` when the site has no such deploy.
    pub(crate) async fn find_if_any(
        &self,
        cluster: &Cluster,
        site: &SiteName,
    ) -> Result<Option<DeployId>, Failure> {
        let all = all_deploys(cluster, site).await?;
        if !all.iter().any(|deploy| deploy.id.to_string().starts_with(&self.0)) {
            return Ok(None);
        }
        self.pick(site, all.into_iter().map(|deploy| deploy.id)).map(Some)
    }

    fn pick(
        &self,
        site: &SiteName,
        all: impl Iterator<Item = DeployId>,
    ) -> Result<DeployId, Failure> {
        let typed = &self.0;
        let mut fitting = all.filter(|id| id.to_string().starts_with(typed));
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => {
                Err(Failure::Failed(format!("several deploys of {site} start with {typed}")))
            }
            (None, _) => Err(Failure::Failed(format!(
                "no deploy of {site} starts with {typed}; `atoll deploys {site}` lists them"
            ))),
        }
    }
}

/// The deploys of a site, latest first.
pub(crate) async fn all_deploys(
    cluster: &Cluster,
    site: &SiteName,
) -> Result<Vec<Deploy>, Failure> {
    let mut all: Vec<Deploy> = Vec::new();
    loop {
        let before = all.last().map(|deploy| deploy.seq);
        let request = MasterRequest::Deploys { site: site.clone(), before, limit: PAGE };
        let MasterResponse::Deploys(page) =
            cluster.master(&request, limits::METADATA_DEADLINE).await?
        else {
            return Err(unexpected(site));
        };
        let last = page.len() < PAGE as usize;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}

/// A site and its aliases.
pub(crate) async fn site_and_aliases(
    cluster: &Cluster,
    site: &SiteName,
) -> Result<(Site, Vec<Alias>), Failure> {
    let request = MasterRequest::Site { site: site.clone() };
    match cluster.master(&request, limits::METADATA_DEADLINE).await? {
        MasterResponse::Site { site, aliases } => Ok((site, aliases)),
        _ => Err(unexpected(site)),
    }
}

/// Where an alias of a site is served.
pub(crate) fn url(view: &ClusterView, site: &SiteName, alias: &AliasName) -> String {
    let label = if *alias == AliasName::production() {
        site.to_string()
    } else {
        format!("{alias}--{site}")
    };
    url_of(view, &label)
}

/// Where a deploy is served by itself; `None` when its name would be too long for a host name.
pub(crate) fn deploy_url(view: &ClusterView, site: &SiteName, deploy: &DeployId) -> Option<String> {
    let room = limits::SITE_NAME_BYTES_MAX.checked_sub(site.as_str().len() + "--".len())?;
    let digits = deploy.short();
    let digits = digits.get(..digits.len().min(room))?;
    (digits.len() >= limits::DEPLOY_DIGITS_MIN).then(|| url_of(view, &format!("{digits}--{site}")))
}

fn url_of(view: &ClusterView, label: &str) -> String {
    match (&view.url_template, &view.zone) {
        (Some(template), _) => template.replace("{site}", label),
        (None, Some(zone)) => format!("https://{label}.{zone}/"),
        (None, None) => format!("https://{label}/"),
    }
}

/// Waits for the edges, says what was done, and gives the verb its result.
pub(crate) async fn conclude(
    context: &Context,
    cluster: &Cluster,
    change: Concluded<'_>,
    said: impl FnOnce(&Published, &str) -> String,
) -> Result<(), Failure> {
    let Concluded { site, alias, published, wait, started } = change;
    let committed = started.elapsed();
    let waited = wait_applied(cluster, published.seq, wait.wait(), wait.timeout()).await?;
    let total = started.elapsed();
    let view = cluster.view().await?;
    let production = AliasName::production();
    let url = url(&view, site, alias.unwrap_or(&production));
    for said in waited_said(&waited.down, waited.unasked.as_deref()) {
        context.out.note(format_args!("atoll: {said}"));
    }
    if context.out.json() {
        context.out.object(&Done {
            event: "done",
            site: site.clone(),
            deploy: published.deploy.map(DeployText),
            alias: alias.cloned(),
            url,
            seq: published.seq.0,
            edges: waited.acked.len() + waited.waiting.len(),
            edges_acked: waited.acked.len(),
            edges_down: waited.down,
            edges_unreached: waited.waiting.clone(),
            elapsed_ms: Elapsed {
                commit: millis(committed),
                wait: millis(total - committed),
                total: millis(total),
            },
        })?;
    } else {
        context.out.note(said(&published, &edges_said(waited.acked.len(), wait)));
        context.out.line(url)?;
    }
    unconfirmed(waited.waiting, wait)
}

/// What [`conclude`] is about.
pub(crate) struct Concluded<'a> {
    pub(crate) site: &'a SiteName,
    pub(crate) alias: Option<&'a AliasName>,
    pub(crate) published: Published,
    pub(crate) wait: &'a WaitArgs,
    /// When the verb began.
    pub(crate) started: std::time::Instant,
}

/// `, live on 2 edges`, or nothing when nobody was waited for.
pub(crate) fn edges_said(acked: usize, wait: &WaitArgs) -> String {
    match wait.wait {
        WaitFor::None => String::new(),
        WaitFor::All | WaitFor::Reachable => format!(", on {}", text::count(acked as u64, "edge")),
    }
}

/// What there is to say about a wait beside its outcome.
pub(crate) fn waited_said(down: &[String], unasked: Option<&str>) -> Vec<String> {
    let unasked = unasked.map(|reason| {
        format!("the masters cannot be asked which edges have it ({reason}), so none is counted")
    });
    down_said(down).into_iter().chain(unasked).collect()
}

/// Which edges were not waited for because they are down; nothing when all are up.
fn down_said(down: &[String]) -> Option<String> {
    match down {
        [] => None,
        [one] => {
            Some(format!("{one} is down and was not waited for; it catches up before it serves"))
        }
        some => Some(format!(
            "{} are down and were not waited for; they catch up before they serve",
            some.join(", ")
        )),
    }
}

/// Waits for the edges to have a change that has no result of its own to show.
pub(crate) async fn wait_for(
    context: &Context,
    cluster: &Cluster,
    published: &Published,
    wait: &WaitArgs,
) -> Result<(), Failure> {
    let waited = wait_applied(cluster, published.seq, wait.wait(), wait.timeout()).await?;
    for said in waited_said(&waited.down, waited.unasked.as_deref()) {
        context.out.note(format_args!("atoll: {said}"));
    }
    unconfirmed(waited.waiting, wait)
}

/// Refuses an alias under which a site would have no host name, or one that a deploy may have.
pub(crate) fn check_alias(site: &SiteName, alias: &AliasName) -> Result<(), Failure> {
    if *alias == AliasName::production() {
        return Ok(());
    }
    let label = format!("{alias}--{site}");
    if label.len() > limits::SITE_NAME_BYTES_MAX {
        return Err(Failure::Usage(format!(
            "alias {alias} is too long: {label} would be a part of its host name, which may have {} \
             characters, so {} are left for an alias of this site",
            limits::SITE_NAME_BYTES_MAX,
            limits::SITE_NAME_BYTES_MAX.saturating_sub(site.as_str().len() + 2)
        )));
    }
    if deploy_digits(alias).is_some() {
        return Err(Failure::Usage(format!(
            "alias {alias} looks like the digits of a deploy, whose host name never changes what it \
             shows: put a letter beyond f into it"
        )));
    }
    Ok(())
}

/// Exit code 6, when all edges were to be waited for and some did not confirm.
pub(crate) fn unconfirmed(waiting: Vec<String>, wait: &WaitArgs) -> Result<(), Failure> {
    if waiting.is_empty() || wait.wait != WaitFor::All {
        return Ok(());
    }
    Err(Failure::Unconfirmed { waiting, seconds: wait.timeout })
}

pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::cluster::PgTable;
    use atoll_proto::{ChunkId, ClusterId};

    use super::*;

    fn view(zone: Option<&str>, template: Option<&str>) -> ClusterView {
        ClusterView {
            cluster: ClusterId([0; 16]),
            index: 1,
            chunk_bytes: limits::CHUNK_BYTES,
            nodes: Vec::new(),
            table: PgTable::empty(),
            zone: zone.map(str::to_owned),
            url_template: template.map(str::to_owned),
        }
    }

    #[test]
    fn an_alias_must_be_a_part_of_a_host_name_and_no_deploy() {
        let site: SiteName = "blog".parse().unwrap();
        let check = |alias: &str| check_alias(&site, &alias.parse().unwrap());
        for fine in ["production", "pr-7", "deadbee", "deadbeef-1", &"a1z".repeat(19)] {
            assert!(check(fine).is_ok(), "{fine}");
        }
        for (bad, why) in
            [("deadbeef", "digits"), ("0123456789", "digits"), (&"x".repeat(58), "57")]
        {
            let refused = check(bad).unwrap_err();
            assert_eq!(refused.exit(), crate::report::Exit::Usage);
            assert!(refused.to_string().contains(why), "{refused}");
        }
    }

    #[test]
    fn a_site_has_a_url() {
        let (site, production) = ("blog".parse().unwrap(), AliasName::production());
        let preview: AliasName = "pr-7".parse().unwrap();
        let local = view(Some("atoll.test"), Some("https://{site}.localhost:8443/"));
        assert_eq!(url(&local, &site, &production), "https://blog.localhost:8443/");
        assert_eq!(url(&local, &site, &preview), "https://pr-7--blog.localhost:8443/");
        let zone = view(Some("atoll.test"), None);
        assert_eq!(url(&zone, &site, &production), "https://blog.atoll.test/");
        let deploy = ChunkId([0xab; 32]);
        let at = |site: &str| deploy_url(&zone, &site.parse().unwrap(), &deploy);
        assert_eq!(at("blog").unwrap(), "https://abababababab--blog.atoll.test/");
        assert!(at(&"s".repeat(53)).unwrap().starts_with("https://abababab--sss"));
        assert_eq!((at(&"s".repeat(54)), at(&"s".repeat(63))), (None, None));
    }

    #[test]
    fn the_start_of_an_id_is_enough_when_it_is_the_only_one() {
        let site: SiteName = "blog".parse().unwrap();
        let (one, two) = (ChunkId([0x11; 32]), ChunkId([0x22; 32]));
        let name: DeployName = "111111".parse().unwrap();
        assert_eq!(name.pick(&site, [one, two].into_iter()).unwrap(), one);
        assert!(name.pick(&site, [two].into_iter()).unwrap_err().to_string().contains("no deploy"));
        assert!(name.pick(&site, [one, one].into_iter()).is_err());
        assert_eq!(name.whole(), None);
        let whole: DeployName = two.to_string().parse().unwrap();
        assert_eq!(whole.whole(), Some(two));
        assert_eq!(whole.pick(&site, [one, two].into_iter()).unwrap(), two);
        let failure = whole.pick(&site, [one].into_iter()).unwrap_err().to_string();
        assert!(failure.contains("no deploy of blog"), "{failure}");
        for bad in ["", "1111", "xyzxyz", "11111A", &"1".repeat(65)] {
            assert!(bad.parse::<DeployName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn edges_that_are_down_are_named() {
        assert_eq!(down_said(&[]), None);
        let one = down_said(&["edge-2".to_owned()]).unwrap();
        assert_eq!(one, "edge-2 is down and was not waited for; it catches up before it serves");
        let two = down_said(&["edge-2".to_owned(), "edge-3".to_owned()]).unwrap();
        assert!(two.starts_with("edge-2, edge-3 are down"), "{two}");
    }

    #[test]
    fn edges_that_did_not_confirm_are_exit_code_6_only_when_all_were_asked_for() {
        let wait = |wait| WaitArgs { wait, timeout: 5 };
        let slow = || vec!["edge-2".to_owned()];
        let failure = unconfirmed(slow(), &wait(WaitFor::All)).unwrap_err();
        assert_eq!(failure.exit() as u8, 6);
        assert!(failure.to_string().contains("edge-2"));
        assert!(unconfirmed(slow(), &wait(WaitFor::Reachable)).is_ok());
        assert!(unconfirmed(Vec::new(), &wait(WaitFor::All)).is_ok());
    }
}
