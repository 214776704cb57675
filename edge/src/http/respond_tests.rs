//! Tests of the handler: a published site in memory, without any socket.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::Ordering;

use atoll_proto::publish::{Alias, PublishEntry, PublishEvent, Site};
use atoll_proto::{AliasName, ChunkId, ClusterId, Seq, SiteName};
use futures_util::stream::StreamExt as _;
use proptest::prelude::*;

use super::super::Protocol;
use super::*;
use crate::cache::Cache;
use crate::fetch::tests::FakeUpstream;
use crate::index::follow;
use crate::index::tests::Published;

/// Bytes that do not repeat.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ len as u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(len).collect()
}

/// A site named `blog` in a fake upstream, and a handler for it.
pub(crate) struct Fixture {
    pub(crate) upstream: Arc<FakeUpstream>,
    pub(crate) responder: Arc<Responder>,
    pub(crate) deploy: DeployId,
}

impl Fixture {
    pub(crate) async fn new(files: &[(&str, &[u8])]) -> Fixture {
        let upstream = Arc::new(FakeUpstream::default());
        let published = Published::new(&upstream, files);
        let cache = Arc::new(Cache::in_memory(64 << 20));
        let chunks = Arc::new(Chunks::new(cache, upstream.clone()));
        let suffixes = vec!["localhost".to_owned()];
        let index = Index::open(ClusterId([1; 16]), chunks.clone(), suffixes, None, 16 << 20);
        index.renewed(clock::boot_ns());
        let site = |name: &str| {
            let name: SiteName = name.parse().unwrap();
            PublishEvent::SiteSet(Site {
                name,
                domains: Vec::new(),
                created_ms: 0,
                settings: Default::default(),
            })
        };
        let alias = PublishEvent::AliasSet(Alias {
            site: "blog".parse().unwrap(),
            alias: AliasName::production(),
            deploy: published.deploy,
            seq: Seq(3),
            at_ms: 0,
            earlier: vec![],
            expires_ms: None,
        });
        let events = [site("blog"), site("empty"), alias];
        let entries: Vec<PublishEntry> = (1..)
            .zip(events)
            .map(|(seq, event)| PublishEntry { seq: Seq(seq), at_ms: 0, event })
            .collect();
        let mut table = index.table().as_ref().clone();
        follow::apply(&index, &mut table, &entries).await;
        index.put(table);
        let responder = Arc::new(Responder::new(Arc::new(index), chunks, "edge-1"));
        Fixture { upstream, responder, deploy: published.deploy }
    }

    async fn send(&self, method: Method, target: &str, headers: &[(&str, &str)]) -> Answer {
        let mut map = HeaderMap::new();
        map.insert(header::HOST, HeaderValue::from_static("blog.localhost:8443"));
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            if name == header::HOST {
                map.remove(&name);
            }
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        let uri = target.parse().unwrap();
        let request = Request { method, uri, headers: map, protocol: Protocol::H1 };
        let response = self.responder.respond(&request).await;
        let body = match response.body {
            Body::Empty => Ok(Vec::new()),
            Body::Whole(bytes) => Ok(bytes.to_vec()),
            Body::Stream(mut stream) => {
                let mut all = Vec::new();
                loop {
                    match stream.next().await {
                        Some(Ok(part)) => all.extend_from_slice(&part),
                        Some(Err(error)) => break Err(error),
                        None => break Ok(all),
                    }
                }
            }
        };
        Answer { status: response.status.as_u16(), headers: response.headers, body }
    }

    async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::GET, target, headers).await
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Result<Vec<u8>, BodyError>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone().unwrap()).unwrap()
    }
}

const FILES: &[(&str, &[u8])] = &[
    ("index.html", b"home"),
    ("about.html", b"about"),
    ("docs/index.html", b"docs"),
    ("docs/404.html", b"no such doc"),
    ("404.html", b"no such page"),
    ("app-BX3k2_aq.js", b"script"),
    ("a b#?%.txt", b"odd"),
    ("ten", b"0123456789"),
    ("empty.txt", b""),
];

#[tokio::test]
async fn paths_lead_to_files_redirects_and_404_pages() {
    let site = Fixture::new(FILES).await;
    let cases = [
        ("/", 200, "home"),
        ("/index.html", 200, "home"),
        ("/about", 200, "about"),
        ("/about.html", 200, "about"),
        ("/docs/", 200, "docs"),
        ("/a%20b%23%3f%25.txt", 200, "odd"),
        ("/empty.txt", 200, ""),
        ("/?query=x", 200, "home"),
        ("/nothing", 404, "no such page"),
        ("/about/", 404, "no such page"),
        ("/docs/nothing", 404, "no such doc"),
        ("/docs/nothing/", 404, "no such doc"),
        ("/docs/nothing/at/all", 404, "no such doc"),
        ("//docs/", 404, "no such page"),
    ];
    for (target, status, text) in cases {
        let answer = site.get(target, &[]).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, text), "{target}");
        assert_eq!(answer.header("content-length"), text.len().to_string());
        assert_eq!(answer.header("atoll-deploy"), site.deploy.to_string());
    }
    let answer = site.get("/docs?a=b&c", &[]).await;
    assert_eq!((answer.status, answer.header("location")), (307, "/docs/?a=b&c"));
    for target in ["/../x", "/%2e%2e/x", "/a%00b", "/%", "/%zz"] {
        assert_eq!(site.get(target, &[]).await.status, 400, "{target}");
    }
}

#[tokio::test]
async fn what_was_taken_down_is_gone_whatever_is_asked() {
    use atoll_proto::erase::{Erased, Erasure};
    let site = Fixture::new(FILES).await;
    let etag = site.get("/ten", &[]).await.header("etag").to_owned();
    let change = |index, text: &str, what| {
        let id = ChunkId::of(text.as_bytes());
        Erased { index, id, what }
    };
    let (ten, missing) = ("0123456789", "no such page");
    let changes = [change(1, ten, Erasure::Erased), change(1, missing, Erasure::Erased)];
    site.responder.chunks.take_down(&changes, false);
    let fetches = site.upstream.fetches();
    for headers in [&[][..], &[("if-none-match", etag.as_str())], &[("range", "bytes=0-1")]] {
        for method in [Method::GET, Method::HEAD] {
            let answer = site.send(method, "/ten", headers).await;
            assert_eq!(answer.status, 410, "{headers:?}");
            assert_eq!(answer.header("cache-control"), "no-store");
            assert!(answer.header("etag").is_empty());
        }
    }
    // A page that says what is not there does not become what is gone.
    assert_eq!(site.get("/nothing", &[]).await.status, 404);
    assert_eq!(site.get("/about", &[]).await.text(), "about");
    assert_eq!(site.upstream.fetches(), fetches + 1, "nothing but that was fetched");
    let changes = [change(2, ten, Erasure::Lifted)];
    site.responder.chunks.take_down(&changes, false);
    assert_eq!(site.get("/ten", &[]).await.text(), ten);
}

#[tokio::test]
async fn hosts_lead_to_sites() {
    let site = Fixture::new(FILES).await;
    for (host, status) in [
        ("blog.localhost", 200),
        ("BLOG.localhost.:1", 200),
        ("production--blog.localhost", 200),
        ("preview--blog.localhost", 404),
        ("empty.localhost", 404),
        ("other.localhost", 404),
        ("localhost", 404),
        ("127.0.0.1:8443", 404),
        ("a b", 400),
        ("", 400),
    ] {
        assert_eq!(site.get("/", &[("host", host)]).await.status, status, "{host}");
    }
    let published = site.get("/", &[("host", "empty.localhost")]).await;
    assert!(published.text().contains("Nothing is published here yet"));
    assert_eq!(site.get("https://blog.localhost/", &[("host", "x")]).await.status, 200);
}

#[tokio::test]
async fn headers_say_what_the_file_is() {
    let site = Fixture::new(FILES).await;
    let first = site.get("/", &[]).await;
    assert_eq!(first.header("cache-status"), "edge-1; fwd=miss; stored; detail=origin");
    let answer = site.get("/", &[]).await;
    assert_eq!(answer.header("cache-status"), "edge-1; hit");
    assert_eq!(answer.header("etag"), format!("\"{}\"", ChunkId::of(b"home")));
    assert_eq!(answer.header("last-modified"), "Mon, 02 Nov 2026 00:00:00 GMT");
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(answer.header("accept-ranges"), "bytes");
    assert_eq!(answer.header("cache-control"), "public, max-age=0, must-revalidate");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert!(!answer.header("date").is_empty());
    let script = site.get("/app-BX3k2_aq.js", &[]).await;
    assert!(script.header("cache-control").contains("immutable"));
    let head = site.send(Method::HEAD, "/", &[]).await;
    for name in ["etag", "content-length", "content-type", "last-modified", "cache-control"] {
        assert_eq!(head.header(name), answer.header(name), "{name}");
    }
    assert_eq!((head.status, head.text().as_str()), (200, ""));
    let missing = site.get("/nothing", &[]).await;
    assert_eq!((missing.header("etag"), missing.header("last-modified")), ("", ""));
}

#[tokio::test]
async fn methods() {
    let site = Fixture::new(FILES).await;
    let options = site.send(Method::OPTIONS, "/", &[]).await;
    assert_eq!((options.status, options.header("allow")), (204, ALLOW));
    assert_eq!(site.send(Method::OPTIONS, "*", &[]).await.status, 204);
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::TRACE, Method::PATCH] {
        let answer = site.send(method, "/", &[]).await;
        assert_eq!((answer.status, answer.header("allow")), (405, ALLOW));
    }
}

#[tokio::test]
async fn preconditions_and_ranges() {
    let site = Fixture::new(FILES).await;
    let etag = site.get("/ten", &[]).await.header("etag").to_owned();
    let not_modified = site.get("/ten", &[("if-none-match", &etag)]).await;
    assert_eq!((not_modified.status, not_modified.text().as_str()), (304, ""));
    assert_eq!(not_modified.header("etag"), etag);
    assert_eq!(not_modified.header("content-length"), "");
    assert_eq!(site.get("/ten", &[("if-match", "\"no\"")]).await.status, 412);
    // Preconditions do not turn a 404 into something else.
    assert_eq!(site.get("/nothing", &[("if-match", "\"no\"")]).await.status, 404);
    assert_eq!(site.get("/nothing", &[("range", "bytes=0-1")]).await.status, 404);

    let one = site.get("/ten", &[("range", "bytes=2-4")]).await;
    assert_eq!((one.status, one.text().as_str()), (206, "234"));
    assert_eq!(one.header("content-range"), "bytes 2-4/10");
    assert_eq!(one.header("content-length"), "3");
    assert_eq!(one.header("etag"), etag);
    let beyond = site.get("/ten", &[("range", "bytes=10-")]).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */10"));
    let stale = [("range", "bytes=2-4"), ("if-range", "\"old\"")];
    assert_eq!(site.get("/ten", &stale).await.status, 200);
    let fresh = [("range", "bytes=2-4"), ("if-range", &etag)];
    assert_eq!(site.get("/ten", &fresh).await.status, 206);
    assert_eq!(site.send(Method::HEAD, "/ten", &[("range", "bytes=2-4")]).await.status, 200);
    assert_eq!(site.get("/empty.txt", &[("range", "bytes=0-")]).await.status, 416);

    let several = site.get("/ten", &[("range", "bytes=0-0,5-6")]).await;
    assert_eq!(several.status, 206);
    let kind = several.header("content-type");
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let text = several.text();
    assert_eq!(several.header("content-length"), text.len().to_string());
    let parts: Vec<&str> = text.split(&format!("--{boundary}")).collect();
    assert_eq!(parts.len(), 4);
    assert!(
        parts[1].contains("Content-Range: bytes 0-0/10") && parts[1].ends_with("\r\n\r\n0\r\n")
    );
    assert!(
        parts[2].contains("Content-Range: bytes 5-6/10") && parts[2].ends_with("\r\n\r\n56\r\n")
    );
}

#[tokio::test]
async fn what_does_not_exist_costs_upstream_nothing() {
    let site = Fixture::new(FILES).await;
    site.get("/nothing", &[]).await;
    site.get("/docs/nothing", &[]).await;
    let before = site.upstream.fetches();
    for number in 0..200 {
        assert_eq!(site.get(&format!("/random/{number}"), &[]).await.status, 404);
        assert_eq!(site.send(Method::HEAD, "/ten", &[]).await.status, 200);
    }
    assert_eq!(site.upstream.fetches(), before);
}

#[tokio::test]
async fn large_files_come_whole_and_ranges_fetch_little() {
    let big = noise(3_500_000);
    let site = Fixture::new(&[("big", &big)]).await;
    let before = site.upstream.fetches();
    let range = site.get("/big", &[("range", "bytes=2000000-2000009")]).await;
    assert_eq!(range.body.unwrap(), big[2_000_000..2_000_010]);
    assert_eq!(site.upstream.fetches(), before + 1);
    let whole = site.get("/big", &[]).await;
    assert_eq!(whole.header("content-length"), "3500000");
    assert!(whole.body.unwrap() == big);
    assert_eq!(site.upstream.fetches(), before + 4);
    assert_ne!(whole.headers[header::ETAG], format!("\"{}\"", ChunkId::of(&big)));
}

#[tokio::test]
async fn without_upstream_a_miss_is_503_and_a_hit_goes_on() {
    let big = noise(2_500_000);
    let site = Fixture::new(&[("index.html", b"home"), ("big", &big)]).await;
    assert_eq!(site.get("/", &[]).await.status, 200);
    site.get("/big", &[("range", "bytes=0-0")]).await;
    site.upstream.down.store(true, Ordering::SeqCst);
    assert_eq!(site.get("/", &[]).await.status, 200);
    let broken = site.get("/big", &[]).await;
    assert!(broken.status == 200 && broken.body.is_err(), "never short, never wrong");
    let missing = site.get("/big", &[("range", "bytes=2000000-")]).await;
    assert_eq!((missing.status, missing.header("retry-after")), (503, "1"));
    assert_eq!(missing.header("cache-control"), "no-store");
}

#[test]
fn names_are_tokens_or_strings() {
    assert_eq!(structured_name("edge-1"), "edge-1");
    assert_eq!(structured_name("1edge"), "\"1edge\"");
    assert_eq!(structured_name("a\"b\\c"), "\"a\\\"b\\\\c\"");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_request_panics(
        target in "/[ -~]{0,40}",
        values in proptest::collection::vec(proptest::collection::vec(32u8..=255, 0..40), 9),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let Ok(uri) = target.parse::<Uri>() else { return Ok(()) };
        let names = [
            header::IF_MATCH, header::IF_NONE_MATCH, header::IF_RANGE, header::RANGE,
            header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE, header::ACCEPT_ENCODING,
            header::COOKIE, header::REFERER,
        ];
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("blog.localhost"));
        for (name, value) in names.into_iter().zip(values) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(name, value);
            }
        }
        let status = runtime.block_on(async {
            let site = Fixture::new(&[("index.html", b"home"), ("ten", b"0123456789")]).await;
            let request = Request { method: Method::GET, uri, headers, protocol: Protocol::H2 };
            site.responder.respond(&request).await.status
        });
        prop_assert!(status.as_u16() < 500);
    }
}

#[path = "earlier_tests.rs"]
mod earlier;

#[path = "invalidated_tests.rs"]
mod invalidated;

#[path = "ruled_tests.rs"]
mod ruled;
