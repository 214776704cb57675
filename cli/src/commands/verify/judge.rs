//! Judging an answer against a proof. Pure: it is fed the head and the body, and says what differs.

use atoll_proto::content::Extent;
use atoll_proto::manifest::Entry;
use atoll_proto::manifest::proof::{ProofError, Proven};
use atoll_proto::rules::decide::{Lookups, Need, Outcome, Question};
use atoll_proto::rules::effect::HeaderEffect;
use atoll_proto::rules::request::Facts;
use atoll_proto::{ChunkId, Content};
use http::header::{self, HeaderName};
use http::{HeaderMap, StatusCode};

/// What an answer turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The bytes of this file.
    File(Entry),
    /// A redirect, to a clean URL or by a rule.
    Redirect(String),
    /// Nothing is there; the body is that of the site's own page, if it has one.
    Absent(Option<Entry>),
}

/// What may be served of an earlier deploy, whose own rules count no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// The file that the current deploy lacks.
    pub(super) path: Vec<u8>,
    /// What the current deploy says of the headers.
    pub(super) effect: HeaderEffect,
}

/// An answer under judgement.
pub(super) struct Judge<'a> {
    proven: &'a Proven,
    facts: Facts,
    /// What must be served, when the deploy is an earlier one.
    kept: Option<Kept>,
    verdict: Option<Verdict>,
    body: Option<BodyCheck>,
    differs: Vec<String>,
}

impl<'a> Judge<'a> {
    /// `facts` is the request that is answered; `kept` what must answer it of an earlier deploy.
    pub(super) fn new(proven: &'a Proven, facts: Facts, kept: Option<Kept>) -> Self {
        Self { proven, facts, kept, verdict: None, body: None, differs: Vec::new() }
    }

    /// Whether something differs already, so that the rest need not be read.
    pub(super) fn is_lost(&self) -> bool {
        !self.differs.is_empty()
    }

    /// Judges the head of the answer.
    pub(super) fn head(&mut self, status: StatusCode, headers: &HeaderMap) {
        let deploy = text(headers, HeaderName::from_static("atoll-deploy"));
        if deploy != self.proven.deploy().to_string() {
            self.differ(format!("Atoll-Deploy is {deploy:?}, not {}", self.proven.deploy()));
        }
        let coding = text(headers, header::CONTENT_ENCODING);
        if !coding.is_empty() && coding != "identity" {
            self.differ(format!("the body has the content coding {coding:?}, not as asked for"));
        }
        if self.is_lost() {
            return;
        }
        let judged = self.expected().and_then(|(outcome, effect)| match outcome {
            Outcome::File { path } => self.file(&path, status, headers, &effect),
            Outcome::Redirect { status: code, location } => {
                self.redirect(code, &location, status, headers);
                Ok(())
            }
            Outcome::NotFound { status: code, page, .. } => {
                self.absent(code, page.as_deref(), status, headers, &effect)
            }
        });
        if let Err(error) = judged {
            self.differ(error.to_string());
        }
    }

    /// Judges more of the body.
    pub(super) fn data(&mut self, bytes: &[u8]) {
        if let Some(body) = &mut self.body
            && let Err(what) = body.take(bytes)
        {
            self.body = None;
            self.differ(what);
        }
    }

    /// The end of the answer: what it was, or everything that differs.
    pub(super) fn finish(mut self) -> Result<Verdict, Vec<String>> {
        if let Some(body) = self.body.take()
            && let Err(what) = body.finish()
        {
            self.differ(what);
        }
        match self.verdict {
            Some(verdict) if self.differs.is_empty() => Ok(verdict),
            _ => Err(self.differs),
        }
    }

    fn differ(&mut self, what: String) {
        self.differs.push(what);
    }

    /// What the rules of the deploy say about the request, by what the proof says about its files.
    fn expected(&self) -> Result<(Outcome, HeaderEffect), ProofError> {
        if let Some(Kept { path, effect }) = &self.kept {
            return Ok((Outcome::File { path: path.clone() }, effect.clone()));
        }
        let rules = self.proven.rules()?;
        let question = Question::new(&rules, self.facts.clone());
        match question.decide(&Known(self.proven)) {
            Ok(decision) => Ok((decision.outcome, question.headers())),
            // The proof does not say whether there is such a file.
            Err(Need(path)) => match self.proven.lookup(&path) {
                Err(error) => Err(error),
                Ok(_) => Err(ProofError::Bounds { what: "what rules look up" }),
            },
        }
    }

    fn file(
        &mut self,
        path: &[u8],
        status: StatusCode,
        headers: &HeaderMap,
        effect: &HeaderEffect,
    ) -> Result<(), ProofError> {
        let name = String::from_utf8_lossy(path);
        let Some(entry) = self.proven.lookup(path)?.cloned() else {
            self.differ(format!("it answers with a file where the deploy has none at {name}"));
            return Ok(());
        };
        if status != StatusCode::OK {
            self.differ(format!("the status is {status}, but the deploy has {name}"));
            return Ok(());
        }
        let (etag, own) = (text(headers, header::ETAG), format!("\"{}\"", entry.content.id()));
        if etag != own {
            self.differ(format!("ETag is {etag}, but {name} of this deploy has {own}"));
            return Ok(());
        }
        self.whole(headers, &entry, effect)?;
        self.verdict = Some(Verdict::File(entry));
        Ok(())
    }

    /// Type and length as the manifest and the rules say, and every byte.
    fn whole(
        &mut self,
        headers: &HeaderMap,
        entry: &Entry,
        effect: &HeaderEffect,
    ) -> Result<(), ProofError> {
        let mut changed = effect.headers.iter().rev();
        let ruled = changed.find(|(name, _)| name == header::CONTENT_TYPE.as_str());
        let expected = match (ruled, entry.content_type.as_str()) {
            (Some((_, value)), _) => value.as_deref().unwrap_or_default(),
            (None, "") => "application/octet-stream",
            (None, known) => known,
        };
        let found = text(headers, header::CONTENT_TYPE);
        if found != expected {
            self.differ(format!("Content-Type is {found:?}, not {expected:?}"));
        }
        let length = text(headers, header::CONTENT_LENGTH);
        if !length.is_empty() && length.parse() != Ok(entry.size()) {
            self.differ(format!("Content-Length is {length}, not {}", entry.size()));
        }
        let extents = self.proven.extents(&entry.content)?;
        self.body = Some(BodyCheck::new(&entry.content, extents));
        Ok(())
    }

    fn absent(
        &mut self,
        code: u16,
        page: Option<&[u8]>,
        status: StatusCode,
        headers: &HeaderMap,
        effect: &HeaderEffect,
    ) -> Result<(), ProofError> {
        if status != code {
            let what = "but the deploy has none to answer with";
            self.differ(format!("the status is {status}, {what}: it should be {code}"));
            return Ok(());
        }
        let page = match page {
            Some(page) => self.proven.lookup(page)?.cloned(),
            None => None,
        };
        if let Some(page) = &page {
            self.whole(headers, page, &effect.of_missing())?;
        }
        self.verdict = Some(Verdict::Absent(page));
        Ok(())
    }

    fn redirect(&mut self, code: u16, location: &str, status: StatusCode, headers: &HeaderMap) {
        let found = text(headers, header::LOCATION);
        if status != code || found != location {
            self.differ(format!(
                "the status is {status} and Location {found:?}, but the deploy makes it redirect \
                 with {code} to {location:?}"
            ));
            return;
        }
        self.verdict = Some(Verdict::Redirect(found));
    }
}

/// The files of a deploy as far as a proof goes.
struct Known<'a>(&'a Proven);

impl Lookups for Known<'_> {
    fn exists(&self, path: &[u8]) -> Option<bool> {
        self.0.lookup(path).ok().map(|entry| entry.is_some())
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> String {
    let value = headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    value.unwrap_or_default().into_owned()
}

/// Compares a body, as it comes, with the chunks it should be made of.
struct BodyCheck {
    size: u64,
    extents: std::vec::IntoIter<Extent>,
    current: Option<Extent>,
    /// Bytes of the current extent so far.
    at: u32,
    received: u64,
    hasher: blake3::Hasher,
}

impl BodyCheck {
    fn new(content: &Content, extents: Vec<Extent>) -> Self {
        let mut extents = extents.into_iter();
        let current = extents.next();
        let size = content.size();
        Self { size, extents, current, at: 0, received: 0, hasher: blake3::Hasher::new() }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let Some(extent) = self.current else {
                return Err(format!("the body goes on after {} bytes", self.size));
            };
            let left = (extent.len - self.at) as usize;
            let (now, rest) = bytes.split_at(left.min(bytes.len()));
            bytes = rest;
            match extent.id {
                Some(_) => drop(self.hasher.update(now)),
                None if now.iter().any(|byte| *byte != 0) => return Err(self.wrong()),
                None => {}
            }
            self.received += now.len() as u64;
            self.at += u32::try_from(now.len()).unwrap_or(u32::MAX);
            if self.at == extent.len {
                let hash = ChunkId(*self.hasher.finalize().as_bytes());
                if extent.id.is_some_and(|id| id != hash) {
                    return Err(self.wrong());
                }
                self.hasher.reset();
                (self.current, self.at) = (self.extents.next(), 0);
            }
        }
        Ok(())
    }

    fn wrong(&self) -> String {
        format!("the body has wrong bytes before byte {}", self.received)
    }

    fn finish(self) -> Result<(), String> {
        if self.received == self.size {
            return Ok(());
        }
        Err(format!("the body ends after {} of {} bytes", self.received, self.size))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::manifest::proof::Proof;
    use atoll_proto::rules::parse::{Sources, parse};
    use atoll_proto::site::SiteSettings;

    use super::*;

    fn entry(path: &str, parts: &[&[u8]]) -> Entry {
        let extent = |part: &&[u8]| Extent {
            id: Some(ChunkId::of(part)),
            len: u32::try_from(part.len()).unwrap(),
        };
        Entry {
            path: path.into(),
            mode: 0o644,
            mtime_ns: 0,
            content: Content::from_extents(parts.iter().map(extent).collect()),
            content_type: "text/html".to_owned(),
            header_rule: None,
            variants: Vec::new(),
            base: None,
        }
    }

    const RULES: &str =
        "/old/* /new/:splat 302\n/in /c.html 200\n/a /b 301!\n/lost /404.html 410\n";
    const HEADERS: &str = "/c.html\n  Content-Type: text/markdown\n";

    fn site(ruled: bool) -> Proven {
        let mut entries = vec![
            entry("404.html", &[b"gone"]),
            entry("a/index.html", &[b"index"]),
            entry("big", &[b"one", b"two"]),
            entry("c.html", &[b"see"]),
        ];
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let (redirects, headers) = if ruled { (RULES, HEADERS) } else { ("", "") };
        let (redirects, headers) = (Some(redirects.as_bytes()), Some(headers.as_bytes()));
        let set = parse(Sources { redirects, headers }, &SiteSettings::default()).unwrap();
        let stored = set.store(1 << 20).unwrap();
        let built = atoll_client::build(entries, stored.content).unwrap();
        let mut chunks: Vec<Vec<u8>> = built.pages.iter().rev().map(|p| p.bytes.to_vec()).collect();
        chunks.extend(stored.chunks.into_iter().map(|(_, bytes)| bytes.to_vec()));
        Proof::new(chunks).unwrap().open(built.root).unwrap()
    }

    /// The answer to a URL of the site, with rules where it is written so: `rules: /a`.
    fn judge(
        url: &str,
        status: u16,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Verdict, Vec<String>> {
        judge_kept(url, None, status, headers, body)
    }

    fn judge_kept(
        url: &str,
        kept: Option<Kept>,
        status: u16,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Verdict, Vec<String>> {
        let (ruled, url) = match url.strip_prefix("rules: ") {
            Some(url) => (true, url),
            None => (false, url),
        };
        let proven = site(ruled);
        let asked = atoll_edge::http::path::parse(url.as_bytes()).unwrap();
        let facts = atoll_edge::rules::ask::facts(&asked, "blog.test", None, &HeaderMap::new());
        let mut judge = Judge::new(&proven, facts, kept);
        let mut map = HeaderMap::new();
        map.insert("atoll-deploy", proven.deploy().to_string().parse().unwrap());
        map.insert("content-type", "text/html".parse().unwrap());
        for (name, value) in headers {
            map.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        judge.head(StatusCode::from_u16(status).unwrap(), &map);
        body.chunks(2).for_each(|part| judge.data(part));
        judge.finish()
    }

    fn etag(parts: &[&[u8]]) -> String {
        format!("\"{}\"", entry("x", parts).content.id())
    }

    #[test]
    fn honest_answers_pass() {
        let big = etag(&[b"one", b"two"]);
        assert!(matches!(judge("/big", 200, &[("etag", &big)], b"onetwo"), Ok(Verdict::File(_))));
        let see = etag(&[b"see"]);
        for url in ["/c", "/c.html", "rules: /c", "rules: /in"] {
            assert!(judge(url, 200, &[("etag", &see)], b"see").is_ok(), "{url}");
        }
        let typed = [("etag", see.as_str()), ("content-type", "text/markdown")];
        assert!(judge("rules: /c.html", 200, &typed, b"see").is_ok());
        assert!(matches!(judge("/nowhere", 404, &[], b"gone"), Ok(Verdict::Absent(Some(_)))));
        assert!(matches!(judge("rules: /lost", 410, &[], b"gone"), Ok(Verdict::Absent(Some(_)))));
        let plain = [("content-type", "text/plain; charset=utf-8")];
        assert!(matches!(judge("/no.js", 404, &plain, b"no"), Ok(Verdict::Absent(None))));
        for (url, status, to) in
            [("/a", 307, "/a/"), ("rules: /a", 301, "/b"), ("rules: /old/x", 302, "/new/x")]
        {
            let judged = judge(url, status, &[("location", to)], b"");
            assert_eq!(judged, Ok(Verdict::Redirect(to.to_owned())), "{url} to {to}");
        }
    }

    #[test]
    fn lies_are_found() {
        let (big, see) = (etag(&[b"one", b"two"]), etag(&[b"see"]));
        let other = ChunkId::of(b"other").to_string();
        for (url, status, headers, body, word) in [
            ("/big", 200, vec![("etag", big.as_str())], &b"oneTwo"[..], "wrong bytes"),
            ("/big", 200, vec![("etag", &big)], b"onetw", "ends after 5 of 6"),
            ("/big", 200, vec![("etag", &big)], b"onetwo!", "goes on after 6"),
            ("/big", 200, vec![("etag", &see)], b"see", "ETag"),
            (
                "/big",
                200,
                vec![("etag", &big), ("content-type", "text/plain")],
                b"",
                "Content-Type",
            ),
            ("/big", 200, vec![("etag", &big), ("content-length", "5")], b"", "Content-Length"),
            ("/big", 200, vec![("etag", &big), ("content-encoding", "br")], b"", "coding"),
            ("/big", 200, vec![("etag", &big), ("atoll-deploy", &other)], b"", "Atoll-Deploy"),
            ("/big", 404, vec![], b"gone", "has big"),
            ("/big", 503, vec![], b"", "503"),
            ("/nowhere", 404, vec![], b"mine", "wrong bytes"),
            ("/nowhere", 200, vec![("etag", &see)], b"see", "none"),
            ("/nowhere", 307, vec![("location", "/nowhere/")], b"", "none"),
            ("/a", 307, vec![("location", "//evil.test/a/")], b"", "redirect"),
            ("/a", 302, vec![("location", "/a/")], b"", "redirect"),
            ("rules: /a", 307, vec![("location", "/a/")], b"", "301 to \"/b\""),
            ("rules: /old/x", 404, vec![], b"gone", "302 to \"/new/x\""),
            ("rules: /old/x", 302, vec![("location", "/new/y")], b"", "/new/x"),
            ("rules: /in", 404, vec![], b"gone", "has c.html"),
            ("rules: /lost", 404, vec![], b"gone", "should be 410"),
            ("rules: /c.html", 200, vec![("etag", &see)], b"see", "Content-Type"),
        ] {
            let differs = judge(url, status, &headers, body).unwrap_err().join("; ");
            assert!(differs.contains(word), "{url} {status}: {differs:?} lacks {word:?}");
        }
    }

    #[test]
    fn of_an_earlier_deploy_only_the_file_that_is_lacking_now_may_answer() {
        let see = etag(&[b"see"]);
        let kept = |path: &str, kind: Option<&str>| {
            let typed = kind.map(|kind| ("content-type".to_owned(), Some(kind.to_owned())));
            let effect = HeaderEffect { headers: typed.into_iter().collect(), rules: Vec::new() };
            Some(Kept { path: path.as_bytes().to_vec(), effect })
        };
        let typed = [("etag", see.as_str()), ("content-type", "text/markdown")];
        let judged = |kept: Option<Kept>| judge_kept("rules: /a", kept, 200, &typed, b"see");
        // Rules of its own, which lead elsewhere from here, are of no account.
        assert!(judged(kept("c.html", Some("text/markdown"))).is_ok());
        assert!(judged(kept("c.html", None)).unwrap_err()[0].contains("Content-Type"));
        assert!(judged(kept("big", Some("text/markdown"))).unwrap_err()[0].contains("ETag"));
        assert!(judged(kept("a", Some("text/markdown"))).unwrap_err()[0].contains("none at a"));
    }

    #[test]
    fn without_the_rules_nothing_is_said_about_what_they_decide() {
        let set = parse(
            Sources { redirects: Some(RULES.as_bytes()), headers: None },
            &SiteSettings::default(),
        );
        let stored = set.unwrap().store(1 << 20).unwrap();
        let built = atoll_client::build(vec![entry("a", &[b"a"])], stored.content).unwrap();
        let pages = built.pages.iter().rev().map(|page| page.bytes.to_vec()).collect();
        let proven = Proof::new(pages).unwrap().open(built.root).unwrap();
        assert!(matches!(proven.rules(), Err(ProofError::Incomplete { .. })));
    }
}
