//! Tests of `_redirects` and `_headers` at the handler. What the rules mean is tested with them, in
//! `proto/src/rules`.

use atoll_proto::manifest::proof::{Proof, Proven};
use atoll_proto::rules::decide::{Lookups, Outcome as Decided, Question};

use super::*;

const BROWSER: (&str, &str) = ("accept", "text/html,*/*;q=0.8");

const RULED: &[(&str, &[u8])] = &[
    ("index.html", b"home"),
    ("404.html", b"lost"),
    ("page.html", b"page"),
    ("gone.html", b"gone"),
    ("de.html", b"deutsch"),
    ("app.js", b"script"),
    ("ten", b"0123456789"),
    (
        "_redirects",
        b"/old /new?a=b 301\n\
          /news/* /blog/:splat 302\n\
          /page /never\n\
          /forced /page 200!\n\
          /was /gone.html 410\n\
          /away/* https://else.example/:splat 308\n\
          /back id=:id /item/:id\n\
          / /de 302! Language=de\n\
          /member /page 200 Cookie=session\n\
          /r/* /:splat\n\
          /assets/* /ten 200\n",
    ),
    (
        "_headers",
        b"/*\n  X-Site: ruled\n  X-Content-Type-Options: none\n\
          /ten\n  Content-Type: text/x-ten\n  Cache-Control: max-age=7\n\
          /page\n  Vary: Origin\n  X-Robots-Tag: all\n",
    ),
];

#[tokio::test]
async fn rules_redirect_rewrite_and_say_what_is_gone() {
    let site = Fixture::new(RULED).await;
    for (target, status, location) in [
        ("/old?x=y", 301, "/new?a=b"),
        ("/news/2026/x?y", 302, "/blog/2026/x?y"),
        ("/news/%0d%0aset-cookie:a", 302, "/blog/%0D%0Aset-cookie:a"),
        ("/away/%5c%5cevil", 308, "https://else.example/%5C%5Cevil"),
        ("/back?id=%2f%2fevil", 301, "/item/%2F%2Fevil"),
        ("/r/%5cevil.example", 301, "/%5Cevil.example"),
        ("/r/evil.example", 301, "/evil.example"),
        // Rules are asked about paths that no file can have, and never lead to another site.
        ("/r//evil.example", 301, "/evil.example"),
        ("/r/%2fevil.example", 301, "/evil.example"),
    ] {
        let answer = site.get(target, &[]).await;
        assert_eq!((answer.status, answer.header("location")), (status, location), "{target}");
        assert_eq!(answer.header("x-site"), "", "{target}");
        assert!(answer.header("cache-control").contains("must-revalidate"), "{target}");
    }
    for (target, status, text) in [
        ("/page", 200, "page"),
        ("/forced", 200, "page"),
        ("/was", 410, "gone"),
        ("/nothing", 404, "lost"),
        ("/_redirects", 404, "lost"),
        ("/_headers", 404, "lost"),
    ] {
        let answer = site.get(target, &[]).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, text), "{target}");
        assert_eq!(answer.header("atoll-deploy"), site.deploy.to_string());
    }
    let script = site.get("/gone.js", &[BROWSER]).await;
    assert_eq!((script.status, script.header("x-site")), (404, ""));
    assert!(!script.text().contains('<'));
}

#[tokio::test]
async fn headers_of_rules_are_on_files_and_change_nothing_that_is_the_servers() {
    let site = Fixture::new(RULED).await;
    let ten = site.get("/ten", &[]).await;
    assert_eq!(ten.header("content-type"), "text/x-ten");
    assert_eq!(ten.header("cache-control"), "max-age=7");
    assert_eq!(ten.header("x-content-type-options"), "none");
    let etag = ten.header("etag").to_owned();
    let same = site.get("/ten", &[("if-none-match", &etag)]).await;
    assert_eq!((same.status, same.header("cache-control")), (304, "max-age=7"));
    assert_eq!(same.header("content-type"), "");
    let parts = site.get("/ten", &[("range", "bytes=0-0,5-6")]).await;
    assert!(parts.header("content-type").starts_with("multipart/byteranges"));
    assert!(parts.text().contains("application/octet-stream"), "{}", parts.text());
    let beyond = site.get("/ten", &[("range", "bytes=99-")]).await;
    assert_eq!((beyond.status, beyond.header("x-site")), (416, ""));
    let missing = site.get("/nothing", &[]).await;
    assert_eq!((missing.status, missing.header("x-site")), (404, "ruled"));
    // At a preview no rule invites search engines.
    let digits = &site.deploy.to_string()[..12];
    let preview = format!("{digits}--blog.localhost");
    let page = site.get("/page", &[("host", &preview)]).await;
    assert_eq!((page.status, page.header("x-robots-tag")), (200, "noindex"));
    assert_eq!(site.get("/page", &[]).await.header("x-robots-tag"), "all");
}

#[tokio::test]
async fn pages_takes_away_what_the_edge_would_send() {
    let site = Fixture::new(&[]).await;
    let files: &[(&str, &[u8])] = &[
        ("a", b"a"),
        ("b", b"b"),
        ("_headers", b"/a\n  ! X-Content-Type-Options\n  ! Cache-Control\n  ! Content-Type\n"),
    ];
    let dialect = atoll_proto::site::Dialect::Pages;
    let settings = atoll_proto::site::SiteSettings { dialect, ..Default::default() };
    let deploy = Published::with(&site.upstream, files, &settings).deploy;
    site.set_alias("production", deploy, &[]).await;
    let (less, other) = (site.get("/a", &[]).await, site.get("/b", &[]).await);
    for name in ["x-content-type-options", "cache-control", "content-type"] {
        assert_eq!(less.headers.get(name), None, "{name}");
        assert!(other.headers.contains_key(name), "{name}");
    }
    for target in ["/none", "/a/"] {
        assert_eq!(site.get(target, &[]).await.header("x-content-type-options"), "nosniff");
    }
}

#[tokio::test]
async fn what_depends_on_the_visitor_says_so() {
    let site = Fixture::new(RULED).await;
    let vary = |answer: &Answer| -> Vec<String> {
        let all = answer.headers.get_all(header::VARY).iter();
        all.map(|value| value.to_str().unwrap().to_owned()).collect()
    };
    let german = site.get("/", &[("accept-language", "de-AT,en;q=0.9")]).await;
    assert_eq!((german.status, german.header("location")), (302, "/de"));
    assert_eq!(vary(&german), ["Accept-Language"]);
    let other = site.get("/", &[("accept-language", "en,de;q=0.9")]).await;
    assert_eq!((other.status, other.text().as_str()), (200, "home"));
    assert_eq!(vary(&other), ["Accept-Language"]);
    let member = site.get("/member", &[("cookie", "a=b"), ("cookie", "session=1; c=d")]).await;
    assert_eq!((member.status, vary(&member)), (200, vec!["Cookie".to_owned()]));
    let stranger = site.get("/member", &[("cookie", "sessions=1")]).await;
    assert_eq!((stranger.status, vary(&stranger)), (404, vec!["Cookie".to_owned()]));
    assert_eq!(vary(&site.get("/page", &[]).await), ["Origin"]);
    assert!(vary(&site.get("/ten", &[]).await).is_empty());
    // Files that are no pages come from a rule only for who navigates.
    let image = site.get("/assets/old.png", &[("accept", "image/*")]).await;
    assert_eq!((image.status, vary(&image)), (200, vec![]), "its target is no page");
}

#[tokio::test]
async fn rules_that_cannot_be_had_are_503_and_cost_nothing_once_they_are_there() {
    let site = Fixture::new(RULED).await;
    site.upstream.down.store(true, Ordering::SeqCst);
    let before = site.upstream.fetches();
    for number in 0..200 {
        assert_eq!(site.get(&format!("/news/{number}"), &[]).await.status, 302);
        assert_eq!(site.get(&format!("/none/{number}.js"), &[]).await.status, 404);
    }
    assert_eq!(site.upstream.fetches(), before, "rules come with a publish");
    // Rules that nobody ever read.
    let other = Published::new(&site.upstream, &[("a", b"a"), ("_redirects", b"/x /y 302")]);
    let unread = site.responder.index.rules(other.deploy).await;
    assert!(unread.is_err());
    site.upstream.down.store(false, Ordering::SeqCst);
    let index = &site.responder.index;
    let all = (0..20).map(|_| index.rules(other.deploy));
    let all = futures_util::future::join_all(all).await;
    assert!(all.iter().all(|rules| rules.as_ref().unwrap().set().redirects.len() == 1));
    assert!(
        all.windows(2)
            .all(|two| { Arc::ptr_eq(two[0].as_ref().unwrap(), two[1].as_ref().unwrap()) })
    );
}

struct Known<'a>(&'a Proven);

impl Lookups for Known<'_> {
    fn exists(&self, path: &[u8]) -> Option<bool> {
        self.0.lookup(path).ok().map(|entry| entry.is_some())
    }
}

#[tokio::test]
async fn a_proof_has_the_rules_and_every_file_they_ask_for() {
    let site = Fixture::new(RULED).await;
    for (target, status, location) in [
        ("/news/1?x=y", 302, "/blog/1?x=y"),
        ("/back?id=7", 301, "/item/7"),
        ("/was", 410, ""),
        ("/assets/a/b/c", 200, ""),
        ("/nothing/here", 404, ""),
    ] {
        let proof = site.get(&format!("/.well-known/atoll/proof?path={target}"), &[]).await;
        let proof = Proof::decode(&proof.body.unwrap()).unwrap();
        let proven = proof.open(site.deploy).unwrap();
        let rules = proven.rules().unwrap();
        let uri: Uri = target.parse().unwrap();
        let asked = path::parse(uri.path().as_bytes()).unwrap();
        let facts = ask::facts(&asked, "blog.localhost", uri.query(), &HeaderMap::new());
        let decision = Question::new(&rules, facts).decide(&Known(&proven)).unwrap();
        let decided = match &decision.outcome {
            Decided::File { .. } => (200, ""),
            Decided::Redirect { status, location } => (*status, location.as_str()),
            Decided::NotFound { status, .. } => (*status, ""),
        };
        assert_eq!(decided, (status, location), "{target}");
        let answer = site.get(target, &[]).await;
        assert_eq!((answer.status, answer.header("location")), (status, location), "{target}");
    }
}
