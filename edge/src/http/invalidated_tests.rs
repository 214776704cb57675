//! What an invalidation drops, against what was really answered: random sites, rules and visitors.

use std::collections::BTreeSet;

use atoll_proto::publish::Pattern;
use atoll_proto::site::EarlierLimits;
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
    async fn new(now: &[&str], before: &[&str], redirects: &str, headers: &str) -> Site {
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
        let current = fixture.publish(&plain(&current));
        fixture.set_alias("production", current, &[(earlier, now_ms())]).await;
        Site { fixture, ids }
    }

    /// The file that a request is answered with, and the tags that it has.
    async fn ask(&self, url: &str, visitor: &[(&str, &str)]) -> Option<(ChunkId, String)> {
        let answer = self.fixture.get(url, visitor).await;
        assert!(answer.header("cache-tag").is_empty(), "tags are for edges");
        let id = ChunkId::of(answer.body.as_ref().unwrap());
        self.ids.contains(&id).then(|| (id, answer.header("x-tags").to_ascii_lowercase()))
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
        blocks in proptest::collection::vec((select(PATHS), select(TAGS)), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let redirects: String = redirects.iter().map(|line| format!("{line}\n")).collect();
        let block = |(path, tags): &(&str, &str)| {
            format!("{path}\n  Cache-Tag: {tags}\n  X-Tags: {tags}\n")
        };
        let headers: String = blocks.iter().map(block).collect();
        let wild = |line: &str| line.contains([':', '*']) && !line.contains(" 302");
        let open = redirects.lines().any(wild);
        runtime.block_on(async {
            let site = Site::new(&now, &before, &redirects, &headers).await;
            let (mut shown, mut tagged) = (Vec::new(), BTreeSet::new());
            for url in urls() {
                for visitor in VISITORS {
                    if let Some((id, tags)) = site.ask(&url, visitor).await {
                        if tags.split(", ").any(|tag| tag == "t1") {
                            tagged.insert(id);
                        }
                        shown.push((url.clone(), *visitor, id));
                    }
                }
            }
            site.warm().await;
            site.invalidate(Pattern::Tag("T1".to_owned())).await;
            for (number, id) in site.ids.iter().enumerate() {
                let name = now.iter().chain(&before).nth(number).unwrap();
                assert!(!tagged.contains(id) || !site.kept(id), "{name} had the tag and stayed");
                // A page that says that nothing is there may have any tag that wildcards give. What
                // a redirect hides is answered when a long query has it passed over.
                let anywhere = open || name.ends_with("404.html") || redirects.contains(" 302");
                assert!(anywhere || tagged.contains(id) || site.kept(id), "{name} had no tag");
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
    let site = Site::new(&names, &["old.js", "old.html"], redirects, headers).await;
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
