//! How a deploy stands to the host it is served at, by what the cluster knows.
//!
//! Called by [`super`] where a client configuration is at hand. That an edge can prove what it
//! serves says nothing about whether it should serve that. What may be served is decided by the code
//! of the edges: which site a host is of, and when a file of an earlier deploy answers.

use std::sync::Arc;

use atoll_client::{ClientError, Cluster, PageSource};
use atoll_edge::index::earlier_file;
use atoll_edge::index::host::{self, HostName};
use atoll_edge::index::table::{SiteState, Table};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::publish::{Alias, PublishSnapshot, Site};
use atoll_proto::rules::Rules;
use atoll_proto::rules::decide::{Outcome, Question};
use atoll_proto::rules::request::Facts;
use atoll_proto::{ClusterId, DeployId, Seq, limits};

use super::judge::Kept;
use crate::cluster_path::unexpected;
use crate::commands::published::all_deploys;
use crate::report::Failure;
use crate::text;

/// How a deploy stands to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// The host's alias points at it.
    Current,
    /// The host names it by its first digits.
    Named,
    /// Only this file of it may be served, because the alias' current deploy has none there.
    Earlier(Kept),
    /// It may not be served there, for this reason.
    Stale(String),
}

impl Standing {
    /// Whether the deploy, or a file of it, may be served there.
    pub(super) fn may_be_served(&self) -> bool {
        !matches!(self, Self::Stale(_))
    }

    /// What alone may be served of an earlier deploy.
    pub(super) fn kept(&self) -> Option<&Kept> {
        match self {
            Self::Earlier(kept) => Some(kept),
            Self::Current | Self::Named | Self::Stale(_) => None,
        }
    }
}

/// The sites that the cluster shows, and the zone under which they have names.
pub(super) struct Sites {
    table: Table,
    zone: Option<String>,
}

impl Sites {
    /// Those of now.
    pub(super) async fn of(cluster: &Cluster) -> Result<Self, Failure> {
        let answer = cluster.master(&MasterRequest::Sites, limits::METADATA_DEADLINE).await?;
        let MasterResponse::Sites(sites) = answer else {
            return Err(unexpected("sites"));
        };
        let view = cluster.view().await?;
        Ok(Self::new(view.cluster, view.zone.clone(), sites))
    }

    fn new(cluster: ClusterId, zone: Option<String>, listed: Vec<(Site, Vec<Alias>)>) -> Self {
        let (sites, aliases): (Vec<Site>, Vec<Vec<Alias>>) = listed.into_iter().unzip();
        let aliases = aliases.into_iter().flatten().collect();
        let snapshot = PublishSnapshot { seq: Seq(0), sites, aliases, deploys: Vec::new() };
        Self { table: Table::of_snapshot(cluster, snapshot), zone }
    }

    /// The site that the host of a URL belongs to and what of it the host names; else why there is
    /// none.
    pub(super) fn place(&self, asked: &str) -> Result<(&SiteState, HostName), String> {
        let unknown =
            || format!("the cluster has no such site as {asked}, or shows it to other tokens only");
        let name = host::normalized(asked).ok_or_else(unknown)?;
        let zone = self.zone.iter().map(|zone| zone.trim_matches('.').to_ascii_lowercase());
        let mut known: Vec<String> = zone.filter(|zone| !zone.is_empty()).collect();
        known.push("localhost".to_owned());
        // Which further suffixes an edge has is said in its own configuration.
        let other = name.split_once('.').map(|(_, suffix)| suffix.to_owned());
        let named = host::resolve(&name, &known, &self.table)
            .or_else(|| host::resolve(&name, other.as_slice(), &self.table))
            .ok_or_else(unknown)?;
        let site = self.table.site(&named.site).map(Arc::as_ref).ok_or_else(unknown)?;
        Ok((site, named))
    }

    /// How a deploy stands to the host of a request now.
    pub(super) async fn standing(
        &self,
        cluster: &Cluster,
        asked: &str,
        deploy: DeployId,
        facts: Facts,
    ) -> Result<Standing, Failure> {
        let (site, named) = match self.place(asked) {
            Ok(place) => place,
            Err(what) => return Ok(Standing::Stale(what)),
        };
        let Some(alias) = site.aliases.get(&named.alias) else {
            let known = match host::deploy_digits(&named.alias) {
                Some(_) => all_deploys(cluster, &named.site).await?,
                None => Vec::new(),
            };
            return Ok(by_digits(&named, deploy, known.iter().map(|known| known.id)));
        };
        if alias.deploy == deploy {
            return Ok(Standing::Current);
        }
        let rules = atoll_client::rules::of_deploy(cluster, alias.deploy).await?;
        Ok(replaced(cluster, &rules, site, alias, deploy, facts, text::now_ms()).await?)
    }
}

/// How a deploy stands to a host that no alias has the name of. `known` are the site's deploys.
fn by_digits(
    named: &HostName,
    deploy: DeployId,
    mut known: impl Iterator<Item = DeployId>,
) -> Standing {
    let (HostName { site, alias }, short) = (named, text::short(&deploy));
    let no_alias = format!("the cluster has no such alias: {site} has no {alias}");
    let Some(digits) = host::deploy_digits(alias) else {
        return Standing::Stale(no_alias);
    };
    if !deploy.to_string().starts_with(digits) {
        let what = format!("{no_alias}, and deploy {short} does not begin with these digits");
        return Standing::Stale(what);
    }
    if !known.any(|known| known == deploy) {
        return Standing::Stale(format!("the cluster has no such deploy: {site} has no {short}"));
    }
    Standing::Named
}

/// How a deploy stands to an alias that points at another one, which has these rules: whether an
/// edge would answer the request with a file of it.
async fn replaced<S: PageSource>(
    source: &S,
    rules: &Rules,
    site: &SiteState,
    alias: &Alias,
    deploy: DeployId,
    facts: Facts,
    now_ms: u64,
) -> Result<Standing, ClientError> {
    let question = Question::new(rules, facts);
    let (decision, _) = atoll_client::rules::decide(source, alias.deploy, &question).await?;
    if let Outcome::NotFound { missing: Some(path), .. } = decision.outcome {
        let found = earlier_file(source, site, &alias.alias, &path, now_ms).await?;
        if found.is_some_and(|(from, _)| from == deploy) {
            return Ok(Standing::Earlier(Kept { path, effect: question.headers() }));
        }
    }
    Ok(Standing::Stale(format!(
        "{} of {} points at deploy {} now, and nothing of deploy {} may answer here any more",
        alias.alias,
        alias.site,
        text::short(&alias.deploy),
        text::short(&deploy)
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::HashMap;

    use atoll_edge::http::path;
    use atoll_edge::rules::ask;
    use atoll_proto::content::Extent;
    use atoll_proto::manifest::{Entry, Page};
    use atoll_proto::publish::Earlier;
    use atoll_proto::rules::parse::{Sources, parse};
    use atoll_proto::site::SiteSettings;
    use atoll_proto::{ChunkId, Content};
    use http::HeaderMap;

    use super::*;

    const HTML: &str = "text/html; charset=utf-8";
    const JS: &str = "text/javascript; charset=utf-8";
    const NOW_MS: u64 = 1_800_000_000_000;

    /// The pages of deploys.
    #[derive(Default)]
    struct Pages(HashMap<ChunkId, Arc<Page>>);

    impl PageSource for Pages {
        async fn page(&self, id: ChunkId) -> Result<Arc<Page>, ClientError> {
            let lacking = || ClientError::Malformed { what: format!("no page {}", id.short()) };
            self.0.get(&id).cloned().ok_or_else(lacking)
        }
    }

    impl Pages {
        /// A deploy of files with these paths and types, whose bytes are of this version.
        fn add(&mut self, version: &str, files: &[(&str, &str)]) -> DeployId {
            let entry = |(path, kind): &(&str, &str)| Entry {
                path: (*path).into(),
                mode: 0o644,
                mtime_ns: 0,
                content: Content::from_extents(vec![Extent {
                    id: Some(ChunkId::of(version.as_bytes())),
                    len: 1,
                }]),
                content_type: (*kind).to_owned(),
                header_rule: None,
                variants: Vec::new(),
                base: None,
            };
            let built = atoll_client::build(files.iter().map(entry).collect(), None).unwrap();
            for page in built.pages {
                self.0.insert(page.id, Arc::new(Page::decode(&page.bytes).unwrap()));
            }
            built.root
        }
    }

    fn sites(settings: SiteSettings, aliases: Vec<Alias>) -> Sites {
        let blog = Site {
            name: "blog".parse().unwrap(),
            domains: vec!["blog.example".to_owned()],
            created_ms: 0,
            settings,
        };
        Sites::new(ClusterId([7; 16]), Some("Atoll.test.".to_owned()), vec![(blog, aliases)])
    }

    fn alias(deploy: DeployId, earlier: Vec<Earlier>) -> Alias {
        Alias {
            site: "blog".parse().unwrap(),
            alias: "production".parse().unwrap(),
            deploy,
            seq: Seq(1),
            at_ms: 0,
            earlier,
            expires_ms: None,
        }
    }

    /// A site whose deploy was replaced, and what is asked of it.
    #[derive(Clone, Copy)]
    struct Case {
        asked: &'static str,
        before: &'static [(&'static str, &'static str)],
        now: &'static [(&'static str, &'static str)],
        redirects: &'static str,
        count: u32,
        replaced_ms: u64,
        live: bool,
    }

    const CASE: Case = Case {
        asked: "/app.js",
        before: &[("app.js", JS)],
        now: &[("index.html", HTML)],
        redirects: "",
        count: 10,
        replaced_ms: NOW_MS - 1000,
        live: false,
    };

    impl Case {
        /// How the deploy from before stands.
        async fn standing(self) -> Standing {
            let mut pages = Pages::default();
            let (before, now) = (pages.add("before", self.before), pages.add("now", self.now));
            let mut settings = SiteSettings::default();
            settings.earlier.count = self.count;
            settings.live = self.live.then(|| "/sites/blog".to_owned());
            let earlier = vec![Earlier { deploy: before, replaced_ms: self.replaced_ms }];
            let sites = sites(settings, vec![alias(now, earlier)]);
            standing(&pages, &sites, self, before).await
        }
    }

    async fn standing(pages: &Pages, sites: &Sites, case: Case, deploy: DeployId) -> Standing {
        let (redirects, headers) = (Some(case.redirects.as_bytes()), None);
        let set = parse(Sources { redirects, headers }, &SiteSettings::default()).unwrap();
        let asked = path::parse(case.asked.as_bytes()).unwrap();
        let facts = ask::facts(&asked, "blog.atoll.test", None, &HeaderMap::new());
        let (site, named) = sites.place("blog.atoll.test").unwrap();
        let alias = &site.aliases[&named.alias];
        replaced(pages, &Rules::new(set), site, alias, deploy, facts, NOW_MS).await.unwrap()
    }

    #[tokio::test]
    async fn files_of_an_earlier_deploy_answer_only_where_edges_would_take_them() {
        let kept = |standing: Standing| match standing {
            Standing::Earlier(kept) => String::from_utf8(kept.path).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(kept(CASE.standing().await), "app.js");
        // A script that is led to another name may be the one of before, too.
        let led = Case { redirects: "/x.js /app.js 200\n", asked: "/x.js", ..CASE };
        assert_eq!(kept(led.standing().await), "app.js");

        let age_ms = u64::from(SiteSettings::default().earlier.age_secs) * 1000;
        let page = Case { asked: "/old.html", before: &[("old.html", HTML)], ..CASE };
        let rules = Case { asked: "/_headers", before: &[("_headers", "text/plain")], ..CASE };
        for (what, case) in [
            ("a page", page),
            ("a page under its clean URL", Case { asked: "/old", ..page }),
            ("a file of a page's type", Case { before: &[("app.js", HTML)], ..CASE }),
            ("none are kept", Case { count: 0, ..CASE }),
            ("too long ago", Case { replaced_ms: NOW_MS - age_ms - 1, ..CASE }),
            ("a live site", Case { live: true, ..CASE }),
            ("replaced by a redirect", Case { redirects: "/app.js /new.js 301\n", ..CASE }),
            ("the current deploy has it", Case { now: &[("app.js", JS)], ..CASE }),
            (
                "the current deploy has another for it",
                Case { redirects: "/app.js /new.js 200\n", now: &[("new.js", JS)], ..CASE },
            ),
            ("a directory", Case { asked: "/app.js/", ..CASE }),
            ("the rules of the site", rules),
        ] {
            let Standing::Stale(said) = case.standing().await else { panic!("{what}: passed") };
            assert!(said.contains("points at deploy"), "{what}: {said}");
        }
        let just = Case { replaced_ms: NOW_MS - age_ms, ..CASE };
        assert_eq!(kept(just.standing().await), "app.js");
    }

    #[tokio::test]
    async fn of_several_earlier_deploys_the_latest_that_has_the_file_answers() {
        let mut pages = Pages::default();
        let [first, second, other] =
            ["first", "second", "other"].map(|version| pages.add(version, CASE.before));
        let (third, now) = (pages.add("third", &[("b.js", JS)]), pages.add("now", CASE.now));
        let earlier = [third, second, first];
        let earlier = earlier.map(|deploy| Earlier { deploy, replaced_ms: CASE.replaced_ms });
        let sites = sites(SiteSettings::default(), vec![alias(now, earlier.to_vec())]);
        for (deploy, answers) in [(first, false), (second, true), (third, false), (other, false)] {
            let standing = standing(&pages, &sites, CASE, deploy).await;
            assert_eq!(matches!(standing, Standing::Earlier(_)), answers, "{standing:?}");
        }
    }

    #[test]
    fn hosts_lead_to_sites_as_at_an_edge_and_unknown_ones_are_told() {
        let preview = Alias { alias: "pr-7".parse().unwrap(), ..alias(ChunkId([1; 32]), vec![]) };
        let sites = sites(SiteSettings::default(), vec![preview]);
        for (host, alias) in [
            ("blog.localhost", "production"),
            ("Blog.Atoll.Test", "production"),
            ("blog.atoll.test.", "production"),
            ("blog.other.example", "production"),
            ("blog.example", "production"),
            ("blog.example.", "production"),
            ("pr-7--blog.atoll.test", "pr-7"),
            ("0101010101--blog.atoll.test", "0101010101"),
        ] {
            let (site, named) = sites.place(host).unwrap();
            assert_eq!((site.site.name.as_str(), named.alias.as_str()), ("blog", alias), "{host}");
        }
        for host in ["shop.atoll.test", "shop.example", "pr-7--shop.localhost", "::1", "", "blog"] {
            let said = sites.place(host).unwrap_err();
            assert!(said.contains("no such site"), "{host}: {said}");
        }
    }

    #[test]
    fn the_digits_of_a_host_name_one_deploy_that_the_site_has() {
        let (one, two) = (ChunkId([0x11; 32]), ChunkId([0x22; 32]));
        let said = |alias: &str, deploy: DeployId, known: &[DeployId]| {
            let named = HostName { site: "blog".parse().unwrap(), alias: alias.parse().unwrap() };
            match by_digits(&named, deploy, known.iter().copied()) {
                Standing::Stale(said) => said,
                other => format!("{other:?}"),
            }
        };
        assert_eq!(said("11111111", one, &[two, one]), "Named");
        assert!(said("11111111", two, &[two, one]).contains("does not begin"));
        assert!(said("11111111", one, &[two]).contains("no such deploy"));
        assert!(said("pr-7", one, &[one]).contains("no such alias"));
        assert!(said("1111111", one, &[one]).contains("no such alias"));
    }
}
