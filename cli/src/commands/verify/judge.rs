//! Judging an answer against a proof. Pure: it is fed the head and the body, and says what differs.

use atoll_edge::http::path::SitePath;
use atoll_edge::rules;
use atoll_proto::content::Extent;
use atoll_proto::manifest::Entry;
use atoll_proto::manifest::proof::{ProofError, Proven};
use atoll_proto::{ChunkId, Content};
use http::header::{self, HeaderName};
use http::{HeaderMap, StatusCode, Uri};

/// What an answer turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The bytes of this file.
    File(Entry),
    /// A redirect to where the deploy has the file.
    Redirect(String),
    /// Nothing is there; the body is that of the site's own page, if it has one.
    Absent(Option<Entry>),
}

/// An answer under judgement.
pub(super) struct Judge<'a> {
    proven: &'a Proven,
    asked: &'a SitePath,
    authority: &'a str,
    verdict: Option<Verdict>,
    body: Option<BodyCheck>,
    differs: Vec<String>,
}

impl<'a> Judge<'a> {
    /// `asked` is the path of the URL, `authority` its host and port.
    pub(super) fn new(proven: &'a Proven, asked: &'a SitePath, authority: &'a str) -> Self {
        Self { proven, asked, authority, verdict: None, body: None, differs: Vec::new() }
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
        let judged = match status {
            StatusCode::OK => self.file(headers),
            StatusCode::NOT_FOUND => self.absent(headers),
            status if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
                self.redirect(headers)
            }
            status => {
                self.differ(format!("the status is {status}: nothing that a deploy could say"));
                Ok(())
            }
        };
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

    /// The files that may answer the path itself, under any setting of the site.
    fn candidates(&self) -> Result<Vec<Entry>, ProofError> {
        let with = |end: &[u8]| [self.asked.path.as_slice(), end].concat();
        if self.asked.path.is_empty() {
            return self.existing(&[b"index.html".to_vec()]);
        }
        if !self.asked.directory {
            // A file of just this name leaves no choice.
            let exact = self.existing(&[with(b"")])?;
            if !exact.is_empty() {
                return Ok(exact);
            }
        }
        self.existing(&[with(b"/index.html"), with(b".html")])
    }

    fn existing(&self, names: &[Vec<u8>]) -> Result<Vec<Entry>, ProofError> {
        let mut found = Vec::new();
        for name in names {
            found.extend(self.proven.lookup(name)?.cloned());
        }
        Ok(found)
    }

    fn file(&mut self, headers: &HeaderMap) -> Result<(), ProofError> {
        let mut may = self.candidates()?;
        if may.is_empty() {
            // A site of one page answers navigations with that page.
            may = self.existing(&[b"index.html".to_vec()])?;
        }
        let etag = text(headers, header::ETAG);
        let of = |entry: &Entry| format!("\"{}\"", entry.content.id());
        let Some(first) = may.first() else {
            self.differ("it answers with a file where the deploy has none".to_owned());
            return Ok(());
        };
        let Some(entry) = may.iter().find(|entry| of(entry) == etag) else {
            let what =
                format!("ETag is {etag}, but {} of this deploy has {}", first.path, of(first));
            self.differ(what);
            return Ok(());
        };
        self.whole(headers, entry)?;
        self.verdict = Some(Verdict::File(entry.clone()));
        Ok(())
    }

    /// Type and length as the manifest says, and every byte.
    fn whole(&mut self, headers: &HeaderMap, entry: &Entry) -> Result<(), ProofError> {
        let expected = match entry.content_type.as_str() {
            "" => "application/octet-stream",
            known => known,
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

    fn absent(&mut self, headers: &HeaderMap) -> Result<(), ProofError> {
        if let Some(entry) = self.candidates()?.first() {
            self.differ(format!("it answers 404, but the deploy has {}", entry.path));
            return Ok(());
        }
        // Who cannot use a page is told in plain text.
        let pages = match rules::asset::is_loaded(&self.asked.path) {
            true => Vec::new(),
            false => self.existing(&rules::not_found_pages(self.asked))?,
        };
        let page = pages.into_iter().next();
        if let Some(page) = &page {
            self.whole(headers, page)?;
        }
        self.verdict = Some(Verdict::Absent(page));
        Ok(())
    }

    fn redirect(&mut self, headers: &HeaderMap) -> Result<(), ProofError> {
        let location = text(headers, header::LOCATION);
        let stem = |path: &SitePath| {
            let whole = [path.path.as_slice(), if path.directory { b"/" } else { b"" }].concat();
            let ends = [&b"/index.html"[..], b".html", b"/"];
            let end = ends.iter().find_map(|end| whole.strip_suffix(*end));
            end.unwrap_or(&whole).to_vec()
        };
        let leads = local(&location, self.authority)
            .and_then(|path| atoll_edge::http::path::parse(path.as_bytes()).ok());
        let (from, to) = (stem(self.asked), leads.as_ref().map(stem));
        let names = [&b""[..], b"/index.html", b".html"].map(|end| [from.as_slice(), end].concat());
        let elsewhere = to.as_ref() == Some(&from) && leads.as_ref() != Some(self.asked);
        if elsewhere && !self.existing(&names)?.is_empty() {
            self.verdict = Some(Verdict::Redirect(location));
            return Ok(());
        }
        let ruled = if self.proven.root().rules.is_some() {
            "; the deploy has rules, which may say so, but `atoll verify` does not evaluate rules"
        } else {
            ""
        };
        self.differ(format!("no file of the deploy makes it redirect to {location:?}{ruled}"));
        Ok(())
    }
}

/// The path of a `Location` on the same host.
fn local(location: &str, authority: &str) -> Option<String> {
    let uri: Uri = location.parse().ok()?;
    let same = uri.authority().is_none_or(|named| named.as_str().eq_ignore_ascii_case(authority));
    (same && !location.starts_with("//")).then(|| uri.path().to_owned())
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
    use atoll_proto::manifest::Page;
    use atoll_proto::manifest::proof::Proof;

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

    fn site() -> Proven {
        let mut entries = vec![
            entry("404.html", &[b"gone"]),
            entry("a/index.html", &[b"index"]),
            entry("big", &[b"one", b"two"]),
            entry("c.html", &[b"see"]),
        ];
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let built = atoll_client::build(entries, None).unwrap();
        let pages: Vec<Page> =
            built.pages.iter().rev().map(|p| Page::decode(&p.bytes).unwrap()).collect();
        let proof = Proof::new(pages.iter().map(Page::encode).collect()).unwrap();
        proof.open(built.root).unwrap()
    }

    fn judge(
        url: &str,
        status: u16,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Verdict, Vec<String>> {
        let proven = site();
        let asked = atoll_edge::http::path::parse(url.as_bytes()).unwrap();
        let mut judge = Judge::new(&proven, &asked, "blog.test:1");
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
        for url in ["/c", "/c.html", "/c/"] {
            assert!(judge(url, 200, &[("etag", &see)], b"see").is_ok(), "{url}");
        }
        assert!(matches!(judge("/nowhere", 404, &[], b"gone"), Ok(Verdict::Absent(Some(_)))));
        let plain = [("content-type", "text/plain; charset=utf-8")];
        assert!(matches!(judge("/no.js", 404, &plain, b"no"), Ok(Verdict::Absent(None))));
        for (url, to) in [("/a", "/a/"), ("/c.html", "/c"), ("/a", "https://blog.test:1/a/?q")] {
            assert!(judge(url, 308, &[("location", to)], b"").is_ok(), "{url} to {to}");
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
            ("/nowhere", 404, vec![], b"mine", "wrong bytes"),
            ("/nowhere", 200, vec![("etag", &see)], b"see", "none"),
            ("/a", 308, vec![("location", "https://evil.test/a/")], b"", "redirect"),
            ("/a", 308, vec![("location", "//evil.test/a/")], b"", "redirect"),
            ("/nowhere", 308, vec![("location", "/nowhere/")], b"", "redirect"),
            ("/a", 302, vec![("location", "/a")], b"", "redirect"),
            ("/big", 503, vec![], b"", "503"),
        ] {
            let differs = judge(url, status, &headers, body).unwrap_err().join("; ");
            assert!(differs.contains(word), "{url} {status}: {differs:?} lacks {word:?}");
        }
    }
}
