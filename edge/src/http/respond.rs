//! The handler: from the head of a request to an answer, the same for every protocol.
//!
//! host → site → alias → manifest → path rules → conditional → range → chunks → body. Everything
//! before "chunks" is decided from what is in memory (or from manifest pages, which are fetched
//! once), so a 404, a redirect, a HEAD or a 304 costs the origin nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use atoll_client::ClientError;
use atoll_proto::DeployId;
use atoll_proto::manifest::Entry;
use atoll_proto::rules::decide::{HeaderEffect, Need, Outcome, Question};
use atoll_proto::rules::request::{Facts, Signals, Wants, wants};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};

use super::body::{self, Body, BodyError, Part};
use super::conditional::{self, Outcome, Validators};
use super::path::{self, BadPath, SitePath};
use super::range::{self, Asked, ByteRange, Multipart};
use super::{Request, Response, freshness};
use crate::fetch::{Chunks, FillError, Source};
use crate::index::{Found, Index, host};
use crate::rules::book::{Book, LookedUp};

const ALLOW: &str = "GET, HEAD, OPTIONS";
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const ATOLL_DEPLOY: HeaderName = HeaderName::from_static("atoll-deploy");
/// Seconds after which a request that came at a bad time may be repeated.
const RETRY_AFTER_SECS: u64 = 1;

/// Answers requests out of an index and its chunks.
pub struct Responder {
    index: Arc<Index>,
    chunks: Arc<Chunks>,
    rules: Book,
    /// The name of this edge as `Cache-Status` says it.
    name: String,
}

/// What answers a request, once the path rules are done.
enum Target {
    File(Entry),
    Redirect(StatusCode, String),
    NotFound(Option<Entry>),
    /// A rule says with which status nothing is there.
    Gone(StatusCode, Option<Entry>),
}

impl Responder {
    /// `name` is the node's name.
    pub fn new(index: Arc<Index>, chunks: Arc<Chunks>, name: &str) -> Responder {
        let rules = Book::new(chunks.clone());
        Responder { index, chunks, rules, name: structured_name(name) }
    }

    /// Answers a request.
    pub async fn respond(&self, request: &Request) -> Response {
        let now = crate::clock::wall();
        let mut response = self.answer(request, now).await;
        if request.method == Method::HEAD {
            response.body = Body::Empty;
        }
        let headers = &mut response.headers;
        set(headers, header::DATE, &httpdate::fmt_http_date(now));
        headers.insert(header::SERVER, HeaderValue::from_static("atoll"));
        if !headers.contains_key(header::X_CONTENT_TYPE_OPTIONS) {
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        if !headers.contains_key(CACHE_STATUS) {
            set(headers, CACHE_STATUS, &format!("{}; hit", self.name));
        }
        metrics::counter!("atoll_edge_requests_total", "protocol" => request.protocol.as_str(),
            "status" => response.status.as_str().to_owned())
        .increment(1);
        response
    }

    async fn answer(&self, request: &Request, now: SystemTime) -> Response {
        match request.method {
            Method::GET | Method::HEAD => {}
            Method::OPTIONS => return allowed(StatusCode::NO_CONTENT),
            _ => return allowed(StatusCode::METHOD_NOT_ALLOWED),
        }
        let host = match host_of(&request.uri, &request.headers) {
            Ok(host) => host,
            Err(reason) => return page(StatusCode::BAD_REQUEST, reason),
        };
        if !self.index.may_serve() {
            return self.unavailable("This server is starting: it waits for the publish log.");
        }
        let deploy = match self.index.site_of(&host) {
            Found::Deploy { deploy, .. } => deploy,
            Found::Unpublished => {
                return page(StatusCode::NOT_FOUND, "Nothing is published here yet.");
            }
            Found::Unknown => return page(StatusCode::NOT_FOUND, "There is no such site here."),
        };
        let raw = request.uri.path().as_bytes();
        let parsed = path::parse(raw);
        let wants = wants_of(request, parsed.as_ref().map_or(raw, |asked| &asked.path));
        let mut effect = HeaderEffect::default();
        let target = match parsed {
            Ok(asked) => {
                let facts = facts(asked, host, request.uri.query(), wants);
                self.target(deploy, facts, &mut effect).await
            }
            Err(BadPath::Malformed(reason)) => return page(StatusCode::BAD_REQUEST, reason),
            Err(BadPath::Impossible) if wants.html => {
                self.index.lookup(deploy, b"404.html").await.map(Target::NotFound)
            }
            Err(BadPath::Impossible) => Ok(Target::NotFound(None)),
        };
        let mut response = match target {
            Ok(Target::File(entry)) => self.file(request, &entry, now).await,
            Ok(Target::Redirect(status, location)) => redirect(status, &location),
            Ok(Target::NotFound(page)) => {
                self.nothing(request, StatusCode::NOT_FOUND, page, wants, now).await
            }
            Ok(Target::Gone(status, page)) => self.nothing(request, status, page, wants, now).await,
            Err(error) => {
                tracing::warn!(deploy = %deploy.short(), %error, "a manifest page cannot be had");
                self.unavailable("The index of this site cannot be read right now.")
            }
        };
        take_effect(&effect, &mut response);
        set(&mut response.headers, ATOLL_DEPLOY, &deploy.to_string());
        response
    }

    /// Nothing is there, which the site's own page says, if it has one.
    async fn nothing(
        &self,
        request: &Request,
        status: StatusCode,
        page: Option<Entry>,
        wants: Wants,
        now: SystemTime,
    ) -> Response {
        if let Some(entry) = page {
            let mut answer = self.instead(&entry, status, now);
            if request.method != Method::HEAD {
                answer = self.fill_whole(answer, &entry).await;
            }
            // Whether the site's own page can be read does not change what is not there.
            if answer.status == status {
                return answer;
            }
        }
        if wants.html { no_such_page(status) } else { no_such_file(status) }
    }

    /// The path rules, looked up in the manifest; `effect` becomes what they say about headers.
    async fn target(
        &self,
        deploy: DeployId,
        facts: Facts,
        effect: &mut HeaderEffect,
    ) -> Result<Target, ClientError> {
        let rules = self.rules.of(&self.index, deploy).await?;
        let question = Question::new(&rules, facts);
        let mut known = LookedUp::default();
        // Each round looks up another path, of the few that the rules that fit can name.
        let decision = loop {
            match question.decide(&known) {
                Ok(decision) => break decision,
                Err(Need(path)) => {
                    let entry = self.index.lookup(deploy, &path).await?;
                    known.add(path, entry);
                }
            }
        };
        let status = |status| StatusCode::from_u16(status).unwrap_or(StatusCode::NOT_FOUND);
        let target = match decision.outcome {
            Outcome::Redirect { status: code, location } => {
                return Ok(Target::Redirect(status(code), location));
            }
            Outcome::File { path, status: 200 } => match known.take(&path) {
                Some(entry) => Target::File(entry),
                None => Target::NotFound(None),
            },
            Outcome::File { path, status: code } => Target::Gone(status(code), known.take(&path)),
            Outcome::NotFound { status: 404, page } => {
                Target::NotFound(page.and_then(|page| known.take(&page)))
            }
            Outcome::NotFound { status: code, page } => {
                Target::Gone(status(code), page.and_then(|page| known.take(&page)))
            }
        };
        if !matches!(target, Target::NotFound(None) | Target::Gone(_, None)) {
            *effect = question.headers();
        }
        Ok(target)
    }

    /// A file that exists, with preconditions and ranges.
    async fn file(&self, request: &Request, entry: &Entry, now: SystemTime) -> Response {
        let etag = format!("\"{}\"", entry.content.id());
        let last_modified = last_modified(entry, now);
        let is = Validators { etag: &etag, last_modified };
        match conditional::evaluate(&request.headers, is) {
            Outcome::Proceed => {}
            Outcome::NotModified => {
                let headers = file_headers(entry, &etag, last_modified);
                return Response { status: StatusCode::NOT_MODIFIED, headers, body: Body::Empty };
            }
            Outcome::Failed => {
                let text = "The file is not in the state that the request requires.";
                return page(StatusCode::PRECONDITION_FAILED, text);
            }
        }
        // Ranges are defined for GET alone (RFC 9110 §14.2).
        let ranged =
            request.method == Method::GET && conditional::range_allowed(&request.headers, is, now);
        let asked =
            if ranged { range::asked(&request.headers, entry.size()) } else { Asked::Whole };
        match asked {
            Asked::Whole if request.method == Method::HEAD => {
                self.head(entry, &etag, last_modified)
            }
            Asked::Whole => self.whole(entry, now).await,
            Asked::Unsatisfiable => unsatisfiable(entry.size()),
            Asked::Ranges(ranges) => self.ranges(entry, &ranges, &etag, last_modified).await,
        }
    }

    /// The headers of the whole file; its bytes are not looked at.
    fn head(&self, entry: &Entry, etag: &str, last_modified: SystemTime) -> Response {
        let mut headers = file_headers(entry, etag, last_modified);
        headers.insert(header::CONTENT_TYPE, content_type(entry));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(entry.size()));
        Response { status: StatusCode::OK, headers, body: Body::Empty }
    }

    async fn whole(&self, entry: &Entry, now: SystemTime) -> Response {
        let etag = format!("\"{}\"", entry.content.id());
        let response = self.head(entry, &etag, last_modified(entry, now));
        self.fill_whole(response, entry).await
    }

    /// The headers of a file that is sent in place of what was asked for: no version of that.
    fn instead(&self, entry: &Entry, status: StatusCode, now: SystemTime) -> Response {
        let etag = format!("\"{}\"", entry.content.id());
        let mut response = self.head(entry, &etag, last_modified(entry, now));
        response.status = status;
        for name in [header::ETAG, header::LAST_MODIFIED, header::ACCEPT_RANGES] {
            response.headers.remove(name);
        }
        response
    }

    async fn fill_whole(&self, response: Response, entry: &Entry) -> Response {
        let range = ByteRange { from: 0, to: entry.size() };
        let parts = vec![Part { prefix: Bytes::new(), range }];
        self.fill(response, entry, parts, Bytes::new(), entry.size()).await
    }

    async fn ranges(
        &self,
        entry: &Entry,
        ranges: &[ByteRange],
        etag: &str,
        last_modified: SystemTime,
    ) -> Response {
        let size = entry.size();
        let mut response = self.head(entry, etag, last_modified);
        response.status = StatusCode::PARTIAL_CONTENT;
        let part = |prefix, range: &ByteRange| Part { prefix, range: *range };
        if let [range] = ranges {
            set(&mut response.headers, header::CONTENT_RANGE, &range.content_range(size));
            response.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.len()));
            let parts = vec![part(Bytes::new(), range)];
            return self.fill(response, entry, parts, Bytes::new(), range.len()).await;
        }
        let inner = content_type(entry);
        let inner = inner.to_str().unwrap_or("application/octet-stream");
        let multipart = Multipart::new(ranges, size, inner, etag.as_bytes());
        set(&mut response.headers, header::CONTENT_TYPE, &multipart.content_type);
        response.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(multipart.len));
        let parts = multipart.prefixes.into_iter().zip(ranges).map(|(prefix, r)| part(prefix, r));
        self.fill(response, entry, parts.collect(), multipart.suffix, multipart.len).await
    }

    /// Gives a response its body, or a 503 in its place.
    async fn fill(
        &self,
        mut response: Response,
        entry: &Entry,
        parts: Vec<Part>,
        suffix: Bytes,
        len: u64,
    ) -> Response {
        let content = entry.content.clone();
        match body::open(self.chunks.clone(), content, parts, suffix, len).await {
            Ok(opened) => {
                if let Some((source, collapsed)) = opened.first {
                    let status = self.cache_status(source, collapsed);
                    set(&mut response.headers, CACHE_STATUS, &status);
                }
                response.body = opened.body;
                response
            }
            Err(error) => {
                if error != BodyError::Fill(FillError::Busy) {
                    tracing::warn!(path = %entry.path, %error, "a file cannot be served");
                }
                self.unavailable("This file cannot be read right now. Please try again.")
            }
        }
    }

    /// RFC 9211.
    fn cache_status(&self, source: Source, collapsed: bool) -> String {
        let name = &self.name;
        let collapsed = if collapsed { "; collapsed" } else { "" };
        match source {
            Source::Memory => format!("{name}; hit"),
            Source::Disk => format!("{name}; hit; detail=disk"),
            Source::Shield(true) => {
                format!("{name}; fwd=miss; stored{collapsed}; detail=shield-hit")
            }
            Source::Shield(false) => format!("{name}; fwd=miss; stored{collapsed}; detail=shield"),
            Source::Origin => format!("{name}; fwd=miss; stored{collapsed}; detail=origin"),
        }
    }

    fn unavailable(&self, text: &str) -> Response {
        let mut response = page(StatusCode::SERVICE_UNAVAILABLE, text);
        response.headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECS));
        set(&mut response.headers, CACHE_STATUS, &format!("{}; fwd=miss", self.name));
        response
    }
}

fn no_such_page(status: StatusCode) -> Response {
    page(status, "There is no such page on this site.")
}

/// For who has no use for a page: a script that is HTML hides what is wrong.
fn no_such_file(status: StatusCode) -> Response {
    let mut response = page(status, "");
    let text = "There is no such file on this site.\n";
    let headers = &mut response.headers;
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    Response { body: Body::Whole(Bytes::from_static(text.as_bytes())), ..response }
}

/// What a request has a use for, by its path and headers.
fn wants_of(request: &Request, path: &[u8]) -> Wants {
    let text = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    let signals = Signals {
        accept: text("accept"),
        fetch_mode: text("sec-fetch-mode"),
        fetch_dest: text("sec-fetch-dest"),
    };
    wants(signals, path)
}

/// What the rules look at.
fn facts(asked: SitePath, host: String, query: Option<&str>, wants: Wants) -> Facts {
    let SitePath { path, directory } = asked;
    Facts { path, directory, host, query: query.map(str::to_owned), wants }
}

/// Changes the headers of a file as the site's rules say.
fn take_effect(effect: &HeaderEffect, response: &mut Response) {
    let status = response.status;
    let failed = [StatusCode::PRECONDITION_FAILED, StatusCode::RANGE_NOT_SATISFIABLE];
    if status.is_server_error() || failed.contains(&status) {
        return;
    }
    let multipart = response.headers.get(header::CONTENT_TYPE);
    let multipart = multipart.is_some_and(|value| value.as_bytes().starts_with(b"multipart/"));
    for (name, value) in &effect.headers {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        // The type of several ranges says where they begin; a 304 repeats no type.
        let typed = name == header::CONTENT_TYPE;
        if typed && (multipart || status == StatusCode::NOT_MODIFIED) {
            continue;
        }
        match value {
            Some(value) => set(&mut response.headers, name, value),
            None => drop(response.headers.remove(name)),
        }
    }
}

/// The host of a request, normalized.
fn host_of(uri: &Uri, headers: &HeaderMap) -> Result<String, &'static str> {
    let mut values = headers.get_all(header::HOST).iter();
    let header = values.next();
    if values.next().is_some() {
        return Err("The request names more than one host.");
    }
    let header = match header.map(HeaderValue::to_str) {
        Some(Ok(text)) => Some(text),
        Some(Err(_)) => return Err("The host of the request is not a host name."),
        None => None,
    };
    // A target with a host outranks the header (RFC 9112 §3.2.2).
    let named = uri.authority().map(http::uri::Authority::as_str).or(header);
    let Some(named) = named else {
        return Err("The request names no host.");
    };
    host::normalized(named).ok_or("The host of the request is not a host name.")
}

/// Headers that a 200, a 206 and a 304 have in common.
fn file_headers(entry: &Entry, etag: &str, last_modified: SystemTime) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(16);
    set(&mut headers, header::ETAG, etag);
    set(&mut headers, header::LAST_MODIFIED, &httpdate::fmt_http_date(last_modified));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let control = freshness::cache_control(entry.path.as_bytes());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
    headers
}

fn content_type(entry: &Entry) -> HeaderValue {
    HeaderValue::from_str(&entry.content_type)
        .ok()
        .filter(|value| !value.is_empty())
        .unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

/// When the file last changed, but never in the future (RFC 9110 §8.8.2.1).
fn last_modified(entry: &Entry, now: SystemTime) -> SystemTime {
    let since = Duration::from_nanos(u64::try_from(entry.mtime_ns).unwrap_or(0));
    conditional::whole_seconds((SystemTime::UNIX_EPOCH + since).min(now))
}

fn allowed(status: StatusCode) -> Response {
    let mut response = match status {
        StatusCode::NO_CONTENT => Response { status, headers: HeaderMap::new(), body: Body::Empty },
        _ => page(status, "This site can only be read."),
    };
    response.headers.insert(header::ALLOW, HeaderValue::from_static(ALLOW));
    response
}

fn redirect(status: StatusCode, location: &str) -> Response {
    let mut response = page(status, "This page has another address.");
    set(&mut response.headers, header::LOCATION, location);
    response
}

fn unsatisfiable(size: u64) -> Response {
    let mut response =
        page(StatusCode::RANGE_NOT_SATISFIABLE, "The file does not have the bytes asked for.");
    set(&mut response.headers, header::CONTENT_RANGE, &format!("bytes */{size}"));
    response.headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

/// A small page of our own. `text` is ours, never a visitor's.
fn page(status: StatusCode, text: &str) -> Response {
    let title = status.canonical_reason().unwrap_or("Error");
    let html = format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{code} {title}</title>\n\
         <h1>{code} {title}</h1>\n<p>{text}</p>\n",
        code = status.as_u16(),
    );
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(html.len()));
    let control =
        if status.is_server_error() { "no-store" } else { "public, max-age=0, must-revalidate" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
    Response { status, headers, body: Body::Whole(Bytes::from(html)) }
}

/// A name as RFC 8941 writes it: a token where it can be one, else a string.
fn structured_name(name: &str) -> String {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte);
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(token) {
        return name.to_owned();
    }
    let plain: String = name.chars().filter(|c| matches!(c, ' '..='~')).collect();
    format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\""))
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // As bytes: the query of a redirect may hold UTF-8.
    match HeaderValue::from_bytes(value.as_bytes()) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => tracing::debug!(%name, "a header value was left out"),
    }
}

#[cfg(test)]
#[path = "respond_tests.rs"]
pub(crate) mod tests;
