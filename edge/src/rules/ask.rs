//! What the rules of a deploy say of one request, with the files looked up in its manifest.
//!
//! Called by [`crate::http::respond`], and by [`crate::http::proof`] for the names it depends on.

use atoll_client::ClientError;
use atoll_client::rules::decide;
use atoll_proto::DeployId;
use atoll_proto::manifest::Entry;
use atoll_proto::rules::Rules;
use atoll_proto::rules::decide::{Outcome, Question, Vary};
use atoll_proto::rules::effect::HeaderEffect;
use atoll_proto::rules::request::{Facts, Visitor, navigates};
use http::header::{ACCEPT, ACCEPT_LANGUAGE, COOKIE};
use http::{HeaderMap, StatusCode};

use crate::http::path::SitePath;
use crate::index::Index;

/// What the rules say.
pub struct Said {
    /// What answers.
    pub target: Target,
    /// What becomes of the headers of a file.
    pub effect: HeaderEffect,
    /// What of the request all this depends on beside the URL.
    pub vary: Vary,
}

/// What answers a request.
pub enum Target {
    /// This file of the deploy.
    File(Entry),
    /// Another URL.
    Redirect(StatusCode, String),
    /// Nothing is there.
    NotFound {
        /// 404, or what a rule says.
        status: StatusCode,
        /// The site's own page that says so.
        page: Option<Entry>,
        /// The file that is missing.
        missing: Option<Vec<u8>>,
    },
}

/// What is known of a request, but for the visitor.
pub fn facts(asked: &SitePath, host: &str, query: Option<&str>, headers: &HeaderMap) -> Facts {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Facts {
        path: asked.path.clone(),
        directory: asked.directory,
        host: host.to_owned(),
        query: query.map(str::to_owned),
        navigation: navigates(text(ACCEPT.as_str()), text("sec-fetch-mode")),
        visitor: Visitor::default(),
    }
}

fn visitor(headers: &HeaderMap) -> Visitor {
    let language = headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    Visitor::new(language, cookies)
}

/// Asks the rules of a deploy.
///
/// # Errors
/// When its rules or pages cannot be had now.
pub async fn ask(
    index: &Index,
    deploy: DeployId,
    facts: Facts,
    headers: &HeaderMap,
) -> Result<Said, ClientError> {
    let rules = index.rules(deploy).await?;
    let question = question(&rules, facts, headers);
    let (decision, mut known) = decide(index.pages(), deploy, &question).await?;
    let code = |status| StatusCode::from_u16(status).unwrap_or(StatusCode::NOT_FOUND);
    let target = match decision.outcome {
        Outcome::Redirect { status, location } => Target::Redirect(code(status), location),
        Outcome::File { path } => match known.take(&path) {
            Some(entry) => Target::File(entry),
            None => Target::NotFound { status: code(404), page: None, missing: None },
        },
        Outcome::NotFound { status, page, missing } => {
            let page = page.and_then(|page| known.take(&page));
            Target::NotFound { status: code(status), page, missing }
        }
    };
    let effect = match target {
        Target::Redirect(..) => HeaderEffect::default(),
        Target::File(_) | Target::NotFound { .. } => question.headers(),
    };
    Ok(Said { target, effect, vary: decision.vary })
}

/// The paths that the rules look up to decide.
///
/// # Errors
/// When the deploy's rules or pages cannot be had now.
pub async fn names(
    index: &Index,
    deploy: DeployId,
    facts: Facts,
    headers: &HeaderMap,
) -> Result<impl Iterator<Item = Vec<u8>> + use<>, ClientError> {
    let rules = index.rules(deploy).await?;
    let question = question(&rules, facts, headers);
    Ok(decide(index.pages(), deploy, &question).await?.1.names())
}

fn question<'r>(rules: &'r Rules, mut facts: Facts, headers: &HeaderMap) -> Question<'r> {
    if rules.look_at_visitors() {
        facts.visitor = visitor(headers);
    }
    Question::new(rules, facts)
}
