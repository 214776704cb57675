//! `GET /.well-known/atoll/proof?path=/a/b.html`: why this edge answers that path as it does.
//!
//! The answer is a [`atoll_proto::manifest::proof::Proof`] from the current deploy for every file
//! name that could decide what the path is answered with, so that anyone who knows the deploy's id
//! can check an answer without access to the cluster; with the rules of the deploy, where it has
//! some. `path=` is followed by the path exactly as it stands in the URL, with the query. The pages
//! are at hand like those of any other answer; a site cannot have a file of this name.

use atoll_client::ClientError;
use atoll_client::manifest::prove_pages;
use atoll_proto::rules::decide::not_found_pages;
use atoll_proto::rules::request::Facts;
use atoll_proto::{DeployId, limits};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use tokio::sync::Semaphore;

use super::Response;
use super::body::Body;
use super::path::{self, BadPath, SitePath};
use super::respond::{ATOLL_DEPLOY, own_headers, page, set};
use crate::fetch::Worth;
use crate::index::Index;
use crate::rules::ask;

/// Where proofs are asked for.
pub const PATH: &str = "/.well-known/atoll/proof";
/// The type of a proof.
pub const CONTENT_TYPE: &str = "application/vnd.atoll.proof";

/// The path, as in a URL, that a request wants a proof for; `None` if it wants something else.
pub fn asked(uri: &Uri) -> Option<&str> {
    if uri.path() != PATH {
        return None;
    }
    Some(uri.query().and_then(|query| query.strip_prefix("path=")).unwrap_or(""))
}

/// The names of files that can decide how a path is answered, whatever the site's settings: those
/// that may be served, those that redirects lead to, the root's page, and the pages for errors.
/// Each once.
pub fn names(asked: &SitePath) -> Vec<Vec<u8>> {
    let path = asked.path.as_slice();
    let stem = [&b"/index.html"[..], b".html"].iter().find_map(|end| path.strip_suffix(*end));
    let mut names: Vec<Vec<u8>> = Vec::new();
    for path in [Some(path), stem].into_iter().flatten().filter(|path| !path.is_empty()) {
        names.extend([&b""[..], b"/index.html", b".html"].map(|end| [path, end].concat()));
    }
    names.push(b"index.html".to_vec());
    names.extend(not_found_pages(&asked.path, asked.directory));
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// Proofs that are made at once: each holds megabytes at most, and nobody is in a hurry for one.
static MAKING: Semaphore = Semaphore::const_new(8);

/// The proof for a path as it stands in a URL, with a query where that has one. Which of the names
/// decide by the site's rules is as for a request for that URL with these headers.
pub async fn answer(
    index: &Index,
    deploy: DeployId,
    raw: &str,
    host: &str,
    headers: &HeaderMap,
) -> Response {
    let (raw, query) = match raw.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (raw, None),
    };
    let asked = match path::parse(raw.as_bytes()) {
        Ok(parsed) => parsed,
        Err(BadPath::Malformed(reason)) => return page(StatusCode::BAD_REQUEST, reason),
        Err(BadPath::Impossible) => SitePath { path: Vec::new(), directory: true },
    };
    let Ok(_room) = MAKING.try_acquire() else {
        return busy();
    };
    let facts = ask::facts(&asked, host, query, headers);
    let proof = match prove(index, deploy, names(&asked), facts, headers).await {
        Ok(proof) => proof,
        Err(error) => {
            tracing::warn!(deploy = %deploy.short(), %error, "a proof cannot be given");
            return page(StatusCode::SERVICE_UNAVAILABLE, "The proof cannot be given right now.");
        }
    };
    let mut headers = own_headers();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(proof.len()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    set(&mut headers, ATOLL_DEPLOY, &deploy.to_string());
    Response { status: StatusCode::OK, headers, body: Body::Whole(Bytes::from(proof)) }
}

fn busy() -> Response {
    let text = "Too many proofs are asked for at this moment.";
    let mut response = page(StatusCode::SERVICE_UNAVAILABLE, text);
    response.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

async fn prove(
    index: &Index,
    deploy: DeployId,
    mut names: Vec<Vec<u8>>,
    facts: Facts,
    headers: &HeaderMap,
) -> Result<Vec<u8>, ClientError> {
    names.extend(ask::names(index, deploy, facts, headers).await?);
    let proving = prove_pages(index.pages(), deploy, &names).await?;
    let mut more = Vec::new();
    let mut bytes = 0;
    for id in proving.more() {
        let got = index.chunks().get(id, Worth::Use).await;
        let got = got.map_err(|error| ClientError::Unreachable {
            what: format!("chunk {}", id.short()),
            reason: error.to_string(),
        })?;
        bytes += got.bytes.len();
        more.push(got.bytes.to_vec());
        if bytes > limits::PROOF_BYTES_MAX {
            break;
        }
    }
    Ok(proving.seal(more)?.encode())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::manifest::proof::Proof;

    use super::super::respond::tests::Fixture;
    use super::super::{Protocol, Request};
    use super::*;
    use http::Method;

    fn all(raw: &str) -> Vec<String> {
        let names = names(&path::parse(raw.as_bytes()).unwrap());
        names.into_iter().map(|name| String::from_utf8(name).unwrap()).collect()
    }

    #[test]
    fn every_name_that_may_decide_is_there_once() {
        assert_eq!(all("/"), ["index.html", "404.html"]);
        assert_eq!(
            all("/a/b.html"),
            [
                "a/b.html",
                "a/b.html/index.html",
                "a/b.html.html",
                "a/b",
                "a/b/index.html",
                "index.html",
                "a/404.html",
                "404.html"
            ]
        );
        assert_eq!(all("/x")[..3], ["x", "x/index.html", "x.html"]);
    }

    #[test]
    fn only_the_one_address_asks_for_proofs() {
        let asked = |uri: &str| asked(&uri.parse().unwrap()).map(str::to_owned);
        assert_eq!(asked("/.well-known/atoll/proof?path=/a%20b&c"), Some("/a%20b&c".to_owned()));
        assert_eq!(asked("/.well-known/atoll/proof"), Some(String::new()));
        assert_eq!(asked("/.well-known/atoll/proofs?path=/a"), None);
    }

    #[tokio::test]
    async fn an_edge_proves_what_it_serves_and_what_it_does_not() {
        let site = Fixture::new(&[("index.html", b"home"), ("a/b.html", b"page")]).await;
        let send = async |target: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("blog.localhost"));
            let uri = target.parse().unwrap();
            let request = Request { method: Method::GET, uri, headers, protocol: Protocol::H1 };
            site.responder.respond(&request).await
        };
        let response = send("/.well-known/atoll/proof?path=/a/b").await;
        assert_eq!(response.status, StatusCode::OK);
        assert_eq!(response.headers[ATOLL_DEPLOY], site.deploy.to_string());
        let Body::Whole(bytes) = response.body else { panic!("{:?}", response.body) };
        let proven = Proof::decode(&bytes).unwrap().open(site.deploy).unwrap();
        assert!(proven.lookup(b"a/b.html").unwrap().is_some());
        for name in names(&path::parse(b"/a/b").unwrap()) {
            assert_eq!(
                proven.lookup(&name).unwrap().is_some(),
                name.ends_with(b"b.html") || name == b"index.html"
            );
        }
        assert_eq!(send("/.well-known/atoll/proof?path=/..").await.status, 400);
        assert_eq!(send("/.well-known/atoll/proof").await.status, 400);
    }
}
