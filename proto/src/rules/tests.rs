//! Rules as a whole: what is read, what is stored, what is decided.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::decide::{Decision, Lookups, Outcome, Question};
use super::effect::HeaderEffect;
use super::parse::{Faults, Sources, parse};
use super::request::{Facts, Visitor, navigates};
use super::*;
use crate::limits;
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
    let navigation = navigates(Some(accept), None);
    let (host, visitor) = ("blog.example".to_owned(), Visitor::default());
    Facts { path, directory, host, query, navigation, visitor }
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
        Outcome::File { path } => String::from_utf8(path).unwrap(),
        Outcome::Redirect { status, location } => format!("{status} {location}"),
        Outcome::NotFound { status, page: Some(page), .. } => {
            format!("{status} {}", String::from_utf8(page).unwrap())
        }
        Outcome::NotFound { status, page: None, .. } => status.to_string(),
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
fn colons_that_are_no_placeholders() {
    let text = "/wiki https://en.wikipedia.org/wiki/Help:Contents\n\
                /wiki/Help:Contents /help/:page\n\
                /at/10:30 /:12/x:splatter\n\
                /talk/:page /wiki/Talk:page:pages\n";
    let rules = rules(Netlify, text);
    for (url, expected) in [
        ("/wiki", "301 https://en.wikipedia.org/wiki/Help:Contents"),
        ("/wiki/Help:Contents", "301 /help/:page"),
        ("/wiki/HelpX", "404"),
        ("/at/10:30", "301 /:12/x:splatter"),
        ("/talk/a", "301 /wiki/Talka:pages"),
    ] {
        assert_eq!(said(&rules, &[], url), expected, "{url}");
    }
}

#[test]
fn a_rule_without_a_target_is_about_its_own_path() {
    let text = "/admin/* 200! Cookie=a\n/admin/* 302! /login\n";
    assert!(read(Netlify, text, "").is_err());
    let text = "/admin/* 200! Cookie=a\n/admin/* /login 302!\n/:x/own/* 200\n/* /rest\n";
    let rules = rules(Netlify, text);
    let files = ["admin/index.html", "admin/a.html", "b/own/c.js"];
    let ask = |url: &str, cookie: &str| {
        let visitor = Visitor::new(None, [cookie]);
        let question = Question::new(&rules, Facts { visitor, ..facts(url, BROWSER) });
        show(question.decide(&Files(&files)).unwrap().outcome)
    };
    for (url, cookie, expected) in [
        ("/admin", "a=1", "admin/index.html"),
        ("/admin/a", "a=1", "admin/a.html"),
        ("/admin/none", "a=1", "404"),
        ("/admin/a", "", "302 /login"),
        ("/b/own/c.js", "", "b/own/c.js"),
        ("/b/own/d.js", "", "404"),
        ("/b/other", "", "301 /rest"),
    ] {
        assert_eq!(ask(url, cookie), expected, "{url} {cookie}");
    }
}

#[test]
fn pages_redirects() {
    let rules = rules(
        Pages,
        "/old /new\n/page /first 301\n/a/*/z /x/:splat 302\n/blog-:id.html /b/:id 301\n\
         /x* /:splat 302\n/rew/:n /page 200\n\
         /why /because 301 # a reason\n/not /so #why\n/c?this=x /d#e 301\n",
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
        ("/why", "301 /because"),
        ("/not", "302 /so"),
        ("/c", "301 /d#e"),
        ("/c?that=y", "301 /d?that=y#e"),
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
        (Netlify, "/a /b Language=", "cannot be a value"),
        (Netlify, "/a /b Language=de Language=en", "twice"),
        (Netlify, "/a Language=de /b", "before the target"),
        (Pages, "/a /b 302 Language=de", "not understood"),
        (Netlify, "/a /b 301 Role=admin", "cannot be honoured"),
        (Netlify, "/a /b 301 Cookie=x;y", "cannot be a value"),
        (Netlify, "/a /b 301 what", "not understood"),
        (Netlify, "/a/*/b /c", "last segment"),
        (Netlify, "/a* /c", "whole segment"),
        (Netlify, "/a /b/:splat", "captures nothing"),
        (Netlify, "/:a.html /b", "whole segment"),
        (Netlify, "/a//b /c", "two slashes in a row"),
        (Netlify, "/a// /c", "two slashes in a row"),
        (Netlify, "/%2Fa /c", "two slashes in a row"),
        (Pages, "/a//b /c", "two slashes in a row"),
        (Pages, "/a%2f/ /c", "two slashes in a row"),
        (Netlify, "/a/%2E%2E/b /c", "no request can have"),
        (Netlify, "/a%00b /c", "no request can have"),
        (Netlify, "/a:b* /b", "whole segment"),
        (Netlify, "/admin 200", "must begin with"),
        (Netlify, "/admin/* 301", "must begin with"),
        (Pages, "/admin/* 200", "must begin with"),
        (Netlify, "/:a/:a /b", "twice"),
        (Netlify, "/api/* https://api.example/:splat 200", "proxying is not supported"),
        (Netlify, "/a //evil.example", "two slashes"),
        (Netlify, "/a%zz /b", "escape"),
        (Netlify, "/a https://:x.example/", "host cannot hold placeholders"),
        (Netlify, "/a?b=c /d", "query"),
        (Netlify, "https://a.example:80/x /y", "port"),
        (Pages, "/a /b 301!", "no `!`"),
        (Pages, "/a /b 404", "no status"),
        (Pages, "/* /index.html 200", "for ever"),
        (Pages, "/* /index.html", "for ever"),
        (Pages, "/app/* /app/index 302", "for ever"),
        (Pages, "https://a.example/* /index.html 200", "for ever"),
        (Pages, "/a /b 301 why", "not understood"),
        (Pages, "/a #b 301", "must begin with"),
        (Pages, "/*/*  /b", "more than one `*`"),
        (Pages, "/:a-* /b", "several wildcards"),
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
        (Netlify, "/a\n  Basic-Auth: me:secret\n", "_headers:2: basic-auth would show"),
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
    for (redirects, headers, part) in [
        (
            "/a /b\n".repeat(limits::RULES_MAX + 1),
            String::new(),
            "_redirects:150001: there are too",
        ),
        ("/a/b/c/d/e /b\n".repeat(100_001), String::new(), "too many segments in all"),
        (String::new(), "/a\n X: y\n".repeat(limits::RULES_MAX + 1), "_headers:300001: there are"),
        (String::new(), format!("/a\n{}", " X: yyyy\n".repeat(4000)), "value of x is too long"),
        (
            format!("/a /{}", "\u{fc}".repeat(3000)),
            String::new(),
            "_redirects:1: the target is too",
        ),
        (format!("/a {}", "b".repeat(5000)), String::new(), "must begin"),
        (
            format!("/a/{} /b", "c".repeat(256)),
            String::new(),
            "_redirects:1: a segment of the path",
        ),
        (
            format!("{} /b", format!("/{}", "c".repeat(255)).repeat(17)),
            String::new(),
            "path is too",
        ),
        (String::new(), format!("/a{}*\n  X: y\n", "-".repeat(255)), "_headers:1: a segment"),
    ] {
        let faults = read(Netlify, &redirects, &headers).unwrap_err();
        let text = faults.to_string();
        assert!(
            text.starts_with('_') && text.contains(part) && text.len() < 12_000,
            "{part}: {}",
            text.len()
        );
    }
    assert!(
        read(Netlify, &"bad\n".repeat(99_999), "").unwrap_err().to_string().ends_with("many more")
    );
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
    let text = "/*\n  X-A: 1\n/a\n  X-A: 2\n  ! X-A\n/b\n  ! X-A\n  X-A: 2\n";
    for url in ["/a", "/b"] {
        assert_eq!(effect(Pages, text, url).headers, of(&[("x-a", Some("2"))]));
    }
    let text = "/*.js\n  X: script\n/a/*/z\n  Y: between\n/b-:c\n  Z: part\n";
    for (url, name) in [("/app.js", "x"), ("/d/e.js", "x"), ("/a/b/z", "y"), ("/b-1", "z")] {
        let effect = effect(Pages, text, url);
        assert_eq!(effect.headers.iter().map(|(own, _)| own.as_str()).collect::<Vec<_>>(), [name]);
    }
    assert!(effect(Netlify, text, "/app.jsx").headers.is_empty());
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
    assert_eq!(ask("/old.js", BROWSER), "404");
    assert_eq!(ask("/api/users", "application/json"), "404 404.html");
    assert_eq!(ask("/logo.png", "image/avif,*/*"), "404 404.html");
    let vary = |url: &str| {
        let decision = Question::new(&rules, facts(url, BROWSER)).decide(&files).unwrap();
        decision.vary.names().collect::<Vec<_>>().join(",")
    };
    assert_eq!(vary("/users/7"), "Accept,Sec-Fetch-Mode");
    assert_eq!(vary("/app.js") + &vary("/old.js") + &vary("/"), "");
}

#[test]
fn a_rewrite_answers_as_its_target_does() {
    let text = "/d /docs/ 200\n/e /docs 200\n/p /page/ 200\n/f /only.html 200\n/g /only 200\n/n /no/ 200\n";
    let files = ["docs.html", "docs/index.html", "page.html", "only.html"];
    for html in [
        HtmlHandling::Lenient,
        HtmlHandling::AutoTrailingSlash,
        HtmlHandling::ForceTrailingSlash,
        HtmlHandling::DropTrailingSlash,
        HtmlHandling::None,
    ] {
        let settings = SiteSettings { html_handling: html, ..Default::default() };
        let sources = Sources { redirects: Some(text.as_bytes()), headers: None };
        let rules = Rules::new(parse(sources, &settings).unwrap());
        // What a visitor of the target ends at, for whom a redirect is followed.
        let visited = |url: &str| match said(&rules, &files, url) {
            moved if moved.starts_with("307 ") => said(&rules, &files, &moved[4..]),
            file => file,
        };
        for (url, target, otherwise) in [
            ("/d", "/docs/", "docs/index.html"),
            ("/e", "/docs", "docs.html"),
            ("/p", "/page/", "page.html"),
            ("/f", "/only.html", "only.html"),
            ("/g", "/only", "only.html"),
            ("/n", "/no/", "404"),
        ] {
            let visited = match visited(target) {
                none if none == "404" => otherwise.to_owned(),
                file => file,
            };
            assert_eq!(said(&rules, &files, url), visited, "{html:?} {url}");
        }
        if html == HtmlHandling::Lenient {
            assert_eq!(said(&rules, &files, "/d"), "docs/index.html");
            assert_eq!(said(&rules, &files, "/e"), "docs/index.html");
        }
    }
}

#[test]
fn what_tells_parameters_apart_is_plain_in_paths() {
    let rules = rules(Netlify, "/s/:x/* /to/:x/:splat?q=:x&s=:splat 302\n/t/* /to/:splat#:splat\n");
    for (url, expected) in [
        ("/s/a=b&c+d/e+f/g=h", "302 /to/a=b&c+d/e+f/g=h?q=a%3Db%26c%2Bd&s=e%2Bf%2Fg%3Dh"),
        ("/t/a%26b/%3D", "301 /to/a&b/=#a%26b%2F%3D"),
    ] {
        assert_eq!(said(&rules, &[], url), expected, "{url}");
    }
    let settings =
        SiteSettings { html_handling: HtmlHandling::AutoTrailingSlash, ..Default::default() };
    let rules = Rules::new(RuleSet::of_settings(&settings));
    assert_eq!(said(&rules, &["a&b=c+d.html"], "/a&b=c+d.html"), "307 /a&b=c+d");
}

#[test]
fn an_escaped_slash_is_a_slash() {
    let text = "/a%2Fb /one\n/c%2fd/* /two\n/e%252Ff /three\n";
    for dialect in [Netlify, Pages] {
        let rules = rules(dialect, text);
        for (url, expected) in [("/a/b", "/one"), ("/a%2Fb", "/one"), ("/c/d/e", "/two")] {
            assert!(said(&rules, &[], url).ends_with(expected), "{url}");
        }
        assert!(said(&rules, &[], "/e%252Ff").ends_with("/three"));
        assert_eq!(said(&rules, &[], "/e/f"), "404");
    }
    let hidden = effect(Netlify, "/.*\n  X: y\n", "/.env");
    assert_eq!(hidden.headers.len(), 1);
}

#[test]
fn circles_of_pages_depend_on_clean_urls() {
    for (html, line, fine) in [
        (HtmlHandling::AutoTrailingSlash, "/ /index.html 200", false),
        (HtmlHandling::DropTrailingSlash, "/docs/ /docs/index 302", false),
        (HtmlHandling::None, "/ /index.html 200", true),
        (HtmlHandling::Lenient, "/ /index.html 200", true),
        (HtmlHandling::None, "/* /index.html 200", false),
        (HtmlHandling::ForceTrailingSlash, "/* https://b.example/index.html", true),
        (HtmlHandling::AutoTrailingSlash, "/* /index.html?a=b 302", true),
        (HtmlHandling::AutoTrailingSlash, "/a /index.html 302", true),
    ] {
        let settings = SiteSettings { dialect: Pages, html_handling: html, ..Default::default() };
        let sources = Sources { redirects: Some(line.as_bytes()), headers: None };
        assert_eq!(parse(sources, &settings).is_ok(), fine, "{html:?} {line}");
    }
}

#[test]
fn a_catch_all_of_pages_comes_before_everything() {
    let rules = rules(Pages, "/* /maintenance 200\n");
    let files = Files(&["index.html", "maintenance.html", "app.js", "logo.png"]);
    for url in ["/", "/app.js", "/logo.png", "/none.png", "/a/b"] {
        let decided = Question::new(&rules, facts(url, "*/*")).decide(&files).unwrap();
        assert_eq!(show(decided.outcome), "maintenance.html", "{url}");
        assert_eq!(decided.vary.names().count(), 0);
    }
}

#[test]
fn no_wildcard_answers_a_script_that_is_missing_with_a_page() {
    let files = ["index.html", "app.html", "maintenance.html", "old.css"];
    let netlify = ["/* /index.html", "/:p /index.html", "/app/:id /app.html", "/:f/* /app.html"];
    let pages = ["/* /maintenance", "/app/* /app", "/app/:id /app", "/:p /app"];
    let lines =
        netlify.map(|line| (Netlify, line)).into_iter().chain(pages.map(|line| (Pages, line)));
    for (dialect, line) in lines {
        let rules = rules(dialect, &format!("{line} 200"));
        for url in ["/chunk.js", "/app/chunk.js", "/app/style.css"] {
            let Decision { outcome, .. } = decided(&rules, &files, url);
            let Outcome::NotFound { status: 404, page: None, missing } = outcome else {
                panic!("{line}: {url} is {outcome:?}");
            };
            assert_eq!(missing.as_deref(), Some(&url.as_bytes()[1..]), "{line}: earlier, {url}");
        }
    }
    // Who forces it, or names the script, means it.
    for line in ["/* /index.html 200!", "/chunk.js /index.html 200"] {
        assert_eq!(said(&rules(Netlify, line), &files, "/chunk.js"), "index.html", "{line}");
    }
    assert_eq!(said(&rules(Netlify, "/lib/:name /old.css 200"), &files, "/lib/x.css"), "old.css");
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
    assert_eq!(ask("/old.js", BROWSER), "404");
    assert_eq!(ask("/logo.png", "image/*"), "404");
    assert_eq!(ask("/logo.png", BROWSER), "index.html");
}

#[test]
fn visitors_are_told_apart_where_a_rule_says_so() {
    let text = "/ /at 302! language=de-AT\n/ /de 302! Language=de,nl\n/ /in 302! Cookie=a,b\n\
                /only /de 302 Language=de Cookie=a\n/own /de Language=de\n";
    let rules = rules(Netlify, text);
    let files = Files(&["index.html", "own.html"]);
    let ask = |url: &str, language: Option<&str>, cookie: &str| {
        let visitor = Visitor::new(language, [cookie]);
        let question = Question::new(&rules, Facts { visitor, ..facts(url, BROWSER) });
        let decision = question.decide(&files).unwrap();
        let vary: Vec<&str> = decision.vary.names().collect();
        (show(decision.outcome), vary.join(","))
    };
    let said = |text: &str, vary: &str| (text.to_owned(), vary.to_owned());
    assert_eq!(ask("/", Some("de-at"), ""), said("302 /at", "Accept-Language"));
    assert_eq!(ask("/", Some("nl-BE, de"), "a=1"), said("302 /de", "Accept-Language"));
    assert_eq!(ask("/", Some("en, de"), "b=1"), said("302 /in", "Accept-Language,Cookie"));
    assert_eq!(ask("/", None, "c=1"), said("index.html", "Accept-Language,Cookie"));
    assert_eq!(ask("/only", Some("de"), "a=1"), said("302 /de", "Accept-Language,Cookie"));
    assert_eq!(ask("/only", Some("de"), ""), said("404", "Accept-Language,Cookie"));
    // A rule that a file hides decides nothing.
    assert_eq!(ask("/own", Some("de"), ""), said("own.html", ""));
    assert_eq!(ask("/else", Some("de"), ""), said("404", ""));
    assert!(rules.look_at_visitors() && !Rules::default().look_at_visitors());
}

#[test]
fn many_rules_for_one_path_are_told_apart_by_host_and_query() {
    let mut text = String::new();
    for number in 0..20_000 {
        text.push_str(&format!("/index.php id={number} lang=:l /:l/page-{number} 301\n"));
        text.push_str(&format!("https://h{number}.example/* https://blog.example/{number} 301!\n"));
    }
    text.push_str("/index.php /all\n");
    let rules = rules(Netlify, &text);
    assert!(rules.work()[0].0 < 500, "{:?}", rules.work());
    assert_eq!(said(&rules, &[], "/index.php?x&id=777&lang=de"), "301 /de/page-777");
    assert_eq!(said(&rules, &[], "/index.php?id=777&id=19999&lang=de"), "301 /de/page-777");
    assert_eq!(said(&rules, &[], "/index.php?id=20000&lang=de"), "301 /all?id=20000&lang=de");
    let elsewhere = Facts { host: "h19999.example".to_owned(), ..facts("/a/b", BROWSER) };
    let decided = Question::new(&rules, elsewhere).decide(&Files(&[])).unwrap();
    assert_eq!(show(decided.outcome), "301 https://blog.example/19999");
    assert_eq!(said(&rules, &[], "/a/b"), "404");
}

#[test]
fn rules_with_which_every_request_would_be_slow_are_refused() {
    let many = |line: fn(usize) -> String| (0..5000).map(line).collect::<String>();
    for (dialect, text) in [
        (Netlify, many(|n| format!("/a/* /b/{n}\n"))),
        (Netlify, many(|n| format!("/* x=:x /b/{n}\n"))),
        (Pages, many(|n| format!("/a{n}-:x /b/{n}\n"))),
        (Pages, many(|n| format!("/a/*/{n} /b/{n}\n"))),
    ] {
        let text = read(dialect, &text, "").unwrap_err().to_string();
        assert!(text.starts_with("_redirects: a single request could"), "{text}");
    }
    let headers = many(|n| format!("/a/*\n  X-{n}: y\n"));
    // What a block does counts too, not only that it is there.
    let lines: String = (0..100).map(|n| format!("  X-{n}: {}\n", ":splat".repeat(16))).collect();
    for headers in [headers, format!("/*\n{lines}").repeat(1000)] {
        for dialect in [Netlify, Pages] {
            let text = read(dialect, "", &headers).unwrap_err().to_string();
            assert!(text.starts_with("_headers: a single request could"), "{text}");
        }
    }
    let headers = format!("/*\n{lines}").repeat(20);
    assert!(read(Pages, "", &headers).is_ok());
    // Ways that fork at every segment, of which a request could follow all.
    let forks = (0..1 << 13).map(|n: u32| {
        let segments: Vec<String> = (0..13)
            .map(|bit| if n >> bit & 1 == 0 { "a".into() } else { format!(":p{bit}") })
            .collect();
        format!("/{} /b\n", segments.join("/"))
    });
    assert!(read(Netlify, &forks.collect::<String>(), "").is_err());
}

#[test]
fn no_answer_has_more_headers_than_may_be() {
    let value = "x".repeat(1000);
    let block = |path: &str, from: usize| {
        let lines = (from..from + 100).map(|n| format!("  X-{n}: {value}\n"));
        format!("{path}\n{}", lines.collect::<String>())
    };
    let text = block("/*", 0) + &block("/a", 100) + &block("/b", 0);
    let bytes = |effect: &HeaderEffect| -> usize {
        let all = effect.headers.iter();
        all.map(|(name, value)| name.len() + value.as_ref().map_or(0, String::len)).sum()
    };
    for url in ["/a", "/b"] {
        let effect = effect(Netlify, &text, url);
        assert!(effect.headers.len() <= limits::RULED_HEADERS_MAX);
        assert!(bytes(&effect) <= limits::RULED_HEADERS_BYTES_MAX && bytes(&effect) > 60_000);
    }
}

#[test]
fn what_would_be_too_long_is_not_made() {
    let places = ":splat".repeat(16);
    let long = format!("/{}", "%C3%BC".repeat(2000));
    let text = format!("/* /{places} 302!\n/* /{places} 200\n/* /else 302!\n");
    let rules = rules(Netlify, &text);
    assert_eq!(said(&rules, &[], &long), "302 /else");
    assert_eq!(said(&rules, &[], "/ab"), format!("302 /{}", "ab".repeat(16)));
    let query = "q".repeat(limits::LOCATION_BYTES_MAX - 6);
    let location = format!("302 /else?{query}");
    assert_eq!(said(&rules, &[], &format!("{long}?{query}")), location);
    assert_eq!(said(&rules, &[], &format!("{long}?{query}q")), "404");
    let text = format!("/*\n  X-A: {places}\n  X-B: :splat\n");
    let names = |url: &str| -> Vec<String> {
        effect(Pages, &text, url).headers.into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(names("/ab"), ["x-a", "x-b"]);
    assert_eq!(names(&long), ["x-b"]);
}

proptest! {
    #[test]
    fn how_long_something_will_be_is_known_before(
        parts in proptest::collection::vec(("[a-c?#/]{0,3}", 0..3_u8, any::<bool>()), 0..6),
        captured in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..99), 0..4),
    ) {
        let mut template = Template::default();
        for (text, place, splat) in parts {
            template.push(template::Part::Text(text));
            template.push(template::Part::Captured { place, splat });
        }
        prop_assert!(template.is_sound());
        let captured = template::Captures::new(captured);
        let mut value = String::new();
        template.add_value(&captured, &mut value);
        prop_assert_eq!(template.value_bytes(&captured), value.len());
        prop_assert_eq!(template.url_bytes(&captured), template.made(&captured).len());
    }
}

#[test]
fn a_file_that_is_missing_may_be_in_an_earlier_deploy() {
    let rules = rules(
        Netlify,
        "/assets/* /static/:splat 200\n/gone/* /404.html 410\n/not/* /404.html 404\n",
    );
    let files = ["404.html", "static/now.js"];
    let missing = |url: &str| match decided(&rules, &files, url).outcome {
        Outcome::NotFound { missing, .. } => missing.map(|path| String::from_utf8(path).unwrap()),
        other => panic!("{url}: {other:?}"),
    };
    assert_eq!(missing("/old.js").as_deref(), Some("old.js"));
    assert_eq!(missing("/assets/old.js").as_deref(), Some("static/old.js"));
    assert_eq!(missing("/not/old.js").as_deref(), Some("not/old.js"));
    assert_eq!(missing("/gone/old.js"), None);
    assert_eq!(missing("/old/"), None);
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
    fn blocks_like_headers_never_panic(text in "(/[a*:/x]{0,6}\n|[ !X:,a-c]{0,8}\n|#|\u{e9}){0,12}", url in "/[a-c/]{0,6}") {
        for dialect in [Netlify, Pages] {
            if let Ok(set) = read(dialect, "", &text) {
                let rules = Rules::decode(&set.encode().unwrap()).unwrap();
                let effect = Question::new(&rules, facts(&url, BROWSER)).headers();
                for (name, value) in effect.headers {
                    prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic()));
                    let mut bytes = value.iter().flat_map(|value| value.bytes());
                    prop_assert!(bytes.all(|byte| (b' '..=b'~').contains(&byte)));
                }
            }
        }
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
    fn no_visitor_chooses_where_a_redirect_leads(
        target in prop_oneof![
            Just("/:splat"),
            Just("/:x/:splat"),
            Just("/a:splat?q=:x"),
            Just("https://good.example/:splat"),
            Just("https://good.example/:x#:splat"),
            Just("https://good.example?:x"),
        ],
        path in "[ -~]{0,20}",
        query in "[!-~]{0,20}",
        host in prop_oneof![Just("blog.example"), Just("other.example")],
    ) {
        let rules = rules(Netlify, &format!("/* x=:x {target} 302!"));
        let query = Some(format!("x={query}"));
        let path = path.trim_matches('/').as_bytes().to_vec();
        let host = host.to_owned();
        let facts = Facts { path, query, host, ..facts("/", BROWSER) };
        let decided = Question::new(&rules, facts).decide(&Files(&[])).unwrap();
        if let Outcome::Redirect { location, .. } = decided.outcome {
            prop_assert!(location.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(!location.contains('\\'), "{}", location);
            let own = location.starts_with('/') && !location.starts_with("//");
            let good = location.strip_prefix("https://good.example");
            let good = good.is_some_and(|rest| rest.starts_with(['/', '?', '#']));
            prop_assert!(own || good, "{}", location);
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
        let facts = facts(&url, BROWSER);
        let asked = pattern::segments(dialect, &facts.path, facts.directory);
        prop_assert!(rules.redirects.candidates(&asked, &[]).len() <= rules.work()[0].0);
    }
}
