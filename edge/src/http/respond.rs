//! The handler: from the head of a request to an answer, the same for every protocol.
//!
//! host → site → alias → manifest → path rules → conditional → range → chunks → body. Everything
//! before "chunks" is decided from what is in memory (or from manifest pages, which are fetched
//! once), so a 404, a redirect, a HEAD or a 304 costs the origin nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_client::ClientError;
use atoll_proto::lease::MaySend;
use atoll_proto::manifest::Entry;
use atoll_proto::rules::decide::Vary;
use atoll_proto::rules::effect::HeaderEffect;
use atoll_proto::rules::request::is_loaded;
use atoll_proto::{AliasName, DeployId};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};

use super::body::{self, Body, BodyError, Part};
use super::conditional::{self, Outcome, Validators};
use super::path::{self, BadPath};
use super::range::{self, Asked, ByteRange, Multipart};
use super::{Request, Response, freshness, proof};
use crate::clock;
use crate::fetch::{Chunks, FillError, Source};
use crate::index::table::SiteState;
use crate::index::{Found, Index, host};
use crate::rules::ask::{self, Said, Target};

const ALLOW: &str = "GET, HEAD, OPTIONS";
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
pub(super) const ATOLL_DEPLOY: HeaderName = HeaderName::from_static("atoll-deploy");
const X_ROBOTS_TAG: HeaderName = HeaderName::from_static("x-robots-tag");
/// Seconds after which a request that came at a bad time may be repeated.
const RETRY_AFTER_SECS: u64 = 1;

/// How often an answer is made when the site changes meanwhile.
const TRIES: u32 = 3;

/// Answers requests out of an index and its chunks.
pub struct Responder {
    index: Arc<Index>,
    chunks: Arc<Chunks>,
    /// The name of this edge as `Cache-Status` says it.
    name: String,
}

impl Responder {
    /// `name` is the node's name.
    pub fn new(index: Arc<Index>, chunks: Arc<Chunks>, name: &str) -> Responder {
        Responder { index, chunks, name: structured_name(name) }
    }

    /// Answers a request.
    pub async fn respond(&self, request: &Request) -> Response {
        let now = clock::wall();
        let host = host_of(&request.uri, &request.headers);
        let (mut response, preview) = self.answer_under_lease(request, host.as_deref(), now).await;
        if request.method == Method::HEAD {
            response.body = Body::Empty;
        }
        let headers = &mut response.headers;
        // Tags are for edges alone.
        for name in atoll_proto::tags::TAG_HEADERS {
            headers.remove(name);
        }
        set(headers, header::DATE, &httpdate::fmt_http_date(now));
        headers.insert(header::SERVER, HeaderValue::from_static("atoll"));
        if preview {
            headers.insert(X_ROBOTS_TAG, HeaderValue::from_static("noindex"));
        }
        if !headers.contains_key(CACHE_STATUS) {
            set(headers, CACHE_STATUS, &format!("{}; hit", self.name));
        }
        metrics::counter!("atoll_edge_requests_total", "protocol" => request.protocol.as_str(),
            "status" => response.status.as_str().to_owned())
        .increment(1);
        response
    }

    /// An answer that is not older than any publish that had returned when the request came, nor,
    /// unless the site changes faster than it can be answered for, than any that returned until
    /// now. The lease is looked at before the index and again before the first byte. `host` is
    /// that of the request, or what is wrong with it. Says, too, whether the host is of a preview.
    async fn answer_under_lease(
        &self,
        request: &Request,
        host: Result<&str, &&'static str>,
        now: SystemTime,
    ) -> (Response, bool) {
        let preview = |named: &str| self.index.resolve(named).is_preview();
        let named = match (&request.method, host) {
            (&Method::GET | &Method::HEAD, Ok(named)) => named,
            (_, Err(reason)) => return (about_nothing(&request.method, Some(reason)), false),
            (method, Ok(named)) => return (about_nothing(method, None), preview(named)),
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let Some(admission) = self.index.admit(named, clock::boot_ns()) else {
                return (self.no_lease(), preview(named));
            };
            let is_preview = admission.resolved.is_preview();
            let found = admission.resolved.found();
            let mut response = self.answer(request, named, found, now).await;
            match self.index.may_send(&admission, named, clock::boot_ns()) {
                MaySend::Yes => return (response, is_preview),
                MaySend::Anew if tries < TRIES => {}
                MaySend::Anew => return (response, is_preview),
                MaySend::Late => {
                    self.say_late(&mut response.headers);
                    return (response, is_preview);
                }
                MaySend::No => return (self.no_lease(), is_preview),
            }
        }
    }

    async fn answer(
        &self,
        request: &Request,
        host: &str,
        found: Found<'_>,
        now: SystemTime,
    ) -> Response {
        let (site, mut deploy, alias) = match found {
            Found::Deploy { site, deploy, alias } => (site, deploy, alias),
            // A page that is still open at a preview that is gone asks for its scripts.
            Found::Ambiguous | Found::Unpublished | Found::Unknown
                if is_loaded(request.uri.path().as_bytes()) =>
            {
                return no_such_file(StatusCode::NOT_FOUND);
            }
            Found::Ambiguous => {
                let text =
                    "Several deploys of this site begin with these digits: use more of them.";
                return page(StatusCode::NOT_FOUND, text);
            }
            Found::Unpublished => {
                return page(StatusCode::NOT_FOUND, "Nothing is published here yet.");
            }
            Found::Unknown => return page(StatusCode::NOT_FOUND, "There is no such site here."),
        };
        if let Some(raw) = proof::asked(&request.uri) {
            let headers = &request.headers;
            return proof::answer(&self.index, deploy, raw, host, headers).await;
        }
        let raw = request.uri.path().as_bytes();
        let (said, asked) = match path::parse(raw) {
            Ok(asked) => {
                let facts = ask::facts(&asked, host, request.uri.query(), &request.headers);
                let headers = &request.headers;
                let said = ask::ask(&self.index, deploy, facts, headers).await;
                (said, asked.path)
            }
            Err(BadPath::Malformed(reason)) => return page(StatusCode::BAD_REQUEST, reason),
            // A path that no file can have is judged as it was written.
            Err(BadPath::Impossible) => (self.impossible(deploy).await, raw.to_vec()),
        };
        let said = match said {
            Ok(said) => self.or_earlier(said, site, alias, &mut deploy, now).await,
            Err(error) => Err(error),
        };
        let mut response = match said {
            Ok(Said { target, effect, vary }) => {
                let mut response = self.target(request, target, &asked, &effect, now).await;
                depends(&mut response, vary);
                response
            }
            Err(error) => {
                tracing::warn!(deploy = %deploy.short(), %error, "a manifest page cannot be had");
                self.unavailable("The index of this site cannot be read right now.")
            }
        };
        if alias.is_none() {
            unchanging(&mut response);
        }
        set(&mut response.headers, ATOLL_DEPLOY, &deploy.to_string());
        response
    }

    /// No file and no rule can be about the path.
    async fn impossible(&self, deploy: DeployId) -> Result<Said, ClientError> {
        let page = self.index.lookup(deploy, b"404.html").await?;
        let target = Target::NotFound { status: StatusCode::NOT_FOUND, page, missing: None };
        Ok(Said { target, effect: HeaderEffect::default(), vary: Vary::default() })
    }

    /// What a page that was loaded before the last publish may still ask for: the file of just the
    /// path that is missing, in an earlier deploy of the alias.
    async fn or_earlier(
        &self,
        said: Said,
        site: &SiteState,
        alias: Option<&AliasName>,
        deploy: &mut DeployId,
        now: SystemTime,
    ) -> Result<Said, ClientError> {
        let Target::NotFound { missing: Some(missing), .. } = &said.target else {
            return Ok(said);
        };
        let Some(alias) = alias else { return Ok(said) };
        let now_ms = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
        let found = self.index.lookup_earlier(site, alias, missing, now_ms).await?;
        let Some((from, entry)) = found else { return Ok(said) };
        *deploy = from;
        metrics::counter!("atoll_edge_earlier_files_total").increment(1);
        Ok(Said { target: Target::File(entry), ..said })
    }

    /// The answer that the rules decided on.
    async fn target(
        &self,
        request: &Request,
        target: Target,
        asked: &[u8],
        effect: &HeaderEffect,
        now: SystemTime,
    ) -> Response {
        let (status, entry) = match target {
            Target::Redirect(status, location) => return redirect(status, &location),
            Target::File(entry) => {
                let mut response = self.file(request, &entry, now).await;
                take_effect(effect, &mut response);
                return response;
            }
            Target::NotFound { status, .. } if is_loaded(asked) => return no_such_file(status),
            Target::NotFound { status, page: None, .. } => return no_such_page(status),
            Target::NotFound { status, page: Some(entry), .. } => (status, entry),
        };
        // What is not there is not what was taken down.
        if self.chunks.taken_down().covers(&entry.content) {
            return no_such_page(status);
        }
        let mut response = self.instead(&entry, status, now);
        if request.method != Method::HEAD {
            response = self.fill_whole(response, &entry).await;
        }
        // Whether the site's own page can be read does not change what is not there.
        if response.status != status {
            return no_such_page(status);
        }
        take_effect(&effect.of_missing(), &mut response);
        response
    }

    /// A file that exists, with preconditions and ranges.
    async fn file(&self, request: &Request, entry: &Entry, now: SystemTime) -> Response {
        if self.chunks.taken_down().covers(&entry.content) {
            return gone();
        }
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
            Err(BodyError::Fill(FillError::Erased { .. })) => gone(),
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

    /// Past the lease, under a policy that allows it.
    fn say_late(&self, headers: &mut HeaderMap) {
        let status = headers.get(CACHE_STATUS).and_then(|value| value.to_str().ok());
        let status = status.map_or_else(|| format!("{}; hit", self.name), str::to_owned);
        set(headers, CACHE_STATUS, &format!("{status}; detail=lease-expired"));
    }

    /// Nobody knows whether what this edge has is still what is published.
    fn no_lease(&self) -> Response {
        let text =
            "This server has lost touch with its cluster and may not know the latest version.";
        let mut response = self.unavailable(text);
        set(&mut response.headers, CACHE_STATUS, &format!("{}; detail=no-lease", self.name));
        response
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

/// A file whose bytes were taken down. Not 451: why they were is not known here. No page: it may
/// have been a script.
fn gone() -> Response {
    let text = Bytes::from_static(b"This file was taken down.\n");
    let mut response = own(StatusCode::GONE, "text/plain; charset=utf-8", text);
    response.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whether this is [`gone`], and not a page that a rule answers 410 with.
fn is_taken_down(response: &Response) -> bool {
    let control = response.headers.get(header::CACHE_CONTROL);
    response.status == StatusCode::GONE && control.is_some_and(|control| control == "no-store")
}

/// For who cannot use a page: a script that is HTML hides what is wrong.
fn no_such_file(status: StatusCode) -> Response {
    let text = Bytes::from_static(b"There is no such file on this site.\n");
    own(status, "text/plain; charset=utf-8", text)
}

/// Changes the headers of a file as the site's rules say.
fn take_effect(effect: &HeaderEffect, response: &mut Response) {
    let status = response.status;
    let failed = [StatusCode::PRECONDITION_FAILED, StatusCode::RANGE_NOT_SATISFIABLE];
    if status.is_server_error() || failed.contains(&status) || is_taken_down(response) {
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

/// Says what an answer depends on beside its URL.
fn depends(response: &mut Response, vary: Vary) {
    for name in vary.names() {
        response.headers.append(header::VARY, HeaderValue::from_static(name));
    }
}

/// A file under a host that names its deploy is the same for ever.
fn unchanging(response: &mut Response) {
    let file = [StatusCode::OK, StatusCode::PARTIAL_CONTENT, StatusCode::NOT_MODIFIED];
    if !file.contains(&response.status) {
        return;
    }
    let said = response.headers.get(header::CACHE_CONTROL).and_then(|said| said.to_str().ok());
    if let Some(said) = said.map(|said| freshness::unchanging(said).to_owned()) {
        set(&mut response.headers, header::CACHE_CONTROL, &said);
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

/// Headers that begin every answer; a site's rules may change what follows from no request.
pub(super) fn own_headers() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers
}

/// Headers that a 200, a 206 and a 304 have in common.
fn file_headers(entry: &Entry, etag: &str, last_modified: SystemTime) -> HeaderMap {
    let mut headers = own_headers();
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

/// What is about no site: another method than GET and HEAD, or a request whose host is wrong.
fn about_nothing(method: &Method, wrong: Option<&str>) -> Response {
    match (method, wrong) {
        (&Method::GET | &Method::HEAD, wrong) => {
            page(StatusCode::BAD_REQUEST, wrong.unwrap_or_default())
        }
        (&Method::OPTIONS, _) => allowed(StatusCode::NO_CONTENT),
        _ => allowed(StatusCode::METHOD_NOT_ALLOWED),
    }
}

fn allowed(status: StatusCode) -> Response {
    let mut response = match status {
        StatusCode::NO_CONTENT => Response { status, headers: own_headers(), body: Body::Empty },
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
pub(super) fn page(status: StatusCode, text: &str) -> Response {
    let title = status.canonical_reason().unwrap_or("Error");
    let html = format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{code} {title}</title>\n\
         <h1>{code} {title}</h1>\n<p>{text}</p>\n",
        code = status.as_u16(),
    );
    own(status, "text/html; charset=utf-8", Bytes::from(html))
}

/// A body of our own.
fn own(status: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    let mut headers = own_headers();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let control =
        if status.is_server_error() { "no-store" } else { "public, max-age=0, must-revalidate" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
    Response { status, headers, body: Body::Whole(body) }
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

pub(super) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // As bytes: the query of a redirect may hold UTF-8.
    match HeaderValue::from_bytes(value.as_bytes()) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => tracing::debug!(%name, "a header value was left out"),
    }
}

#[cfg(test)]
#[path = "respond_tests.rs"]
pub(crate) mod tests;
