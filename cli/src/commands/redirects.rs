//! `atoll redirects`: what the rules of a directory do, without any cluster.

use std::collections::HashSet;
use std::path::PathBuf;

use atoll_edge::http::path::{self, BadPath, SitePath};
use atoll_proto::rules::decide::{Lookups, Need, Outcome, Question};
use atoll_proto::rules::effect::HeaderEffect;
use atoll_proto::rules::request::{Facts, Visitor, navigates};
use atoll_proto::rules::{HEADERS_FILE, REDIRECTS_FILE, Rules};
use atoll_proto::site::SiteSettings;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::args::RuleArgs;
use crate::connect::Context;
use crate::report::Failure;
use crate::scan::{ScanOptions, scan};

/// What a browser accepts that follows a link.
const ACCEPT: &str = "text/html,application/xhtml+xml,*/*;q=0.8";

/// Explain `_redirects`, `_headers` and clean URLs
#[derive(Debug, Subcommand)]
#[command(after_help = "EXAMPLES
  atoll redirects test ./public /old/page")]
pub(crate) enum RedirectsCommand {
    /// Say which rule answers a URL of the site in this directory, and how
    #[command(after_help = "EXAMPLES
  atoll redirects test ./public /old/page '/store?id=7'
  atoll redirects test ./public https://old.example/a --dialect pages
  atoll redirects test ./public /app.js --spa --accept '*/*' --json
  atoll redirects test ./public / --language de-AT --cookie beta

Decides as an edge would after a deploy of the directory. Nothing is uploaded, and no cluster is
asked: settings of a site do not count here, give them with the flags.")]
    Test(TestArgs),
}

/// A directory and URLs.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// The directory with the site's files
    #[arg(value_name = "SITE_DIR")]
    dir: PathBuf,
    /// Paths that begin with a slash, or whole URLs
    #[arg(value_name = "URL", required = true)]
    urls: Vec<String>,
    #[command(flatten)]
    rules: RuleArgs,
    /// The request's Accept header [default: a browser's that follows a link]
    #[arg(long, value_name = "TYPES")]
    accept: Option<String>,
    /// The request's Accept-Language header, for rules with Language=
    #[arg(long, value_name = "LANGUAGES")]
    language: Option<String>,
    /// A cookie that the request has, for rules with Cookie=; may be given several times
    #[arg(long = "cookie", value_name = "NAME")]
    cookies: Vec<String>,
}

/// The final object.
#[derive(Debug, Serialize)]
struct TestedObject {
    results: Vec<ResultObject>,
}

/// What answers one URL.
#[derive(Debug, Serialize)]
struct ResultObject {
    url: String,
    status: u16,
    /// The line of `_redirects` that decided.
    rule: Option<LineObject>,
    file: Option<String>,
    location: Option<String>,
    /// Set by `_headers`; without a value: removed.
    headers: Vec<HeaderObject>,
    /// The blocks of `_headers` that were about it.
    header_rules: Vec<LineObject>,
    /// Headers of the request on which this depends.
    vary: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct LineObject {
    file: &'static str,
    line: u32,
}

#[derive(Debug, Serialize)]
struct HeaderObject {
    name: String,
    value: Option<String>,
}

/// Does it.
pub(crate) async fn run(context: &Context, command: RedirectsCommand) -> Result<(), Failure> {
    let RedirectsCommand::Test(args) = command;
    let asked = args.urls.iter().map(|url| Ok((url, facts(url, &args)?)));
    let asked = asked.collect::<Result<Vec<_>, Failure>>()?;
    let (dir, choices) = (args.dir.clone(), args.rules.choices());
    let work = move || {
        let scanned = scan(&dir, &ScanOptions::default())?;
        let settings = choices.apply(&SiteSettings::default());
        let set = atoll_client::read_rules(&scanned.files, &settings).map_err(Failure::Deploy)?;
        let files = scanned.files.into_iter().map(|file| file.site_path.0).collect();
        Ok::<_, Failure>((Rules::new(set), Files(files)))
    };
    let (rules, files) = atoll_net::task::spawn_blocking("scan", work)
        .await
        .map_err(|error| Failure::failed("scan the directory", error))??;
    let mut results = Vec::new();
    for (url, facts) in asked {
        results.push(answered(url, facts, &rules, &files)?);
    }
    if context.out.json() {
        return context.out.object(&TestedObject { results });
    }
    for result in &results {
        for line in said(result) {
            context.out.line(line)?;
        }
    }
    Ok(())
}

struct Files(HashSet<Vec<u8>>);

impl Lookups for Files {
    fn exists(&self, path: &[u8]) -> Option<bool> {
        Some(self.0.contains(path))
    }
}

/// What an edge would know of a request for this URL.
fn facts(url: &str, args: &TestArgs) -> Result<Facts, Failure> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let (host, local) = match rest {
        None => ("", url),
        Some(rest) => rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())),
    };
    let host = host.split(':').next().unwrap_or(host).to_ascii_lowercase();
    let local = local.split('#').next().unwrap_or(local);
    let (path, query) = match local.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (local, None),
    };
    let path = if path.is_empty() && rest.is_some() { "/" } else { path };
    let asked = path::parse(path.as_bytes()).map_err(|bad| {
        let reason = match bad {
            BadPath::Malformed(reason) => reason,
            BadPath::Impossible => "no file can have this path: the answer is always 404",
        };
        Failure::Usage(format!("URL {url:?}: {reason}"))
    })?;
    let navigation = navigates(Some(args.accept.as_deref().unwrap_or(ACCEPT)), None);
    let mut visitor = Visitor::new(args.language.as_deref(), []);
    visitor.cookies.clone_from(&args.cookies);
    let SitePath { path, directory } = asked;
    Ok(Facts { path, directory, host, query, navigation, visitor })
}

fn answered(
    url: &str,
    facts: Facts,
    rules: &Rules,
    files: &Files,
) -> Result<ResultObject, Failure> {
    let question = Question::new(rules, facts);
    let decision = question.decide(files).map_err(|Need(path)| {
        let path = String::from_utf8_lossy(&path).into_owned();
        Failure::Failed(format!("{path:?} cannot be looked up"))
    })?;
    let text = |path: Vec<u8>| String::from_utf8_lossy(&path).into_owned();
    let (status, file, location, effect) = match decision.outcome {
        Outcome::File { path } => (200, Some(text(path)), None, question.headers()),
        Outcome::Redirect { status, location } => {
            (status, None, Some(location), HeaderEffect::default())
        }
        Outcome::NotFound { status, page: Some(page), .. } => {
            (status, Some(text(page)), None, question.headers().of_missing())
        }
        Outcome::NotFound { status, page: None, .. } => {
            (status, None, None, HeaderEffect::default())
        }
    };
    let set = rules.set();
    let rule = decision.rule.and_then(|number| set.redirects.get(number as usize));
    let line = |file, line| LineObject { file, line };
    let header_rules = effect.rules.iter().filter_map(|number| set.headers.get(*number as usize));
    Ok(ResultObject {
        url: url.to_owned(),
        status,
        rule: rule.map(|rule| line(REDIRECTS_FILE, rule.line)),
        file,
        location,
        headers: (effect.headers.into_iter())
            .map(|(name, value)| HeaderObject { name, value })
            .collect(),
        header_rules: header_rules.map(|rule| line(HEADERS_FILE, rule.line)).collect(),
        vary: decision.vary.names().collect(),
    })
}

/// A few lines for people.
fn said(result: &ResultObject) -> Vec<String> {
    let by = match &result.rule {
        Some(rule) => format!("{}:{}", rule.file, rule.line),
        None => "no rule".to_owned(),
    };
    let what = match (&result.location, &result.file) {
        (Some(location), _) => format!("to {location}"),
        (None, Some(file)) => format!("with {file}"),
        (None, None) => "with no page of the site".to_owned(),
    };
    let mut lines = vec![format!("{}  {} {what}  ({by})", result.url, result.status)];
    let blocks: Vec<String> =
        result.header_rules.iter().map(|rule| format!("{}:{}", rule.file, rule.line)).collect();
    for header in &result.headers {
        let change = match &header.value {
            Some(value) => format!("{}: {value}", header.name),
            None => format!("{} is not sent", header.name),
        };
        lines.push(format!("  {change}  ({})", blocks.join(", ")));
    }
    if !result.vary.is_empty() {
        lines.push(format!("  depends on the request's {}", result.vary.join(", ")));
    }
    lines
}
