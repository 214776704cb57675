//! Tests of what stays reachable after a publish, and of previews.

use atoll_proto::publish::{Earlier, PublishSnapshot, SiteDeploys};
use atoll_proto::site::{EarlierLimits, SiteSettings};

use super::*;
use crate::index::table::Table;

const DAY_MS: u64 = 24 * 3600 * 1000;

pub(super) fn now_ms() -> u64 {
    clock::wall_ms()
}

impl Fixture {
    /// The next entry of the publish log.
    pub(super) async fn apply(&self, event: PublishEvent) {
        let mut table = self.responder.index.table().as_ref().clone();
        let seq = Seq(table.seq().0 + 1);
        follow::apply(&self.responder.index, &mut table, &[PublishEntry { seq, at_ms: 0, event }])
            .await;
        self.responder.index.put(table);
    }

    pub(super) async fn set_alias(
        &self,
        name: &str,
        deploy: DeployId,
        earlier: &[(DeployId, u64)],
    ) {
        let earlier = earlier.iter();
        let earlier = earlier.map(|(deploy, at)| Earlier { deploy: *deploy, replaced_ms: *at });
        let alias = Alias {
            site: "blog".parse().unwrap(),
            alias: name.parse().unwrap(),
            deploy,
            seq: Seq(0),
            at_ms: 0,
            earlier: earlier.collect(),
            expires_ms: None,
        };
        self.apply(PublishEvent::AliasSet(alias)).await;
    }

    pub(super) async fn limit(&self, earlier: EarlierLimits) {
        let settings = SiteSettings { earlier, ..SiteSettings::default() };
        let (name, domains) = ("blog".parse().unwrap(), vec!["blog.example".to_owned()]);
        self.apply(PublishEvent::SiteSet(Site { name, domains, created_ms: 0, settings })).await;
    }

    pub(super) fn publish(&self, files: &[(&str, &[u8])]) -> DeployId {
        Published::new(&self.upstream, files).deploy
    }
}

/// The site after three more deploys: what it was, latest first, and what it is.
async fn republished() -> (Fixture, Vec<DeployId>, DeployId) {
    let site = Fixture::new(FILES).await;
    let two = site.publish(&[
        ("index.html", b"2"),
        ("app-2.js", b"script 2"),
        ("old.html", b"old"),
        ("both.js", b"of 2"),
        ("_redirects", b"/x /y"),
    ]);
    let three = site.publish(&[("index.html", b"3"), ("app-3.js", b"s3"), ("both.js", b"of 3")]);
    let four = site.publish(&[("index.html", b"4"), ("app-4.js", b"s4"), ("404.html", b"none")]);
    let now = now_ms();
    let was = [(three, now), (two, now - DAY_MS), (site.deploy, now - 2 * DAY_MS)];
    site.set_alias("production", four, &was).await;
    let was = was.into_iter().map(|(deploy, _)| deploy).collect();
    (site, was, four)
}

#[tokio::test]
async fn an_open_page_gets_its_scripts_out_of_the_latest_deploy_that_has_them() {
    let (site, was, four) = republished().await;
    let cases = [
        ("/app-4.js", four, "s4"),
        ("/app-3.js", was[0], "s3"),
        ("/both.js", was[0], "of 3"),
        ("/app-2.js", was[1], "script 2"),
        ("/app-BX3k2_aq.js", was[2], "script"),
        ("/ten", was[2], "0123456789"),
    ];
    for (target, deploy, text) in cases {
        let answer = site.get(target, &[]).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, text), "{target}");
        assert_eq!(answer.header("atoll-deploy"), deploy.to_string(), "{target}");
        let etag = format!("\"{}\"", ChunkId::of(text.as_bytes()));
        assert_eq!(answer.header("etag"), etag, "{target}");
    }
    let script = site.get("/app-2.js", &[]).await;
    assert_eq!(script.header("content-type"), "text/javascript; charset=utf-8");
    assert_eq!(script.header("cache-control"), "public, max-age=0, must-revalidate");
    let etag = script.header("etag").to_owned();
    assert_eq!(site.get("/app-2.js", &[("if-none-match", &etag)]).await.status, 304);
    assert_eq!(site.get("/app-2.js", &[("range", "bytes=0-1")]).await.text(), "sc");
    let head = site.send(Method::HEAD, "/app-2.js", &[]).await;
    assert_eq!((head.status, head.header("content-length")), (200, "8"));
}

#[tokio::test]
async fn pages_and_what_nobody_has_are_404_and_a_script_is_never_html() {
    let (site, ..) = republished().await;
    for target in ["/old.html", "/old", "/about.html", "/about", "/docs/", "/docs", "/nothing"] {
        let answer = site.get(target, &[]).await;
        assert_eq!((answer.status, answer.text().as_str()), (404, "none"), "{target}");
    }
    assert_eq!(site.get("/_redirects", &[]).await.status, 404);
    for target in ["/unknown.js", "/a/unknown.mjs", "/unknown.css?x=1", "/app-BX3k2_aq.js/x.map"] {
        let answer = site.get(target, &[]).await;
        assert_eq!(answer.status, 404, "{target}");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8", "{target}");
        assert!(!answer.text().contains('<'), "{target}");
        assert_eq!(answer.header("content-length"), answer.text().len().to_string());
    }
}

#[tokio::test]
async fn the_limits_of_the_site_count_as_they_are_now() {
    let (site, was, four) = republished().await;
    let status = async |target: &str| site.get(target, &[]).await.status;
    let reachable = async || (status("/app-3.js").await, status("/app-2.js").await);
    assert_eq!(reachable().await, (200, 200));
    site.limit(EarlierLimits { count: 1, age_secs: 3600 * 24 * 7 }).await;
    assert_eq!(reachable().await, (200, 404));
    site.limit(EarlierLimits { count: 10, age_secs: 3600 }).await;
    assert_eq!(reachable().await, (200, 404));
    site.limit(EarlierLimits { count: 0, age_secs: 3600 * 24 * 7 }).await;
    assert_eq!(reachable().await, (404, 404));
    site.limit(EarlierLimits { count: 10, age_secs: 0 }).await;
    site.set_alias("production", four, &[(was[0], now_ms() - 5)]).await;
    assert_eq!(reachable().await, (404, 404));
    // Other aliases have their own past.
    site.limit(EarlierLimits::default()).await;
    site.set_alias("preview", four, &[(was[1], now_ms())]).await;
    let preview = [("host", "preview--blog.localhost")];
    assert_eq!(site.get("/app-2.js", &preview).await.status, 200);
    assert_eq!(site.get("/app-3.js", &preview).await.status, 404);
}

#[tokio::test]
async fn any_number_of_unknown_names_costs_upstream_nothing() {
    let (site, ..) = republished().await;
    for target in ["/nothing", "/zzz", "/a.js"] {
        site.get(target, &[]).await;
    }
    let before = site.upstream.fetches();
    for number in 0..2000 {
        let target = format!("/{:x}/{number}.{}", number % 16, ["js", "png", "x"][number % 3]);
        assert_eq!(site.get(&target, &[]).await.status, 404);
    }
    assert_eq!(site.upstream.fetches(), before);
}

#[tokio::test]
async fn what_cannot_be_told_is_503_not_404() {
    let (site, was, four) = republished().await;
    let lost = ChunkId::of(b"a deploy whose pages are not to be had");
    site.set_alias("production", four, &[(lost, now_ms()), (was[0], now_ms())]).await;
    assert_eq!(site.get("/app-3.js", &[]).await.status, 503);
    assert_eq!(site.get("/app-4.js", &[]).await.status, 200);
    assert_eq!(site.get("/old.html", &[]).await.status, 404);
}

#[tokio::test]
async fn a_deploy_has_a_host_of_its_own_where_nothing_changes() {
    let (site, was, _) = republished().await;
    let host = |digits: usize| format!("{}--blog.localhost", &was[1].to_string()[..digits]);
    for digits in [8, 12, 57] {
        // Only what was published through an alias is known.
        let host = host(digits);
        let answer = site.get("/", &[("host", &host)]).await;
        assert_eq!((answer.status, answer.text().contains("Nothing is published")), (404, true));
        // A page that is open there gets no page for a script.
        let answer = site.get("/app-2.js", &[("host", &host)]).await;
        assert_eq!((answer.status, answer.text().contains('<')), (404, false));
        assert!(answer.header("content-type").starts_with("text/plain"));
    }
    site.set_alias("preview", was[1], &[]).await;
    for digits in [8, 9, 12, 57] {
        let host = host(digits);
        let host = [("host", host.as_str())];
        let answer = site.get("/", &host).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "2"), "{digits}");
        assert_eq!(answer.header("cache-control"), "public, max-age=31536000, immutable");
        assert_eq!(answer.header("atoll-deploy"), was[1].to_string());
        let etag = answer.header("etag").to_owned();
        let again = site.get("/", &[host[0], ("if-none-match", &etag)]).await;
        assert_eq!(again.status, 304);
        assert!(again.header("cache-control").contains("immutable"));
        // Only its own files, and what it lacks may come to be published under that name.
        let missing = site.get("/app-BX3k2_aq.js", &host).await;
        assert_eq!(missing.status, 404);
        assert_eq!(missing.header("cache-control"), "public, max-age=0, must-revalidate");
    }
    assert_eq!(site.get("/", &[("host", &host(7))]).await.status, 404);
    // An alias of that name wins.
    let digits = was[1].to_string();
    site.set_alias(&digits[..8], was[0], &[]).await;
    assert_eq!(site.get("/", &[("host", &host(8))]).await.text(), "3");
    assert_eq!(site.get("/", &[("host", &host(9))]).await.text(), "2");
    // A removed one is gone.
    let removed = PublishEvent::DeployRemoved { site: "blog".parse().unwrap(), deploy: was[1] };
    site.apply(removed).await;
    assert_eq!(site.get("/", &[("host", &host(9))]).await.status, 404);
}

#[tokio::test]
async fn digits_that_several_deploys_begin_with_are_told() {
    let site = Fixture::new(FILES).await;
    let twin = |last: u8| {
        let mut id = [0xab; 32];
        id[31] = last;
        ChunkId(id)
    };
    let table = site.responder.index.table();
    let deploys = vec![twin(1), twin(2)];
    let deploys = vec![SiteDeploys { site: "blog".parse().unwrap(), deploys }];
    let snapshot = PublishSnapshot { deploys, ..table.to_snapshot() };
    site.responder.index.put(Table::of_snapshot(table.cluster(), snapshot));
    let answer = site.get("/", &[("host", "abababab--blog.localhost")]).await;
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("Several deploys"), "{}", answer.text());
    assert_eq!(answer.header("x-robots-tag"), "noindex");
}

#[tokio::test]
async fn previews_are_not_for_search_engines() {
    let (site, was, _) = republished().await;
    site.set_alias("preview", was[0], &[]).await;
    site.limit(EarlierLimits::default()).await;
    let digits = format!("{}--blog.localhost", was[0].short());
    for host in ["preview--blog.localhost", &digits, "absent--blog.localhost"] {
        for target in ["/", "/index.html", "/nothing", "/nothing.js", "/%", "//"] {
            let answer = site.get(target, &[("host", host)]).await;
            assert_eq!(answer.header("x-robots-tag"), "noindex", "{host}{target}");
        }
        let answer = site.send(Method::POST, "/", &[("host", host)]).await;
        assert_eq!(answer.header("x-robots-tag"), "noindex", "{host}");
    }
    for host in ["blog.localhost", "blog.example", "production--blog.localhost"] {
        for target in ["/", "/nothing", "/app-2.js"] {
            let answer = site.get(target, &[("host", host)]).await;
            assert!(!answer.headers.contains_key("x-robots-tag"), "{host}{target}");
        }
    }
}
