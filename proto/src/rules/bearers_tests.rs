//! Random sites and rules against asking about every URL there could be.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::rules::RuleSet;
use crate::rules::answers::closed_answers;
use crate::rules::decide::{Decision, Outcome, Question};
use crate::rules::parse::{Sources, parse};
use crate::rules::request::{Facts, Visitor};
use crate::site::{Dialect, HtmlHandling, SiteSettings};

const FILES: &[&str] = &[
    "index.html",
    "404.html",
    "a",
    "a.html",
    "a/index.html",
    "a/b",
    "a/b.html",
    "b.html",
    "b/404.html",
    "b/a",
    "b/c.css",
    "c.js",
    "old.js",
];

const REDIRECTS: &[&str] = &[
    "/a /b 200",
    "/a /b 200!",
    "/x /a 200",
    "/x /a/b 404",
    "/x/* /a/:splat 200",
    "/x/* /a/:splat/ 200!",
    "/* /index.html 200",
    "/* /b 200!",
    "/* /b",
    "/y/:n /:n 200",
    "/y/:n /a/:n.html 200",
    "/z id=:id /a/:id 200",
    "/w/* id=:id /:splat/:id 200!",
    "/gone/* /b.html 410",
    "/b/* /404.html 404",
    "/v2/* /:splat 200",
    "/v3/* /:splat/b 200",
    "/v2/a/* /b/:splat 200",
    "/old /b 301",
    "/a/* /c 302!",
    "/a /a/b 302",
    "/l /b 200 Language=de",
    "/k/* /a 200! Cookie=s",
    "https://o.example/* /a/:splat 200!",
    "/p* /:splat 200",
    "/q/*/r /a/:splat 200",
    "/b/* /404.html 404!",
    "/old.js /404.html 404!",
    "https://o.example/b /a 200!",
];

const BLOCKS: &[&str] = &[
    "/*",
    "/a",
    "/a/*",
    "/a/",
    "/b/*",
    "/b/c.css",
    "/:x",
    "/:x/",
    "/:x/:z",
    "/*.html",
    "/*.css",
    "/x/*",
    "/x/b",
    "/y/:n",
    "/z",
    "/w/*",
    "/",
    "/v2/*",
    "/v3",
    "/v2/a/*",
    "/index.html",
    "/old.js",
    "/p*",
    "/q/*/r",
    "https://o.example/*",
    "https://o.example/a/*",
];

const LINES: &[&str] = &[
    "Cache-Tag: t1",
    "Cache-Tag: other",
    "Cache-Tag: u, T1",
    "Surrogate-Key: s t1",
    "Surrogate-Key: t1\n  Surrogate-Key: s",
    "Surrogate-Key: s",
    "Cache-Tag: t:x",
    "! Cache-Tag",
    "X-Y: t1",
];

/// Segments of the URLs that are asked for.
const SEGMENTS: &[&str] = &[
    "",
    "a",
    "b",
    "c",
    "x",
    "y",
    "z",
    "w",
    "v2",
    "v3",
    "k",
    "l",
    "1",
    "p1",
    "q",
    "r",
    "gone",
    "old",
    "index",
    "a.html",
    "b.html",
    "404",
    "404.html",
    "index.html",
    "c.css",
    "c.js",
    "old.js",
    "n.css",
];

fn urls() -> Vec<(Vec<u8>, bool)> {
    let mut paths: Vec<String> = SEGMENTS.iter().map(|one| (*one).to_owned()).collect();
    for one in &SEGMENTS[1..] {
        paths.extend(SEGMENTS.iter().map(|two| format!("{one}/{two}")));
    }
    for three in ["x/a/b", "x/b/404.html", "q/b/r", "v2/a/b", "v2/a/b.html", "v2//a", "w/a/b"] {
        paths.push(three.to_owned());
    }
    let both = |path: String| [(path.clone().into_bytes(), false), (path.into_bytes(), true)];
    let all = paths.into_iter().flat_map(both);
    // As they are read: a final slash is never a part of the path alone.
    all.filter(|(path, directory)| *directory || !(path.is_empty() || path.ends_with(b"/")))
        .collect()
}

fn asked(path: &[u8], directory: bool, host: &str, everything: bool, query: &str) -> Facts {
    let (language, cookie) = if everything { (Some("de"), Some("s=1")) } else { (None, None) };
    Facts {
        path: path.to_vec(),
        directory,
        host: host.to_owned(),
        query: Some(query.to_owned()),
        navigation: everything,
        visitor: Visitor::new(language, cookie),
    }
}

struct Model {
    rules: Rules,
    files: SiteFiles,
    borne: Bearers,
}

impl Model {
    /// Notes what one request is answered with.
    fn ask(&mut self, facts: Facts) {
        let question = Question::new(&self.rules, facts);
        let Decision { outcome, .. } = question.decide(&self.files).unwrap();
        let facts = question.facts();
        let url = (facts.path.as_slice(), facts.directory);
        let stop = AtomicBool::new(false);
        let all_at = |host: Option<&str>| {
            let mut budget = Budget::new(limits::SEARCH_STEPS_MAX, &stop);
            answers(&self.rules, url, host, &self.files, &mut budget).unwrap()
        };
        let all = all_at(Some(&facts.host));
        let anywhere = all_at(None);
        assert!(all.files.is_subset(&anywhere.files), "{url:?}: {all:?} {anywhere:?}");
        assert!(all.earlier.is_subset(&anywhere.earlier), "{url:?}: {all:?} {anywhere:?}");
        assert!(all.shapes.is_subset(&anywhere.shapes), "{url:?}: {all:?} {anywhere:?}");
        let fits = |path: &Vec<u8>| {
            let mut budget = Budget::new(limits::SEARCH_STEPS_MAX, &stop);
            all.shapes.iter().any(|shape| shape.may_lead_to(path, &mut budget).unwrap())
        };
        let (own, earlier) = match outcome {
            Outcome::File { path } => (Some(path), None),
            Outcome::NotFound { page, missing, .. } => (page, missing),
            Outcome::Redirect { .. } => (None, None),
        };
        let has = |known: &HashSet<Vec<u8>>, path: &Vec<u8>| known.contains(path) || fits(path);
        assert!(own.iter().all(|path| has(&all.files, path)), "{url:?}: {own:?} of {all:?}");
        let earlier = earlier.filter(|path| self.files.earlier.contains(path));
        assert!(earlier.iter().all(|path| has(&all.earlier, path)), "{url:?}: {earlier:?}");
        let sent = question.headers().headers.into_iter();
        let sent: Vec<_> = sent.filter_map(|(name, value)| Some((name, value?))).collect();
        if has_wanted(&sent) {
            self.borne.own.extend(own);
            self.borne.earlier.extend(earlier);
        }
    }
}

/// Reads tags by itself: a tag that is lost in reading is found missing here.
fn has_wanted(sent: &[(String, String)]) -> bool {
    let has = |value: &str, ends: &[char]| value.split(ends).any(|tag| wanted(tag.trim()));
    sent.iter().any(|(name, value)| match name.as_str() {
        "cache-tag" => has(value, &[',']),
        "surrogate-key" => has(value, &[',', ' ']),
        _ => false,
    })
}

fn search(rules: &Rules, wanted: &dyn Fn(&str) -> bool, files: &SiteFiles) -> Bearers {
    let stop = AtomicBool::new(false);
    bearers(rules, wanted, files, &mut Budget::new(limits::SEARCH_STEPS_MAX, &stop)).unwrap()
}

fn wanted(tag: &str) -> bool {
    tag.eq_ignore_ascii_case("t1")
}

/// The files that are answered with the tag when there are no rules that lead elsewhere, and those
/// with the tag at their own name, which may be answered with a redirect to the clean one.
fn tagged_by_asking(mut headers: RuleSet, files: &SiteFiles) -> Bearers {
    headers.spa = false;
    let rules = Rules::new(headers);
    let mut found = Bearers::default();
    for (path, directory) in urls() {
        for host in ["blog.example", "o.example"] {
            let question = Question::new(&rules, asked(&path, directory, host, false, ""));
            let sent = question.headers().headers.into_iter();
            let sent: Vec<_> = sent.filter_map(|(name, value)| Some((name, value?))).collect();
            if !has_wanted(&sent) {
                continue;
            }
            if !directory && files.own.contains(&path) {
                found.own.insert(path.clone());
            } else if !directory && files.earlier.contains(&path) {
                found.earlier.insert(path.clone());
            }
            if let Outcome::File { path } = question.decide(files).unwrap().outcome {
                found.own.insert(path);
            }
        }
    }
    found
}

/// What a takedown by a tag takes: own files, and those of other deploys.
fn taken(rules: &Rules, tag: &str, own: &[&str], earlier: &[&str]) -> Result<Bearers, Untold> {
    let names = |names: &[&str]| named(names.iter().map(|name| (*name).to_owned()));
    let files = SiteFiles { own: names(own), earlier: names(earlier) };
    let stop = AtomicBool::new(false);
    let mut budget = Budget::new(limits::SEARCH_STEPS_MAX, &stop);
    tagged(rules, &|own| own == tag, &files, &mut budget)
}

#[test]
fn a_takedown_by_tag_takes_files_that_have_it_and_no_more() {
    let files = ["a.html", "404.html", "x/y", "_headers", "_redirects", "z/2"];
    let others = ["x/old", "x/y", "other", "z/1"];
    // Rules of `_redirects` for more hosts than are gone through are no business of it.
    let hosts: String = (0..20)
        .map(|n| format!("https://h{n}.example/* https://x.example/:splat 301!\n"))
        .collect();
    let rules = read(
        &format!("/x/* /a.html 200\n{hosts}"),
        "/*\n  Cache-Tag: t3\n/x/*\n  Cache-Tag: t1\n/a\n  Cache-Tag: t2\n",
    );
    for (tag, own, earlier) in [
        ("t1", &["x/y"][..], &["x/old"][..]),
        ("t2", &["a.html"], &[]),
        // The last block that sets a header counts.
        ("t3", &["a.html", "404.html", "z/2"], &["other", "z/1"]),
        ("t4", &[], &[]),
    ] {
        let names = |names: &[&str]| named(names.iter().map(|name| (*name).to_owned()));
        let found = taken(&rules, tag, &files, &others);
        let expected = Bearers { own: names(own), earlier: names(earlier) };
        assert_eq!(found, Ok(expected), "{tag}");
    }
}

#[test]
fn a_takedown_by_tag_does_not_guess_what_answers() {
    let settings = SiteSettings { html_handling: HtmlHandling::None, ..Default::default() };
    for (headers, file) in [("/a", "a.html"), ("/b/*", "b.html"), ("/", "index.html")] {
        let text = format!("{headers}\n  Cache-Tag: t1\n");
        let sources = Sources { redirects: None, headers: Some(text.as_bytes()) };
        let rules = Rules::new(parse(sources, &settings).unwrap());
        assert_eq!(taken(&rules, "t1", &[file], &[]), Ok(Bearers::default()), "{file}");
    }
}

#[test]
fn what_depends_on_hosts_without_number_is_not_guessed() {
    let text = "https://:any.example.com/a\n  Cache-Tag: t1\n";
    let sources = Sources { redirects: None, headers: Some(text.as_bytes()) };
    let settings = SiteSettings { dialect: Dialect::Pages, ..Default::default() };
    let rules = Rules::new(parse(sources, &settings).unwrap());
    assert_eq!(taken(&rules, "t1", &["a", "b"], &[]), Err(Untold::Hosts(b"a".to_vec())));
    assert_eq!(taken(&rules, "t1", &["b"], &["c"]), Ok(Bearers::default()));
    let (stop, files) = (AtomicBool::new(false), SiteFiles::default());
    let mut budget = Budget::new(0, &stop);
    assert_eq!(tagged(&rules, &wanted, &files, &mut budget), Err(Untold::TooMuch(TooMuch)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn what_bears_a_tag_anywhere_is_found_and_nothing_that_cannot(
        own in subsequence(FILES, 0..=FILES.len()),
        earlier in subsequence(FILES, 0..4),
        redirects in subsequence(REDIRECTS, 0..4).prop_shuffle(),
        blocks in proptest::collection::vec((select(BLOCKS), select(LINES)), 1..4),
        pages: bool,
        spa: bool,
        html in select(&[
            HtmlHandling::Lenient,
            HtmlHandling::AutoTrailingSlash,
            HtmlHandling::ForceTrailingSlash,
            HtmlHandling::DropTrailingSlash,
            HtmlHandling::None,
        ][..]),
    ) {
        let dialect = if pages { Dialect::Pages } else { Dialect::Netlify };
        let settings = SiteSettings { dialect, html_handling: html, spa, ..Default::default() };
        // What a dialect does not know is left out.
        let read = |redirects: &str, headers: &str| {
            let (redirects, headers) = (Some(redirects.as_bytes()), Some(headers.as_bytes()));
            parse(Sources { redirects, headers }, &settings)
        };
        let lines = redirects.iter().filter(|line| read(line, "").is_ok());
        let redirects: String = lines.map(|line| format!("{line}\n")).collect();
        let blocks = blocks.iter().map(|(path, line)| format!("{path}\n  {line}\n"));
        let headers: String = blocks.filter(|block| read("", block).is_ok()).collect();
        let rules = Rules::new(read(&redirects, &headers).unwrap());
        let names = |all: Vec<&str>| all.into_iter().map(|name| name.as_bytes().to_vec()).collect();
        let files = SiteFiles { own: names(own), earlier: names(earlier) };
        let mut model = Model { rules, files, borne: Bearers::default() };
        for (path, directory) in urls() {
            for host in ["blog.example", "o.example"] {
                for (everything, query) in [(true, "id=b"), (false, "")] {
                    model.ask(asked(&path, directory, host, everything, query));
                }
            }
        }
        // A long query has redirects passed over.
        let long = "q".repeat(limits::LOCATION_BYTES_MAX);
        let names: Vec<Vec<u8>> = model.files.own.union(&model.files.earlier).cloned().collect();
        for (path, directory) in names.iter().flat_map(|file| own_urls(file)) {
            for host in ["blog.example", "o.example"] {
                for everything in [true, false] {
                    model.ask(asked(&path, directory, host, everything, &long));
                }
            }
        }
        let stop = AtomicBool::new(false);
        let mut budget = Budget::new(limits::SEARCH_STEPS_MAX, &stop);
        let found = tagged(&model.rules, &wanted, &model.files, &mut budget).unwrap();
        let asked = tagged_by_asking(read("", &headers).unwrap(), &model.files);
        prop_assert_eq!((found.own, found.earlier), (asked.own, asked.earlier));
        let found = search(&model.rules, &wanted, &model.files);
        prop_assert!(found.own.is_superset(&model.borne.own), "{found:?} {:?}", model.borne);
        prop_assert!(found.earlier.is_superset(&model.borne.earlier), "{found:?}");
        // Under wildcards any path counts: what is asked for here is not all there is.
        let open = model.rules.set.redirects.iter().any(|rule| {
            !(301..=308).contains(&rule.status)
                && (rule.source.is_open() || !rule.query.is_empty())
        });
        let anywhere = |file: &&Vec<u8>| {
            file.ends_with(b"404.html") || (spa && file.as_slice() == b"index.html")
        };
        let over = found.own.difference(&model.borne.own);
        let over: Vec<&Vec<u8>> = over.filter(|file| !open && !anywhere(file)).collect();
        prop_assert!(over.is_empty(), "{over:?} do not bear the tag:\n{redirects}\n{headers}");
        let over = found.earlier.difference(&model.borne.earlier).count();
        prop_assert!(open || over == 0, "{found:?} {:?}", model.borne);
    }
}

#[test]
fn a_rewrite_is_followed_to_the_files_it_leads_to() {
    let text = "/news/* /blog/:splat 200\n/x id=:id /item/:id 200\n/* /index.html 200\n";
    let headers = "/news/2026/*\n  Cache-Tag: t1\n/x\n  Cache-Tag: t2\n/blog/*\n  Cache-Tag: t3\n\
                   /*.css\n  Cache-Tag: t4\n/old/*\n  Cache-Tag: t5\n";
    let sources = Sources { redirects: Some(text.as_bytes()), headers: Some(headers.as_bytes()) };
    let rules = Rules::new(parse(sources, &SiteSettings::default()).unwrap());
    let names = |names: &[&str]| -> HashSet<Vec<u8>> {
        names.iter().map(|name| name.as_bytes().to_vec()).collect()
    };
    let own =
        names(&["index.html", "blog/2026/a.html", "blog/2025/b.html", "item/7.html", "404.html"]);
    let files = SiteFiles { own, earlier: names(&["old/a.js", "item/old.png"]) };
    for (tag, own, earlier) in [
        ("t1", &["blog/2026/a.html", "404.html", "index.html"][..], &[][..]),
        ("t2", &["item/7.html", "404.html", "index.html"], &["item/old.png"]),
        ("t3", &["blog/2026/a.html", "blog/2025/b.html", "index.html", "404.html"], &[]),
        ("t4", &["index.html"], &[]),
        ("t5", &["index.html", "404.html"], &["old/a.js"]),
        ("none", &[], &[]),
    ] {
        let found = search(&rules, &|own| own == tag, &files);
        assert_eq!((found.own, found.earlier), (names(own), names(earlier)), "{tag}");
    }
}

fn named(names: impl IntoIterator<Item = String>) -> HashSet<Vec<u8>> {
    names.into_iter().map(String::into_bytes).collect()
}

fn read(redirects: &str, headers: &str) -> Rules {
    let (redirects, headers) = (Some(redirects.as_bytes()), Some(headers.as_bytes()));
    Rules::new(parse(Sources { redirects, headers }, &SiteSettings::default()).unwrap())
}

/// Steps of a search.
fn spent(rules: &Rules, files: &SiteFiles) -> u64 {
    let stop = AtomicBool::new(false);
    let mut budget = Budget::new(u64::MAX, &stop);
    bearers(rules, &wanted, files, &mut budget).unwrap();
    u64::MAX - budget.left()
}

#[test]
fn many_hosts_are_not_gone_through_one_by_one() {
    let files = SiteFiles { own: named(["a.html".to_owned()]), ..SiteFiles::default() };
    let rules = |hosts: usize| {
        let line = |host| format!("https://h{host}.example/a /b 200\n");
        let redirects: String = (0..hosts).map(line).collect();
        read(&redirects, "/a\n  Cache-Tag: t1\n")
    };
    let (few, many) = (spent(&rules(100), &files), spent(&rules(1600), &files));
    assert!(many < 32 * few, "16 times the hosts cost {many} steps, not {few}");
}

#[test]
fn what_a_search_does_is_paid_for_and_can_be_stopped() {
    // Every file is compared with what every rule leads to.
    let line = |at| format!("/x a{at}=:id /{at}/:id 200\n");
    let rules = |lines: usize| {
        let redirects: String = (0..lines).map(line).collect();
        read(&redirects, "/x\n  Cache-Tag: t1\n")
    };
    let files = |count: usize| {
        let own = named((0..count).map(|at| format!("{at}/f.js")));
        SiteFiles { own, ..SiteFiles::default() }
    };
    assert!(spent(&rules(50), &files(200)) > 50 * 200);
    let stop = AtomicBool::new(false);
    let (rules, files) = (rules(50), files(200));
    let mut budget = Budget::new(50 * 200, &stop);
    assert_eq!(bearers(&rules, &wanted, &files, &mut budget), Err(TooMuch));
    stop.store(true, Ordering::Relaxed);
    let mut budget = Budget::new(u64::MAX, &stop);
    assert_eq!(bearers(&rules, &wanted, &files, &mut budget), Err(TooMuch));
    let asked = (&b"x"[..], false);
    let said = answers(&rules, asked, None, &files, &mut budget);
    assert_eq!(said, Err(Unanswered::TooMuch(TooMuch)));
}

#[test]
fn equal_shapes_are_one() {
    let line = |at| format!("/x a{at}=:id /item/:id 200\n");
    let redirects: String = (0..500).map(line).collect();
    let rules = read(&redirects, "");
    let (files, stop) = (SiteFiles::default(), AtomicBool::new(false));
    let mut budget = Budget::new(limits::SEARCH_STEPS_MAX, &stop);
    let said = answers(&rules, (&b"x"[..], false), None, &files, &mut budget).unwrap();
    assert_eq!(said.shapes.len(), 1);
}

#[test]
fn what_a_rule_hides_of_an_earlier_deploy_is_found() {
    let rules = read("/old.js /404.html 404!\n", "/old.js\n  Cache-Tag: t1\n");
    let old = || named(["old.js".to_owned()]);
    let found = search(&rules, &wanted, &SiteFiles { own: old(), earlier: old() });
    assert_eq!(found, Bearers { own: HashSet::new(), earlier: old() });
}

#[test]
fn what_meets_nothing_is_paid_for_too() {
    let stopped = AtomicBool::new(true);
    let files = SiteFiles {
        own: named((0..40).map(|at| format!("{at}/404.html"))),
        ..SiteFiles::default()
    };
    let lines = |count, line: fn(usize) -> String| (0..count).map(line).collect::<String>();
    // Hosts that differ.
    let rewrites = lines(60, |at| format!("https://h{at}.example/zz/* /:splat 200\n"));
    let giving = lines(60, |at| format!("https://g{at}.example/zz/*\n  Cache-Tag: t1\n"));
    let apart = read(&rewrites, &giving);
    assert!(spent(&apart, &files) > 60 * 60);
    // Lines that give other tags.
    let tags = "  Cache-Tag: ".to_owned() + &"a,".repeat(500) + "\n";
    let others = read("", &format!("/a\n{tags}/b\n{tags}"));
    assert!(spent(&others, &files) > 2 * 500);
    // Paths of files at which no page is missing.
    let loaded = read("", &lines(60, |at| format!("/*.{at}.css\n  Cache-Tag: t1\n")));
    assert!(spent(&loaded, &files) > 60);
    for rules in [apart, others, loaded] {
        let mut budget = Budget::new(u64::MAX, &stopped);
        assert_eq!(bearers(&rules, &wanted, &files, &mut budget), Err(TooMuch));
    }
}

#[test]
fn shapes_are_paid_for_by_what_they_keep() {
    // The same capture many times over, and a part that depends on the query.
    let target = "/:splat".repeat(15);
    let lines = |count| {
        let line = |at| format!("/x/* a{at}=:id {target}/{at}/:id 200\n");
        read(&(0..count).map(line).collect::<String>(), "")
    };
    let (files, stop) = (SiteFiles::default(), AtomicBool::new(false));
    let said = |rules: &Rules, bytes: usize| {
        let path = [&b"x/"[..], &vec![b'a'; bytes]].concat();
        let mut budget = Budget::new(u64::MAX, &stop);
        let said = answers(rules, (&path, false), None, &files, &mut budget).unwrap();
        (said.shapes.len(), u64::MAX - budget.left())
    };
    let rules = lines(20);
    let (shapes, steps) = said(&rules, 1000);
    assert_eq!(shapes, 20);
    assert!(steps > 20 * 15 * 1000 / 4, "{steps}");
    // No URL is as long as that.
    assert_eq!(said(&rules, 2000).0, 0);
    let mut budget = Budget::new(u64::MAX, &stop);
    let closed = closed_answers(&rules, (&b"x/a"[..], false), &files, &mut budget);
    assert_eq!(closed, Err(Unanswered::TooMuch(TooMuch)));
    assert!(u64::MAX - budget.left() < 100, "it ends at the first");
}
