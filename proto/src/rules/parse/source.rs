//! The path at the beginning of a rule, and the templates that use what it captures.

use crate::limits;
use crate::rules::pattern::{Pattern, Segment};
use crate::rules::template::{self, Part, Template};
use crate::site::Dialect;

/// The name of what a splat captures.
const SPLAT: &str = "splat";

/// A pattern, and the names of what it captures, in order.
pub(super) struct Source {
    pub(super) pattern: Pattern,
    pub(super) names: Vec<(String, bool)>,
}

/// Whose path it is: what is allowed differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Of `_redirects`.
    Redirects,
    /// Of `_headers`.
    Headers,
}

/// Reads the path (or URL) a rule is about.
pub(super) fn source(text: &str, dialect: Dialect, place: Place) -> Result<Source, String> {
    let mut names = Vec::new();
    let (host, path) = split_host(text, (dialect, place), &mut names)?;
    if path.contains('?') && dialect == Dialect::Netlify {
        return Err(format!(
            "{text:?} holds a query: write its parameters after the path, as in \
             `/store id=:id /blog/:id`"
        ));
    }
    // A fragment never reaches a server, and Pages' rules do not look at the query.
    let path = path.split(['?', '#']).next().unwrap_or(path);
    // The path of a request is decoded before it is split.
    let path = path.replace("%2F", "/").replace("%2f", "/");
    let mut path = path.strip_prefix('/').unwrap_or(&path);
    if dialect == Dialect::Netlify {
        path = path.strip_suffix('/').unwrap_or(path);
    }
    let mut source = Source { pattern: Pattern { host, segments: Vec::new() }, names };
    if path.is_empty() && dialect == Dialect::Netlify {
        return Ok(source);
    }
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        // In Pages' dialect a final slash is a segment of its own.
        if part.is_empty() && (parts.peek().is_some() || dialect == Dialect::Netlify) {
            return Err(format!(
                "{text:?} holds two slashes in a row, which no request can have in its path"
            ));
        }
        let segment = segment(part, (dialect, place), &mut source.names)?;
        source.pattern.segments.push(segment);
    }
    possible(&source.pattern.segments)?;
    let max = limits::RULE_SEGMENTS_MAX;
    if source.pattern.segments.len() > max {
        return Err(format!("the path has too many segments: at most {max}"));
    }
    let splats = source.pattern.splats();
    // Netlify's redirects have theirs at the end, its headers anywhere.
    let several = (dialect, place) == (Dialect::Netlify, Place::Headers);
    let max = if several { limits::RULE_SPLATS_MAX } else { 1 };
    if splats > max {
        return Err(if several {
            format!("the path has more than {max} `*`, which are too many")
        } else {
            "the path has more than one `*`: one is allowed".to_owned()
        });
    }
    let last = matches!(source.pattern.segments.last(), Some(Segment::Splat { .. }));
    if splats == 1 && !last && (dialect, place) == (Dialect::Netlify, Place::Redirects) {
        return Err("`*` must be the last segment of the path, as in `/news/*`".to_owned());
    }
    Ok(source)
}

/// Whether there can be paths as long as these segments are at least.
fn possible(segments: &[Segment]) -> Result<(), String> {
    let mut bytes = 0;
    for segment in segments {
        let (longest, all) = match segment {
            Segment::Literal(bytes) => (bytes.len(), bytes.len()),
            Segment::Name { prefix, suffix } => {
                let all = prefix.len() + suffix.len() + 1;
                (all, all)
            }
            Segment::Splat { prefix, suffix } => {
                (prefix.len().max(suffix.len()), prefix.len() + suffix.len())
            }
            Segment::Names { texts } => {
                let all = texts.iter().map(|text| text.len() + 1).sum::<usize>() - 1;
                (all, all)
            }
        };
        let max = limits::NAME_BYTES_MAX;
        if longest > max {
            return Err(format!("a segment of the path is too long: at most {max} bytes"));
        }
        bytes += all + 1;
    }
    let max = limits::SITE_PATH_BYTES_MAX;
    if bytes > max + 1 {
        return Err(format!("the path is too long: at most {max} bytes"));
    }
    Ok(())
}

/// A host in lower case, if there is one, and the path.
fn split_host<'t>(
    text: &'t str,
    (dialect, place): (Dialect, Place),
    names: &mut Vec<(String, bool)>,
) -> Result<(Option<String>, &'t str), String> {
    if text.starts_with('/') {
        if text.starts_with("//") {
            return Err(format!("{text:?} begins with two slashes; write https:// for a host"));
        }
        return Ok((None, text));
    }
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err(format!("{text:?} must begin with `/`, `https://` or `http://`"));
    };
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    if host.contains(':') && host.rsplit(':').next().is_some_and(|p| p.parse::<u16>().is_ok()) {
        return Err(format!("{text:?} names a port, which rules do not look at: leave it out"));
    }
    let placeholders = (dialect, place) == (Dialect::Pages, Place::Headers);
    if host.contains('*') || (host.contains(':') && !placeholders) {
        return Err(format!("{text:?}: a host cannot hold placeholders or `*`; name it in full"));
    }
    let host = host_pattern(host, names).map_err(|reason| format!("{text:?}: {reason}"))?;
    Ok((Some(host), path))
}

/// A host in lower case, in which a label may end with a placeholder.
fn host_pattern(host: &str, names: &mut Vec<(String, bool)>) -> Result<String, String> {
    let mut labels = Vec::new();
    for label in host.split('.') {
        let Some((prefix, name)) = label.split_once(':') else {
            labels.push(label.to_ascii_lowercase());
            continue;
        };
        if name_at(label, prefix.len() + 1) != Some(name) {
            let reason =
                "a placeholder of a host ends at a dot: a colon, then letters, digits and `_`";
            return Err(reason.to_owned());
        }
        add_name(name, false, names)?;
        labels.push(format!("{}:", prefix.to_ascii_lowercase()));
    }
    let pattern = labels.join(".");
    crate::publish::check_domain(&pattern.replace(':', "x"))?;
    Ok(pattern)
}

/// Notes the name of what is captured next.
fn add_name(name: &str, splat: bool, names: &mut Vec<(String, bool)>) -> Result<(), String> {
    if !splat && names.iter().any(|(other, _)| other == name) {
        return Err(format!("the placeholder :{name} stands there twice"));
    }
    if !splat && name == SPLAT {
        return Err(":splat is the name of what `*` stands for: choose another".to_owned());
    }
    names.push((name.to_owned(), splat));
    Ok(())
}

/// Reads one segment. In Netlify's dialect a placeholder is a whole segment, in `_redirects` also
/// `*`; in Pages' several placeholders may stand in one.
fn segment(
    part: &str,
    (dialect, place): (Dialect, Place),
    names: &mut Vec<(String, bool)>,
) -> Result<Segment, String> {
    let literal = |text: &str| {
        let bytes = template::decode(text.as_bytes());
        let bytes = bytes.ok_or_else(|| format!("{text:?} holds a malformed `%` escape"))?;
        if bytes.contains(&0) || (text == part && (bytes == b"." || bytes == b"..")) {
            return Err(format!("no request can have {text:?} in its path"));
        }
        Ok(bytes)
    };
    let whole = dialect == Dialect::Netlify;
    let mut found = Vec::new();
    let mut from = 0;
    while let Some((at, name)) = wildcard(part, from) {
        from = at + 1 + name.len();
        // Where placeholders are whole segments, a colon within one is a colon.
        if !whole || name.is_empty() || part.starts_with(':') {
            found.push((at, name));
        }
    }
    let names_only = found.iter().all(|(_, name)| !name.is_empty());
    if found.len() > 1 && (whole || !names_only) {
        let beside = if whole { "one a segment is" } else { "a `*` must be the only one" };
        return Err(format!("{part:?} holds several wildcards: {beside} allowed"));
    }
    if found.len() > limits::RULE_PLACES_MAX {
        let max = limits::RULE_PLACES_MAX;
        return Err(format!("{part:?} holds too many placeholders: at most {max}"));
    }
    let mut texts = Vec::new();
    let mut from = 0;
    for (at, name) in &found {
        texts.push(literal(&part[from..*at])?);
        from = at + 1 + name.len();
    }
    texts.push(literal(&part[from..])?);
    if whole && texts.iter().any(|text| !text.is_empty()) && !found.is_empty() {
        if place == Place::Redirects {
            return Err(format!(
                "{part:?}: a placeholder or `*` must be a whole segment of the path in Netlify's \
                 dialect of _redirects"
            ));
        }
        if names_only {
            return Err(format!(
                "{part:?}: a placeholder must be a whole segment of the path in Netlify's dialect; \
                 `*` may be a part of one"
            ));
        }
    }
    for (_, name) in &found {
        let splat = name.is_empty();
        add_name(if splat { SPLAT } else { name }, splat, names)?;
    }
    let mut texts = texts.into_iter();
    let (prefix, suffix) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
    Ok(match found.as_slice() {
        [] => Segment::Literal(prefix),
        [(_, "")] => Segment::Splat { prefix, suffix },
        [_] => Segment::Name { prefix, suffix },
        _ => Segment::Names { texts: [prefix, suffix].into_iter().chain(texts).collect() },
    })
}

/// The next `*` or `:name` from `from` on: where it is, and the name (empty for `*`).
fn wildcard(text: &str, from: usize) -> Option<(usize, &str)> {
    for (at, byte) in text.bytes().enumerate().skip(from) {
        match byte {
            b'*' => return Some((at, "")),
            b':' => {
                if let Some(name) = name_at(text, at + 1) {
                    return Some((at, name));
                }
            }
            _ => {}
        }
    }
    None
}

/// The placeholder's name that begins here.
fn name_at(text: &str, at: usize) -> Option<&str> {
    let rest = &text[at..];
    let len = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
    rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_').then(|| &rest[..len])
}

/// A template: text in which `:name` stands for what was captured. A name that is not among `names`
/// is text.
///
/// # Errors
/// When that name is `splat`, unless `lax`.
pub(super) fn template(
    text: &str,
    names: &[(String, bool)],
    lax: bool,
) -> Result<Template, String> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let name = rest.strip_prefix(':').and_then(|_| name_at(text, at + 1));
        let place = name.and_then(|name| names.iter().position(|(own, _)| own == name));
        match (name, place) {
            (Some(name), Some(place)) => {
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                let number = u8::try_from(place).map_err(|_| "too many placeholders".to_owned())?;
                parts.push(Part::Captured { place: number, splat: names[place].1 });
                at += 1 + name.len();
            }
            (Some(SPLAT), None) if !lax => {
                return Err(format!(
                    "the rule captures nothing for :{SPLAT}: its path has no `*`; write %3A for a \
                     colon that is meant"
                ));
            }
            _ => {
                let c = rest.chars().next().unwrap_or_default();
                plain.push(c);
                at += c.len_utf8();
            }
        }
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    let template = Template(parts);
    if !template.is_sound() {
        let max = limits::RULE_PLACES_MAX;
        return Err(format!("placeholders are used more often than {max} times"));
    }
    Ok(template)
}
