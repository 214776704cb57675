//! `atoll verify`: whether a URL is served as a deploy says, to the last byte.

mod judge;
mod standing;

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_client::{Cluster, manifest};
use atoll_edge::http::path::{self, BadPath, SitePath};
use atoll_edge::http::proof as edge_proof;
use atoll_edge::rules::ask;
use atoll_proto::manifest::proof::{Proof, Proven};
use atoll_proto::rules::decide::Question;
use atoll_proto::rules::request::Facts;
use atoll_proto::{DeployId, limits};
use clap::Args;
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use serde::Serialize;

use self::judge::{Judge, Kept, Verdict};
use self::standing::{Sites, Standing};
use super::get;
use super::published::DeployName;
use crate::connect::Context;
use crate::fetch::{Fetch, Head, Receiver, fetch, host, roots};
use crate::report::{Exit, Failure};
use crate::text;

/// How often it is begun anew when a publish comes between two questions.
const TRIES: usize = 3;

/// Check that a URL is served exactly as its deploy says: every byte, the type, a redirect, or that
/// there is nothing
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll verify https://blog.localhost:20443/
  atoll verify https://blog.example/app.js --deploy 4f1d20aab5c3e79d1f20486ab5c3e79d1f20486ab5c3e79d1f20486ab5c3e79d --edge 192.0.2.7:443
  atoll verify https://blog.example/ --save-proof home.proof
  atoll verify https://blog.example/ --proof home.proof     without access to the cluster

The proof comes from the cluster of the client configuration, else from the edge itself, which is
enough with --deploy: an edge cannot make a proof for a deploy that you name. With a cluster, and
without --deploy, the deploy must also be one that may be served there: the one that the site's alias
points at now, or that the host names by its digits.
Exit code 1 with what differs.")]
pub(crate) struct VerifyArgs {
    /// What to check
    #[arg(value_name = "URL", value_parser = get::url)]
    url: Uri,
    /// Id of the deploy that must be served; where the cluster can be asked its first digits are
    /// enough
    #[arg(long, value_name = "ID")]
    deploy: Option<DeployName>,
    /// Take the proof from this file and ask nobody but the edge for the URL
    #[arg(long, value_name = "FILE")]
    proof: Option<PathBuf>,
    /// Write the proof to this file, if nothing differs
    #[arg(long, value_name = "FILE")]
    save_proof: Option<PathBuf>,
    /// Ask this edge, whatever the host's addresses are
    #[arg(long, value_name = "ADDR:PORT")]
    edge: Option<SocketAddr>,
    /// Trust the authorities in this file
    #[arg(long, value_name = "PEM")]
    ca: Option<PathBuf>,
}

/// The final object.
#[derive(Serialize)]
struct VerifyObject<'a> {
    event: &'static str,
    url: String,
    verified: bool,
    deploy: String,
    /// `file`, `redirect`, `absent`, or null when something differs.
    answer: Option<&'static str>,
    status: u16,
    path: Option<String>,
    bytes: u64,
    etag: Option<String>,
    content_type: Option<&'a str>,
    location: Option<&'a str>,
    /// Whether the deploy may be served there now; null when nobody was asked.
    current: Option<bool>,
    /// Null when it may not.
    proof: Option<ProofObject>,
    differs: &'a [String],
}

#[derive(Clone, Serialize)]
struct ProofObject {
    source: &'static str,
    pages: usize,
    bytes: usize,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: VerifyArgs) -> Result<(), Failure> {
    let asked = site_path(&args.url)?;
    let ca = args.ca.clone().or_else(|| get::cluster_ca(context));
    let addrs = match args.edge {
        Some(addr) => vec![addr],
        None => get::addresses(&args.url, &[]).await?,
    };
    let edge = Edge { url: args.url.clone(), addrs, roots: Arc::new(roots(ca.as_deref(), true)?) };
    let cluster = match (&args.proof, context.config_path()) {
        (None, Ok(_)) => Some(context.cluster().await?),
        _ => None,
    };
    let wanted = match &args.deploy {
        Some(name) => Some(Box::pin(wanted(name, &args.url, cluster.as_ref())).await?),
        None => None,
    };
    let mut tries = 1;
    loop {
        let round = Box::pin(round(&args, &asked, &edge, cluster.as_ref(), wanted)).await?;
        // A publish between two questions looks like a lie; a lie stays one.
        if round.judged.is_err() && tries < TRIES && args.proof.is_none() {
            tries += 1;
            continue;
        }
        // What an answer differs from may be what the edge itself proved.
        if let (Some(file), Ok(_), Some((proof, _))) =
            (&args.save_proof, &round.judged, &round.proof)
        {
            std::fs::write(file, proof.encode()).map_err(Failure::file("write", file))?;
        }
        return say(context, &args, round);
    }
}

/// The path of the URL, as an edge reads it.
fn site_path(url: &Uri) -> Result<SitePath, Failure> {
    match path::parse(url.path().as_bytes()) {
        Ok(asked) => Ok(asked),
        Err(BadPath::Malformed(reason)) => Err(Failure::Usage(format!("{url}: {reason}"))),
        Err(BadPath::Impossible) => {
            Err(Failure::Usage(format!("{url}: no file of any site can have this path")))
        }
    }
}

/// The deploy that `--deploy` names: one of the site that the URL is of, where a cluster is at hand.
async fn wanted(
    name: &DeployName,
    url: &Uri,
    cluster: Option<&Cluster>,
) -> Result<DeployId, Failure> {
    let Some(cluster) = cluster else {
        let partial = "--deploy needs all 64 digits of the id where no cluster is asked";
        return name.whole().ok_or_else(|| Failure::Usage(partial.to_owned()));
    };
    let sites = Sites::of(cluster).await?;
    let place = sites.place(host(url));
    let (site, _) = place.map_err(|what| Failure::Failed(format!("{url}: {what}")))?;
    name.find(cluster, &site.site.name).await
}

/// What one round found out.
struct Round {
    deploy: DeployId,
    /// What it was judged by; `None` when the deploy may not be served there at all.
    proof: Option<(Proof, ProofObject)>,
    status: StatusCode,
    /// How the deploy stands to the host, where a cluster was asked.
    standing: Option<Standing>,
    judged: Result<Verdict, Vec<String>>,
}

async fn round(
    args: &VerifyArgs,
    asked: &SitePath,
    edge: &Edge,
    cluster: Option<&Cluster>,
    wanted: Option<DeployId>,
) -> Result<Round, Failure> {
    let facts = edge.facts(asked);
    let mut standing = None;
    let (proof, source) = match (&args.proof, cluster) {
        (Some(file), _) => (load(file)?, "file"),
        (None, None) => {
            if wanted.is_none() {
                edge.claimed().await?;
            }
            (edge.proof().await?, "edge")
        }
        (None, Some(cluster)) => {
            let mut names = edge_proof::names(asked);
            let deploy = match wanted {
                Some(deploy) => deploy,
                None => {
                    let (deploy, status) = edge.claimed().await?;
                    let sites = Sites::of(cluster).await?;
                    let asked = host(&args.url);
                    let found = sites.standing(cluster, asked, deploy, facts.clone());
                    let found = Box::pin(found).await?;
                    if let Standing::Stale(what) = &found {
                        let judged = Err(vec![what.clone()]);
                        let standing = Some(found);
                        return Ok(Round { deploy, proof: None, status, standing, judged });
                    }
                    names.extend(found.kept().map(|kept| kept.path.clone()));
                    standing = Some(found);
                    deploy
                }
            };
            let rules = atoll_client::rules::of_deploy(cluster, deploy).await?;
            let question = Question::new(&rules, facts.clone());
            let decided = atoll_client::rules::decide(cluster, deploy, &question).await?;
            names.extend(decided.1.names());
            (manifest::prove(cluster, deploy, &names).await?, "cluster")
        }
    };
    let deploy = wanted.unwrap_or_else(|| proof.deploy());
    let wrong = |error| Failure::Failed(format!("{}: {error}", args.url));
    let proven = proof.open(deploy).map_err(wrong)?;
    let source = ProofObject { source, pages: proven.pages(), bytes: proof.bytes() };
    let kept = standing.as_ref().and_then(Standing::kept).cloned();
    let (status, judged) = Box::pin(edge.judged(&proven, facts, kept)).await?;
    Ok(Round { deploy, proof: Some((proof, source)), status, standing, judged })
}

fn load(file: &Path) -> Result<Proof, Failure> {
    let mut bytes = Vec::new();
    let limit = 2 * limits::PROOF_BYTES_MAX as u64;
    std::fs::File::open(file)
        .and_then(|open| open.take(limit).read_to_end(&mut bytes))
        .map_err(Failure::file("read", file))?;
    let wrong = |error| Failure::Failed(format!("{}: {error}", file.display()));
    Proof::decode(&bytes).map_err(wrong)
}

/// The edge that serves the URL.
struct Edge {
    url: Uri,
    addrs: Vec<SocketAddr>,
    roots: Arc<rustls::RootCertStore>,
}

impl Edge {
    /// What the rules of a site look at of the request that is judged.
    fn facts(&self, asked: &SitePath) -> Facts {
        let host = host(&self.url).trim_end_matches('.').to_ascii_lowercase();
        ask::facts(asked, &host, self.url.query(), &HeaderMap::new())
    }

    fn request(&self, method: Method, url: Uri) -> Fetch {
        Fetch {
            method,
            url,
            addrs: self.addrs.clone(),
            version: None,
            headers: vec![(ACCEPT_ENCODING, HeaderValue::from_static("identity"))],
            roots: self.roots.clone(),
        }
    }

    /// The deploy that the edge says it serves, and the status it says so with.
    async fn claimed(&self) -> Result<(DeployId, StatusCode), Failure> {
        let head = fetch(&self.request(Method::HEAD, self.url.clone()), &mut Ignore).await?;
        let value = head.headers.get("atoll-deploy").and_then(|value| value.to_str().ok());
        let Some(value) = value else {
            return Err(Failure::Failed(format!(
                "{}: {} without Atoll-Deploy: there is no such site here, nothing is published, or \
                 this is no edge of an Atoll cluster",
                self.url, head.status
            )));
        };
        let deploy = value.parse().map_err(|_| {
            Failure::Failed(format!("{}: Atoll-Deploy is {value:?}, no deploy's id", self.url))
        })?;
        Ok((deploy, head.status))
    }

    /// The proof that the edge itself gives.
    async fn proof(&self) -> Result<Proof, Failure> {
        let mut parts = self.url.clone().into_parts();
        let asked = self.url.path_and_query().map_or("/", |asked| asked.as_str());
        let target = format!("{}?path={asked}", edge_proof::PATH);
        parts.path_and_query = Some(target.parse().map_err(|error| self.wrong(error))?);
        let url = Uri::from_parts(parts).map_err(|error| self.wrong(error))?;
        let mut all = Collect { url: &self.url, bytes: Vec::new() };
        let head = fetch(&self.request(Method::GET, url), &mut all).await?;
        if head.status != StatusCode::OK {
            return Err(self.wrong(format_args!(
                "the edge gives no proof ({}); check with a client configuration of the cluster, \
                 or --proof",
                head.status
            )));
        }
        Proof::decode(&all.bytes).map_err(|error| self.wrong(error))
    }

    /// Fetches the URL and judges it while it comes.
    async fn judged(
        &self,
        proven: &Proven,
        facts: Facts,
        kept: Option<Kept>,
    ) -> Result<(StatusCode, Result<Verdict, Vec<String>>), Failure> {
        let judge = Judge::new(proven, facts, kept);
        let mut court = Court { judge, status: StatusCode::OK };
        let fetched = fetch(&self.request(Method::GET, self.url.clone()), &mut court).await;
        match fetched {
            // The rest was not read because something differed.
            Err(_) if court.judge.is_lost() => {}
            fetched => drop(fetched?),
        }
        Ok((court.status, court.judge.finish()))
    }

    fn wrong(&self, error: impl std::fmt::Display) -> Failure {
        Failure::Failed(format!("{}: {error}", self.url))
    }
}

/// Reads an answer only for its head.
struct Ignore;

impl Receiver for Ignore {
    fn head(&mut self, _: &Head) -> Result<(), Failure> {
        Ok(())
    }

    fn data(&mut self, _: &[u8]) -> Result<(), Failure> {
        Ok(())
    }
}

/// Takes in a proof.
struct Collect<'a> {
    url: &'a Uri,
    bytes: Vec<u8>,
}

impl Receiver for Collect<'_> {
    fn head(&mut self, _: &Head) -> Result<(), Failure> {
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.bytes.len() + bytes.len() > 2 * limits::PROOF_BYTES_MAX {
            return Err(Failure::Failed(format!("{}: the edge's proof is too long", self.url)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// Hands an answer to the judge, and stops it when that has seen enough.
struct Court<'a> {
    judge: Judge<'a>,
    status: StatusCode,
}

impl Court<'_> {
    fn go_on(&self) -> Result<(), Failure> {
        if self.judge.is_lost() { Err(Failure::Said(Exit::Failed)) } else { Ok(()) }
    }
}

impl Receiver for Court<'_> {
    fn head(&mut self, head: &Head) -> Result<(), Failure> {
        self.status = head.status;
        self.judge.head(head.status, &head.headers);
        self.go_on()
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.judge.data(bytes);
        self.go_on()
    }
}

fn say(context: &Context, args: &VerifyArgs, round: Round) -> Result<(), Failure> {
    let (answer, entry, location) = match &round.judged {
        Ok(Verdict::File(entry)) => (Some("file"), Some(entry), None),
        Ok(Verdict::Redirect(location)) => (Some("redirect"), None, Some(location.as_str())),
        Ok(Verdict::Absent(page)) => (Some("absent"), page.as_ref(), None),
        Err(_) => (None, None, None),
    };
    let differs = round.judged.as_ref().err().map_or(&[][..], Vec::as_slice);
    if context.out.json() {
        context.out.object(&VerifyObject {
            event: "done",
            url: args.url.to_string(),
            verified: round.judged.is_ok(),
            deploy: round.deploy.to_string(),
            answer,
            status: round.status.as_u16(),
            path: entry.map(|entry| text::name(entry.path.as_bytes())),
            bytes: entry.map_or(0, |entry| entry.size()),
            etag: entry.map(|entry| entry.content.id().to_string()),
            content_type: entry.map(|entry| entry.content_type.as_str()),
            location,
            current: round.standing.as_ref().map(Standing::may_be_served),
            proof: round.proof.as_ref().map(|(_, proof)| proof.clone()),
            differs,
        })?;
    } else if let Ok(verdict) = &round.judged {
        context.out.line(said(args, &round, verdict))?;
    }
    for what in differs {
        context.out.note(format_args!("atoll: {}: {what}", args.url));
    }
    match round.judged {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::Said(Exit::Failed)),
    }
}

fn said(args: &VerifyArgs, round: &Round, verdict: &Verdict) -> String {
    let of = |entry: &atoll_proto::manifest::Entry| {
        let name = text::name(entry.path.as_bytes());
        format!("all {} of {name} ({})", text::bytes(entry.size()), entry.content_type)
    };
    let what = match verdict {
        Verdict::File(entry) => of(entry),
        Verdict::Redirect(location) => format!("a redirect to {location}"),
        Verdict::Absent(Some(page)) => format!("proved absent; the body is {}", of(page)),
        Verdict::Absent(None) => "proved absent; the body is the edge's own".to_owned(),
    };
    let by = round.proof.as_ref().map_or_else(String::new, |(_, proof)| {
        let (pages, bytes) = (text::count(proof.pages as u64, "page"), proof.bytes as u64);
        format!(" ({pages}, {} from the {})", text::bytes(bytes), proof.source)
    });
    let now = match &round.standing {
        Some(Standing::Current) => ", which the site points at,",
        Some(Standing::Named) => ", which the host names,",
        Some(Standing::Earlier(_)) => ", of which the site keeps this file,",
        Some(Standing::Stale(_)) | None => "",
    };
    let (status, deploy) = (round.status.as_u16(), text::short(&round.deploy));
    format!("verified {}: {status}: {what}, as deploy {deploy}{now} says{by}", args.url)
}
