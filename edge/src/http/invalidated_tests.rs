//! What an invalidation drops, against what was really answered: random sites, rules and visitors.

use std::collections::BTreeSet;

use atoll_proto::publish::Pattern;
use atoll_proto::rules::parse::{Sources, parse};
use atoll_proto::site::{Dialect, EarlierLimits, SiteSettings};
use proptest::sample::{select, subsequence};

use super::earlier::now_ms;
use super::*;

const NAMES: &[&str] = &[
    "index.html",
    "404.html",
    "a.html",
    "a/index.html",
    "a/b.html",
    "b.html",
    "b/404.html",
    "c.js",
    "d",
    "old.js",
];
const REDIRECTS: &[&str] = &[
    "/a /b 200!",
    "/x /a 200",
    "/x/* /a/:splat 200",
    "/* /index.html 200",
    "/y/:n /:n 200",
    "/z id=:id /:id 200",
    "/gone/* /b.html 410",
    "/v/* /:splat 200",
    "/a/* /c 302!",
    "/l /b 200 Language=de",
    "https://blog.example/h/* /a/:splat 200",
    "/o /old.js 200",
    "/c.js /404.html 404!",
    "/b/* /404.html 404!",
];
const PATHS: &[&str] = &[
    "/*",
    "/a",
    "/a/*",
    "/b/*",
    "/:x",
    "/*.html",
    "/x/*",
    "/y/:n",
    "/z",
    "/",
    "/v/*",
    "/o",
    "/index.html",
    "/old.js",
    "/v/a/*",
    "https://blog.example/*",
    "https://blog.example/h/*",
];
const TAGS: &[&str] = &["t1", "other", "u, T1"];
/// Values of `Surrogate-Key`, one a line.
const KEYS: &[&[&str]] = &[&["k1"], &["k2 k3"], &["k2", "K1 k3"], &["k1", "k2"], &["k2,k1"]];
const ASKED: &[&str] = &[
    "",
    "a",
    "b",
    "c",
    "x",
    "y",
    "z",
    "v",
    "h",
    "l",
    "o",
    "gone",
    "index",
    "a.html",
    "b.html",
    "404.html",
    "index.html",
    "c.js",
    "d",
    "old.js",
    "none.css",
];

/// What a file holds: nothing that another one has.
fn bytes(deploy: &str, name: &str) -> Vec<u8> {
    format!("{deploy}: {name}").into_bytes()
}

fn urls() -> Vec<String> {
    let two =
        ASKED[1..].iter().flat_map(|one| ASKED.iter().map(move |two| format!("/{one}/{two}")));
    let one = ASKED.iter().map(|one| format!("/{one}"));
    one.chain(two).chain(["/z?id=a".to_owned(), "/z?id=old.js".to_owned()]).collect()
}

const VISITORS: &[&[(&str, &str)]] = &[
    &[("accept", "text/html"), ("accept-language", "de")],
    &[("accept", "*/*"), ("host", "blog.example")],
];

struct Site {
    fixture: Fixture,
    ids: Vec<ChunkId>,
}

impl Site {
    async fn new(
        now: &[&str],
        before: &[&str],
        redirects: &str,
        headers: &str,
        dialect: Dialect,
    ) -> Site {
        let of = |deploy: &str, names: &[&str]| -> Vec<(String, Vec<u8>)> {
            names.iter().map(|name| ((*name).to_owned(), bytes(deploy, name))).collect()
        };
        let (mut current, earlier) = (of("now", now), of("before", before));
        let files = current.iter().chain(&earlier);
        let ids = files.map(|(_, bytes)| ChunkId::of(bytes)).collect();
        current.push(("_redirects".to_owned(), redirects.as_bytes().to_vec()));
        current.push(("_headers".to_owned(), headers.as_bytes().to_vec()));
        let plain = |files: &[(String, Vec<u8>)]| -> Vec<(&'static str, &'static [u8])> {
            let leak = |(name, bytes): &(String, Vec<u8>)| -> (&'static str, &'static [u8]) {
                (String::leak(name.clone()), Vec::leak(bytes.clone()))
            };
            files.iter().map(leak).collect()
        };
        let fixture = Fixture::new(&[]).await;
        fixture.limit(EarlierLimits::default()).await;
        let earlier = fixture.publish(&plain(&earlier));
        let settings = SiteSettings { dialect, ..SiteSettings::default() };
        let current = Published::with(&fixture.upstream, &plain(&current), &settings).deploy;
        fixture.set_alias("production", current, &[(earlier, now_ms())]).await;
        Site { fixture, ids }
    }

    /// The file that a request is answered with, and the tags that it has by what is sent.
    async fn ask(&self, url: &str, visitor: &[(&str, &str)]) -> Option<(ChunkId, Vec<String>)> {
        let answer = self.fixture.get(url, visitor).await;
        for name in ["cache-tag", "surrogate-key"] {
            assert!(answer.header(name).is_empty(), "tags are for edges");
        }
        let id = ChunkId::of(answer.body.as_ref().unwrap());
        let (tags, keys) = (answer.header("x-tags"), answer.header("x-keys"));
        let all = tags.split(',').chain(keys.split([',', ' ']));
        let all = all.map(|tag| tag.trim().to_ascii_lowercase()).collect();
        self.ids.contains(&id).then_some((id, all))
    }

    /// Has everything at hand.
    async fn warm(&self) {
        for id in &self.ids {
            self.fixture.responder.chunks.get(*id, crate::fetch::Worth::Use).await.unwrap();
        }
    }

    async fn invalidate(&self, pattern: Pattern) {
        let (site, patterns) = ("blog".parse().unwrap(), vec![pattern]);
        self.fixture.apply(PublishEvent::Invalidate { site, patterns, soft: false }).await;
    }

    fn kept(&self, id: &ChunkId) -> bool {
        self.fixture.responder.chunks.cache().memory(id).is_some()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn what_was_answered_with_a_tag_goes_and_what_never_was_stays(
        now in subsequence(NAMES, 0..=NAMES.len()),
        before in subsequence(NAMES, 0..4),
        redirects in subsequence(REDIRECTS, 0..4).prop_shuffle(),
        blocks in proptest::collection::vec((select(PATHS), select(TAGS), select(KEYS)), 1..4),
        pages: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dialect = if pages { Dialect::Pages } else { Dialect::Netlify };
        let settings = SiteSettings { dialect, ..SiteSettings::default() };
        // What a dialect does not know is left out.
        let known = |line: &&&str| {
            let sources = Sources { redirects: Some(line.as_bytes()), headers: None };
            parse(sources, &settings).is_ok()
        };
        let redirects = redirects.iter().filter(known);
        let redirects: String = redirects.map(|line| format!("{line}\n")).collect();
        // What edges keep to themselves, and the same under names that they send.
        let block = |(path, tags, keys): &(&str, &str, &[&str])| {
            let lines = |name: &str| -> String {
                keys.iter().map(|keys| format!("  {name}: {keys}\n")).collect()
            };
            let (kept, sent) = (lines("Surrogate-Key"), lines("X-Keys"));
            format!("{path}\n  Cache-Tag: {tags}\n  X-Tags: {tags}\n{kept}{sent}")
        };
        let headers: String = blocks.iter().map(block).collect();
        let wild = |line: &str| line.contains([':', '*']) && !line.contains(" 302");
        let open = redirects.lines().any(wild);
        runtime.block_on(async {
            let site = Site::new(&now, &before, &redirects, &headers, dialect).await;
            let (mut shown, mut tagged) = (Vec::new(), BTreeSet::new());
            for url in urls() {
                for visitor in VISITORS {
                    if let Some((id, tags)) = site.ask(&url, visitor).await {
                        tagged.extend(tags.into_iter().map(|tag| (tag, id)));
                        shown.push((url.clone(), *visitor, id));
                    }
                }
            }
            for tag in ["t1", "k1", "k3"] {
                site.warm().await;
                site.invalidate(Pattern::Tag(tag.to_ascii_uppercase())).await;
                for (number, id) in site.ids.iter().enumerate() {
                    let name = now.iter().chain(&before).nth(number).unwrap();
                    let had = tagged.contains(&(tag.to_owned(), *id));
                    assert!(!had || !site.kept(id), "{name} had the tag {tag} and stayed");
                    // A page that says that nothing is there may have any tag that wildcards give.
                    // What a redirect hides is answered when a long query has it passed over.
                    // What a rule hides may be on a page that an earlier deploy has, too.
                    let hides = redirects.contains(" 302") || redirects.contains(" 404!");
                    let anywhere = open || hides || name.ends_with("404.html");
                    assert!(anywhere || had || site.kept(id), "{name} had no tag {tag}");
                }
            }
            for (url, visitor, id) in shown.iter().step_by(7) {
                site.warm().await;
                let path = url.split('?').next().unwrap();
                site.invalidate(Pattern::Path(path.to_owned())).await;
                assert!(!site.kept(id), "{url} is still answered from an old copy for {visitor:?}");
            }
            site.warm().await;
            site.invalidate(Pattern::All).await;
            for (url, _, id) in shown {
                assert!(!site.kept(&id), "{url}");
            }
        });
    }
}

#[tokio::test]
async fn a_path_means_what_it_shows_and_a_tag_what_has_it() {
    let names = ["index.html", "a.html", "b.html", "c.js", "404.html", "big/x.html"];
    let redirects = "/a /b.html 200!\n/news/* /big/:splat 200\n";
    let headers = "/c.js\n  Cache-Tag: code\n/news/*\n  Surrogate-Key: news hot\n";
    let site =
        Site::new(&names, &["old.js", "old.html"], redirects, headers, Dialect::Netlify).await;
    let left = async |pattern: Pattern| -> Vec<String> {
        site.warm().await;
        site.invalidate(pattern).await;
        let all = names.iter().chain(&["old.js", "old.html"]).zip(&site.ids);
        all.filter(|(_, id)| !site.kept(id)).map(|(name, _)| (*name).to_owned()).collect()
    };
    let path = |path: &str| Pattern::Path(path.to_owned());
    let tag = |tag: &str| Pattern::Tag(tag.to_owned());
    assert_eq!(left(path("/a")).await, ["a.html", "b.html"]);
    assert_eq!(left(path("/news/x")).await, ["big/x.html"]);
    assert_eq!(left(path("/old.js")).await, ["old.js"], "an earlier deploy's");
    assert_eq!(left(path("/nothing")).await, ["404.html"]);
    assert_eq!(left(tag("code")).await, ["c.js"]);
    assert_eq!(left(tag("HOT")).await, ["404.html", "big/x.html"]);
    assert!(left(tag("none")).await.is_empty());
    assert_eq!(left(Pattern::Prefix("/old".to_owned())).await, ["old.js"]);
    let cleared = left(Pattern::All).await;
    assert_eq!(cleared.len(), names.len() + 1, "no page of an earlier deploy: {cleared:?}");
}

#[tokio::test]
async fn several_lines_of_keys_are_several_keys() {
    let headers = "/a.js\n  Surrogate-Key: one\n  Surrogate-Key: two\n  X-Keys: one\n  X-Keys: two\n\
                   /*.js\n  Surrogate-Key: three four\n  X-Keys: three four\n";
    let names = ["a.js", "b.css"];
    for (dialect, sent, keys) in [
        (Dialect::Pages, "one, two, three four", &["one", "two", "three", "four"][..]),
        (Dialect::Netlify, "three four", &["three", "four"]),
    ] {
        let site = Site::new(&names, &[], "", headers, dialect).await;
        assert_eq!(site.fixture.get("/a.js", &[]).await.header("x-keys"), sent);
        for key in keys {
            site.warm().await;
            site.invalidate(Pattern::Tag((*key).to_owned())).await;
            assert!(!site.kept(&site.ids[0]), "{key}");
            assert!(site.kept(&site.ids[1]), "{key}");
        }
    }
}

#[tokio::test]
async fn what_a_rule_hides_is_answered_by_an_earlier_deploy_and_goes_with_the_tag() {
    let (redirects, headers) = ("/c.js /404.html 404!\n", "/c.js\n  Cache-Tag: code\n");
    let names = ["c.js", "d.js"];
    let site = Site::new(&names, &names, redirects, headers, Dialect::Netlify).await;
    let shown = site.ask("/c.js", &[]).await.unwrap().0;
    assert_eq!(shown, site.ids[2], "the earlier deploy's");
    for pattern in [Pattern::Tag("code".to_owned()), Pattern::Path("/c.js".to_owned())] {
        site.warm().await;
        site.invalidate(pattern).await;
        assert!(!site.kept(&shown));
        assert!(site.kept(&site.ids[1]) && site.kept(&site.ids[3]), "they have no tag");
    }
}

#[tokio::test]
async fn all_copies_go_when_what_a_path_shows_takes_too_long_to_find_out() {
    let names: Vec<String> = (0..400).map(|at| format!("{at}/page.html")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).chain(["c.js"]).collect();
    let left = async |lines: usize| {
        let line = |at| format!("/x a{at}=:id /:id/{at} 200\n");
        let redirects: String = (0..lines).map(line).collect();
        let site = Site::new(&names, &[], &redirects, "", Dialect::Netlify).await;
        site.warm().await;
        site.invalidate(Pattern::Path("/x".to_owned())).await;
        site.ids.iter().filter(|id| site.kept(id)).count()
    };
    assert_eq!(left(2).await, names.len(), "nothing is shown there");
    assert_eq!(left(3000).await, 0);
}
