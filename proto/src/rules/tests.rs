//! Rules as a whole: what is read, what is stored, what is decided.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::decide::{Decision, HeaderEffect, Lookups, Outcome, Question};
use super::parse::{Faults, Sources, parse};
use super::request::{Facts, Signals, wants};
use super::*;
use crate::site::Dialect::{Netlify, Pages};

const BROWSER: &str = "text/html,*/*;q=0.8";

struct Files<'a>(&'a [&'a str]);

impl Lookups for Files<'_> {
    fn exists(&self, path: &[u8]) -> Option<bool> {
        Some(self.0.iter().any(|own| own.as_bytes() == path))
    }
}

fn read(dialect: Dialect, redirects: &str, headers: &str) -> Result<RuleSet, Faults> {
    let sources =
        Sources { redirects: Some(redirects.as_bytes()), headers: Some(headers.as_bytes()) };
    parse(sources, &SiteSettings { dialect, ..Default::default() })
}

fn rules(dialect: Dialect, redirects: &str) -> Rules {
    Rules::new(read(dialect, redirects, "").unwrap())
}

fn facts(url: &str, accept: &str) -> Facts {
    let (path, query) = match url.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (url, None),
    };
    let path = path.strip_prefix('/').unwrap();
    let directory = path.is_empty() || path.ends_with('/');
    let path = template::decode(path.trim_end_matches('/').as_bytes()).unwrap();
    let signals = Signals { accept: Some(accept), ..Default::default() };
    let wants = wants(signals, &path);
    Facts { path, directory, host: "blog.example".to_owned(), query, wants }
}

fn decided(rules: &Rules, files: &[&str], url: &str) -> Decision {
    Question::new(rules, facts(url, BROWSER)).decide(&Files(files)).unwrap()
}

/// `301 /target`, the file, or `404`.
fn said(rules: &Rules, files: &[&str], url: &str) -> String {
    show(decided(rules, files, url).outcome)
}

fn show(outcome: Outcome) -> String {
    match outcome {
        Outcome::File { path, status: 200 } => String::from_utf8(path).unwrap(),
        Outcome::File { path, status } => format!("{status} {}", String::from_utf8(path).unwrap()),
        Outcome::Redirect { status, location } => format!("{status} {location}"),
        Outcome::NotFound { status, page: Some(page) } => {
            format!("{status} {}", String::from_utf8(page).unwrap())
        }
        Outcome::NotFound { status, page: None } => status.to_string(),
    }
}

#[test]
fn netlify_redirects() {
    let rules = rules(
        Netlify,
        "# comment\n\n\
         /old /new            # the default is 301\n\
         /temp /t 302\n\
         /news/* /blog/:splat 308\n\
         /posts/:year/:name /:name-:year.html 303\n\
         /store id=:id tag=x /blog/:id 301\n\
         /store /shop?from=store 301\n\
         /here /index.html 200\n\
         /page /never\n\
         /forced /taken 302!\n\
         /gone /gone.html 410\n\
         /en/* /en/404.html 404\n\
         https://old.example/* https://blog.example/:splat 301!\n\
         /deep/* /deep/:splat/ 301\n\
         /ü /ö 301\n\
         /again v=1 /again 301\n\
         /ext https://other.example:8443/x?y=1#z 307\n",
    );
    let files = ["index.html", "page.html", "forced.html", "gone.html", "en/404.html"];
    for (url, expected) in [
        ("/old", "301 /new"),
        ("/old/", "301 /new"),
        ("/old?a=b&c", "301 /new?a=b&c"),
        ("/temp", "302 /t"),
        ("/news", "308 /blog/"),
        ("/news/a/b", "308 /blog/a/b"),
        ("/posts/2026/hi", "303 /hi-2026.html"),
        ("/posts/2026", "404"),
        ("/store?tag=x&id=7", "301 /blog/7"),
        ("/store?id=a%2Fb%0d%0aX&tag=x", "301 /blog/a%2Fb%0D%0AX"),
        ("/store?tag=y&id=7", "301 /shop?from=store"),
        ("/here", "index.html"),
        ("/page", "page.html"),
        ("/forced", "302 /taken"),
        ("/gone", "gone.html"),
        ("/en/x/y", "404 en/404.html"),
        ("/deep/a", "404"),
        ("/%C3%BC", "301 /%C3%B6"),
        ("/again?v=1", "301 /again"),
        ("/again", "404"),
        ("/ext?q=1", "307 https://other.example:8443/x?y=1#z"),
        ("/other", "404"),
    ] {
        assert_eq!(said(&rules, &files, url), expected, "{url}");
    }
    assert_eq!(decided(&rules, &files, "/temp").rule, Some(1));
    assert_eq!(rules.set().redirects[1].line, 4);
}

#[test]
fn pages_redirects() {
    let rules = rules(
        Pages,
        "/old /new\n/page /first 301\n/a/*/z /x/:splat 302\n/blog-:id.html /b/:id 301\n\
         /x* /:splat 302\n/rew/:n /page 200\n",
    );
    let files = ["page.html"];
    for (url, expected) in [
        ("/old", "302 /new"),
        ("/old/", "404"),
        ("/page", "301 /first"),
        ("/a/b/c/z", "302 /x/b/c"),
        ("/a/z", "404"),
        ("/blog-12.html", "301 /b/12"),
        ("/blog-.html", "404"),
        ("/x/evil.example", "302 /evil.example"),
        ("/x//evil.example", "302 /evil.example"),
        ("/rew/1", "page.html"),
    ] {
        assert_eq!(said(&rules, &files, url), expected, "{url}");
    }
}

#[test]
fn what_is_not_understood_is_an_error_with_its_line() {
    for (dialect, line, part) in [
        (Netlify, "/a", "target is missing"),
        (Netlify, "a /b", "must begin with"),
        (Netlify, "/a b", "must begin with"),
        (Netlify, "/a /b 299", "no status"),
        (Netlify, "/a /b 301 Country=de", "cannot be honoured"),
        (Netlify, "/a /b Language=de", "cannot be honoured"),
        (Netlify, "/a /b 301 Role=admin", "cannot be honoured"),
        (Netlify, "/a /b 301 Cookie=x", "cannot be honoured"),
        (Netlify, "/a /b 301 what", "not understood"),
        (Netlify, "/a/*/b /c", "last segment"),
        (Netlify, "/a* /c", "whole segment"),
        (Netlify, "/a /b/:c", "captures nothing"),
        (Netlify, "/:a/:a /b", "twice"),
        (Netlify, "/api/* https://api.example/:splat 200", "proxying is not supported"),
        (Netlify, "/a //evil.example", "two slashes"),
        (Netlify, "/a%zz /b", "escape"),
        (Netlify, "/a https://:x.example/", "host cannot hold placeholders"),
        (Netlify, "/a?b=c /d", "query"),
        (Netlify, "https://a.example:80/x /y", "port"),
        (Pages, "/a /b 301!", "no `!`"),
        (Pages, "/a /b 404", "no status"),
        (Pages, "/a /b 301 # why", "not understood"),
        (Pages, "/*/*  /b", "more than one `*`"),
        (Pages, "/:a-:b /b", "two wildcards"),
        (Pages, "/a https://b.example/ 200", "proxying is not supported"),
    ] {
        let faults = read(dialect, &format!("# first\n{line}\n"), "").unwrap_err();
        let text = faults.to_string();
        assert!(text.starts_with("_redirects:2: ") && text.contains(part), "{line}: {text}");
    }
    for (dialect, lines, part) in [
        (Netlify, "/a\n  Content-Length: 7\n", "_headers:2: content-length belongs"),
        (Netlify, "/a\n  Transfer-Encoding: x\n", "belongs to the server"),
        (Netlify, "/a\n  Set-Cookie: a=b\n", "set-cookie cannot"),
        (Netlify, "  X: y\n", "_headers:1: a header before any path"),
        (Netlify, "/a\n/b\n  X: y\n", "_headers:1: a path without any header"),
        (Netlify, "/a\n  nonsense\n", "_headers:2: \"nonsense\" is neither"),
        (Netlify, "/a\n  B ad: x\n", "not the name of a header"),
        (Netlify, "/a\n  X:\n", "has no value"),
        (Netlify, "/a\n  ! X\n", "cannot remove"),
    ] {
        let text = read(dialect, "", lines).unwrap_err().to_string();
        assert!(text.contains(part), "{lines}: {text}");
    }
    let many = "bad\n".repeat(50);
    let faults = read(Netlify, &many, "").unwrap_err();
    assert_eq!((faults.told.len(), faults.more), (limits::RULE_FAULTS_TOLD, 30));
    assert!(faults.to_string().ends_with("and 30 more"));
}

fn effect(dialect: Dialect, headers: &str, url: &str) -> HeaderEffect {
    let rules = Rules::new(read(dialect, "", headers).unwrap());
    Question::new(&rules, facts(url, BROWSER)).headers()
}

#[test]
fn headers_of_all_rules_that_fit() {
    let of = |list: &[(&str, Option<&str>)]| -> Vec<(String, Option<String>)> {
        list.iter().map(|(n, v)| ((*n).to_owned(), v.map(str::to_owned))).collect()
    };
    let text = "/*\n  X-A: 1\n  X-A: 2\n# comment\n/docs/:page\n  X-A: :page\n  X-B: b: c\n";
    let both = effect(Netlify, text, "/docs/intro");
    assert_eq!(both.headers, of(&[("x-a", Some(":page")), ("x-b", Some("b: c"))]));
    assert_eq!(both.rules, [0, 1]);
    assert_eq!(effect(Netlify, text, "/other").headers, of(&[("x-a", Some("1, 2"))]));
    let both = effect(Pages, text, "/docs/intro");
    assert_eq!(both.headers, of(&[("x-a", Some("1, 2, intro")), ("x-b", Some("b: c"))]));
    let text = "/*\n  X-A: 1\n/docs/*\n  ! X-A\n  ! Cache-Control\n  X-C: :splat\n";
    let less = effect(Pages, text, "/docs/a%0Ab");
    let expected = of(&[("x-a", None), ("cache-control", None), ("x-c", Some("a%0Ab"))]);
    assert_eq!(less.headers, expected);
    let text = "https://blog.example/*\n  X: here\nhttps://other.example/*\n  X: there\n";
    assert_eq!(effect(Pages, text, "/").headers, of(&[("x", Some("here"))]));
}

#[test]
fn single_page_applications_answer_navigations_only() {
    let settings = SiteSettings { spa: true, ..Default::default() };
    let rules = Rules::new(RuleSet::of_settings(&settings));
    let files = Files(&["index.html", "404.html", "app.js"]);
    let ask = |url: &str, accept: &str| {
        show(Question::new(&rules, facts(url, accept)).decide(&files).unwrap().outcome)
    };
    assert_eq!(ask("/users/7", BROWSER), "index.html");
    assert_eq!(ask("/users/7.html", BROWSER), "index.html");
    assert_eq!(ask("/app.js", "*/*"), "app.js");
    assert_eq!(ask("/old.js", "*/*"), "404");
    assert_eq!(ask("/old.js", BROWSER), "404 404.html");
    assert_eq!(ask("/api/users", "application/json"), "404 404.html");
    assert_eq!(ask("/logo.png", "image/avif,*/*"), "404");
}

#[test]
fn a_catch_all_is_no_script() {
    let rules = rules(Netlify, "/* /index.html 200\n");
    let files = Files(&["index.html", "app.js"]);
    let ask = |url: &str, accept: &str| {
        show(Question::new(&rules, facts(url, accept)).decide(&files).unwrap().outcome)
    };
    assert_eq!(ask("/app.js", "*/*"), "app.js");
    assert_eq!(ask("/old.js", "*/*"), "404");
    assert_eq!(ask("/users/john.doe", BROWSER), "index.html");
    assert_eq!(ask("/users", "*/*"), "index.html");
}

#[test]
fn files_of_rules_are_not_served() {
    let rules = Rules::default();
    let files = ["_redirects", "_headers", "a/_headers"];
    assert_eq!(said(&rules, &files, "/_redirects"), "404");
    assert_eq!(said(&rules, &files, "/_headers"), "404");
    assert_eq!(said(&rules, &files, "/a/_headers"), "a/_headers");
}

#[test]
fn a_hundred_thousand_rules_are_found() {
    let mut text = String::new();
    for number in 0..100_000 {
        match number % 10 {
            0 => text.push_str(&format!("/dyn/{number}/:name/* /to/{number}/:name/:splat 302\n")),
            _ => text.push_str(&format!("/articles/2019/{number}-title /blog/{number} 301\n")),
        }
    }
    text.push_str("/dyn/10/x/y /late\n/* /rest 302\n");
    let bytes = read(Netlify, &text, "").unwrap().encode().unwrap();
    let rules = Rules::decode(&bytes).unwrap();
    assert_eq!(rules.set().redirects.len(), 100_002);
    for (url, expected) in [
        ("/articles/2019/99999-title", "301 /blog/99999"),
        ("/articles/2019/1-title/", "301 /blog/1"),
        ("/dyn/99990/a/b/c", "302 /to/99990/a/b/c"),
        ("/dyn/10/x/y", "302 /to/10/x/y"),
        ("/articles/2019/0-title", "302 /rest"),
    ] {
        assert_eq!(said(&rules, &[], url), expected, "{url}");
    }
}

/// The first rule that fits, asked one by one.
fn naive(rules: &Rules, url: &str) -> Option<u32> {
    let facts = facts(url, BROWSER);
    let dialect = rules.set().dialect;
    let asked = pattern::segments(dialect, &facts.path, facts.directory);
    let mut all = (0_u32..).zip(&rules.set().redirects);
    let fits = |rule: &Redirect| rule.source.captured(dialect, &facts.host, &asked).is_some();
    all.find(|(_, rule)| fits(rule)).map(|(number, _)| number)
}

fn source_text() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        3 => "[ab]{1,2}",
        1 => Just(":x".to_owned()),
        1 => Just("a:y".to_owned()),
        1 => Just("*".to_owned()),
        1 => Just("a*".to_owned()),
        1 => Just(String::new()),
    ];
    proptest::collection::vec(segment, 0..4).prop_map(|parts| format!("/{}", parts.join("/")))
}

proptest! {
    #[test]
    fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for dialect in [Netlify, Pages] {
            let settings = SiteSettings { dialect, ..Default::default() };
            let sources = Sources { redirects: Some(&bytes), headers: Some(&bytes) };
            drop(parse(sources, &settings));
        }
        drop(Rules::decode(&bytes));
    }

    #[test]
    fn lines_like_rules_never_panic(text in "[/:*a-c!%#?=@ 0-4\n.\u{e9}]{0,60}", url in "/[a-c/.%]{0,12}") {
        for dialect in [Netlify, Pages] {
            if let Ok(set) = read(dialect, &text, "") {
                let rules = Rules::decode(&set.clone().encode().unwrap()).unwrap();
                prop_assert_eq!(rules.set(), &set);
                let path = template::decode(url.as_bytes()).is_some();
                if path {
                    let location = said(&rules, &["a", "b.html", "c/index.html"], &url);
                    prop_assert!(location.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
                    prop_assert!(!location.contains(" //"), "{}", location);
                }
            }
        }
    }

    #[test]
    fn the_tree_finds_what_asking_one_by_one_finds(
        sources in proptest::collection::vec(source_text(), 1..12),
        url in "/([ab]{0,2}/){0,3}[ab]{0,2}",
        pages: bool,
    ) {
        let dialect = if pages { Pages } else { Netlify };
        let lines = sources.iter().filter_map(|source| {
            let line = format!("{source} https://else.example/ 302{}", if pages { "" } else { "!" });
            read(dialect, &line, "").is_ok().then_some(line + "\n")
        });
        let rules = rules(dialect, &lines.collect::<String>());
        prop_assert_eq!(decided(&rules, &[], &url).rule, naive(&rules, &url));
    }
}
