//! What only one of the dialects allows in paths.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::decide::{Lookups, Outcome, Question};
use super::parse::{Faults, Sources, parse};
use super::request::{Facts, Visitor};
use super::*;
use crate::site::Dialect::{Netlify, Pages};

struct NoFiles;

impl Lookups for NoFiles {
    fn exists(&self, _path: &[u8]) -> Option<bool> {
        Some(false)
    }
}

fn read(dialect: Dialect, redirects: &str, headers: &str) -> Result<Rules, Faults> {
    let sources =
        Sources { redirects: Some(redirects.as_bytes()), headers: Some(headers.as_bytes()) };
    let set = parse(sources, &SiteSettings { dialect, ..Default::default() })?;
    // As an edge has them.
    let rules = Rules::decode(&set.clone().encode().unwrap()).unwrap();
    assert_eq!(rules.set(), &set);
    Ok(rules)
}

fn facts(host: &str, path: &str) -> Facts {
    let path = path.strip_prefix('/').unwrap();
    Facts {
        path: path.trim_end_matches('/').as_bytes().to_vec(),
        directory: path.is_empty() || path.ends_with('/'),
        host: host.to_owned(),
        query: None,
        navigation: true,
        visitor: Visitor::default(),
    }
}

/// The values of the headers, joined.
fn headers(rules: &Rules, host: &str, path: &str) -> String {
    let sent = Question::new(rules, facts(host, path)).headers().headers.into_iter();
    sent.filter_map(|(_, value)| value).collect::<Vec<_>>().join(" ")
}

#[test]
fn several_placeholders_in_a_segment_of_pages() {
    let rules = read(Pages, "/blog/:y-:m-:d /:d/:m/:y 301\n/v:a.:b /:a/:b\n", "").unwrap();
    for (path, expected) in [
        ("/blog/2026-11-02", Some("/02/11/2026")),
        ("/blog/2026-11", None),
        ("/blog/a-b-c-d", Some("/d/c/a-b")),
        ("/blog/2026-11-02/", None),
        ("/v1.2.3", Some("/1.2/3")),
        ("/v1", None),
    ] {
        let decided = Question::new(&rules, facts("x.example", path)).decide(&NoFiles).unwrap();
        let location = match decided.outcome {
            Outcome::Redirect { location, .. } => Some(location),
            _ => None,
        };
        assert_eq!(location.as_deref(), expected, "{path}");
    }
    let error = read(Netlify, "/blog/:y-:m-:d /:d", "").unwrap_err().to_string();
    assert!(error.contains("whole segment") || error.contains("one a segment"), "{error}");
    let error = read(Netlify, "", "/:a.js\n  X: y\n").unwrap_err().to_string();
    assert!(error.contains("whole segment"), "{error}");
    // A colon within a segment is a colon.
    let rules = read(Netlify, "", "/b-:c\n  X: y\n").unwrap();
    assert_eq!(
        (headers(&rules, "x", "/b-:c"), headers(&rules, "x", "/b-1")),
        ("y".into(), "".into())
    );
}

#[test]
fn hosts_of_pages_have_placeholders() {
    let text = "https://:project.pages.dev/*\n  X-Robots-Tag: noindex\n\
                https://:Version.:project.pages.dev/:page\n  X-Of: :Version/:project/:page\n\
                https://pr-:n.example/*\n  X-Pr: :n:splat\n";
    let rules = read(Pages, "", text).unwrap();
    for (host, path, expected) in [
        ("blog.pages.dev", "/a/b", "noindex"),
        ("v1.blog.pages.dev", "/a", "v1/blog/a"),
        ("v1.blog.pages.dev", "/a/b", ""),
        ("pages.dev", "/a", ""),
        ("blog.pages.example", "/a", ""),
        ("pr-7.example", "/x", "7x"),
        ("pr-.example", "/x", ""),
    ] {
        assert_eq!(headers(&rules, host, path), expected, "{host}{path}");
    }
    for (text, part) in [
        ("https://:a.:a.dev/*\n  X: y\n", "twice"),
        ("https://:a.x.dev/:a\n  X: y\n", "twice"),
        ("https://:a-b.x.dev/*\n  X: y\n", "ends at a dot"),
        ("https://*.x.dev/a\n  X: y\n", "host cannot hold"),
        ("https://x.dev:8080/a\n  X: y\n", "port"),
    ] {
        match read(Pages, "", text) {
            Err(faults) => assert!(faults.to_string().contains(part), "{text}: {faults}"),
            Ok(_) => panic!("{text}"),
        }
    }
    for (dialect, redirects, text) in [
        (Pages, "https://:a.example/x /y", ""),
        (Netlify, "https://:a.example/x /y", ""),
        (Netlify, "", "https://:a.example/x\n  X: y\n"),
    ] {
        let error = read(dialect, redirects, text).unwrap_err().to_string();
        assert!(error.contains("host cannot hold"), "{error}");
    }
}

#[test]
fn rules_with_hosts_that_have_placeholders_are_of_the_second_kind() {
    let bytes = |text: &str| read(Pages, "", text).unwrap().set().clone().encode().unwrap();
    assert_eq!(bytes("https://a.example/*\n  X: y\n")[0], 0);
    assert_eq!(bytes("https://:a.example/*\n  X: y\n")[0], 1);
    let mut redirect = read(Netlify, "https://a.example/x /y", "").unwrap().set().clone();
    redirect.redirects[0].source.host = Some(":.example".to_owned());
    assert!(Rules::decode(&redirect.encode().unwrap()).is_err());
}

#[test]
fn several_splats_in_headers_of_netlify() {
    let rules = read(Netlify, "", "/a/*/b/*.png\n  X: y\n/*/:lang/*\n  Y: z\n").unwrap();
    for (path, expected) in [
        ("/a/b/c.png", "y z"),
        ("/a/x/y/b/z/c.png", "y z"),
        ("/a/b.png", "z"),
        ("/x", "z"),
        ("/", ""),
    ] {
        assert_eq!(headers(&rules, "x.example", path), expected, "{path}");
    }
    let many = format!("{}\n  X: y\n", "/*/a".repeat(limits::RULE_SPLATS_MAX + 1));
    for (dialect, text, part) in [
        (Netlify, many.as_str(), "too many"),
        (Netlify, "/a*b*\n  X: y\n", "several wildcards"),
        (Pages, "/*/a/*\n  X: y\n", "more than one `*`"),
    ] {
        let error = read(dialect, "", text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn what_is_only_too_much_is_told_apart() {
    let many = "/a /b\n".repeat(limits::RULES_MAX + 1);
    assert!(read(Netlify, &many, "").unwrap_err().over_limit());
    let slow = "/* /b 200\n".repeat(limits::RULE_WORK_MAX + 1);
    assert!(read(Netlify, &slow, "").unwrap_err().over_limit());
    let long = "#".repeat(limits::RULES_LINE_BYTES_MAX + 1);
    assert!(read(Netlify, &long, "").unwrap_err().over_limit());
    assert!(!read(Netlify, &format!("bad\n{many}"), "").unwrap_err().over_limit());
    assert!(!read(Netlify, "bad", "").unwrap_err().over_limit());
}

#[test]
fn paths_with_several_splats_cost_what_looking_for_them_costs() {
    let with = |count: usize, path: &dyn Fn(usize) -> String| {
        let blocks: String = (0..count).map(|at| format!("{}\n  X-A: 1\n", path(at))).collect();
        let sources = Sources { redirects: None, headers: Some(blocks.as_bytes()) };
        parse(sources, &SiteSettings::default())
    };
    let images = |at: usize| format!("/*/img{at}/*.png");
    let deep = |at: usize| format!("/*{}/{at}/*", "/a".repeat(60));
    let below = |at: usize| format!("/app{at}/*/img/*.png");
    for (count, path, fits) in [
        (40, &images as &dyn Fn(usize) -> String, true),
        (50, &images, false),
        (2, &deep, true),
        (3, &deep, false),
        (5000, &below, true),
    ] {
        let read = with(count, path);
        assert_eq!(read.is_ok(), fits, "{count} {} {:?}", path(0), read.err());
    }
    assert!(with(50, &images).unwrap_err().over_limit());
}
