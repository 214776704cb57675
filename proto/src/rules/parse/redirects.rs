//! One line of `_redirects`: `from [parameter=value]… to [status[!]]`.

use super::source::{Source, source, template};
use crate::rules::template::{Part, Template, decode, encode};
use crate::rules::{Redirect, Wanted};
use crate::site::Dialect;

/// Most parameters of the query that a rule may look at.
const PARAMETERS_MAX: usize = 16;

/// Reads a line; `None` for an empty one and a comment.
pub(super) fn line(text: &str, line: u32, dialect: Dialect) -> Result<Option<Redirect>, String> {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    match dialect {
        Dialect::Netlify => {
            let comment = words.iter().position(|word| word.starts_with('#'));
            words.truncate(comment.unwrap_or(words.len()));
        }
        Dialect::Pages if words.first().is_some_and(|word| word.starts_with('#')) => words.clear(),
        Dialect::Pages => {}
    }
    let mut words = words.into_iter().peekable();
    let Some(from) = words.next() else { return Ok(None) };
    let Source { pattern, mut names } = source(from, dialect)?;
    let mut query = Vec::new();
    if dialect == Dialect::Netlify {
        while let Some(word) = words.next_if(|word| !is_target(word) && word.contains('=')) {
            query.push(parameter(word, &mut names)?);
        }
        if query.len() > PARAMETERS_MAX {
            return Err(format!("too many parameters: at most {PARAMETERS_MAX}"));
        }
    }
    let Some(to) = words.next() else {
        return Err("the target is missing: write `from to`".to_owned());
    };
    let (status, force) = status(words.next(), dialect)?;
    for word in words {
        condition(word, dialect)?;
    }
    let target = target(to, &names)?;
    let host = pattern.host.as_deref();
    if !matches!(status, 301..=308) && !stays(to) {
        return Err(same_site_only(to, status, host));
    }
    Ok(Some(Redirect { line, source: pattern, query, target, status, force }))
}

fn is_target(word: &str) -> bool {
    word.starts_with('/') || word.starts_with("http://") || word.starts_with("https://")
}

fn stays(to: &str) -> bool {
    to.starts_with('/')
}

fn same_site_only(to: &str, status: u16, host: Option<&str>) -> String {
    let own = host.map(|host| format!(" of {host}")).unwrap_or_default();
    format!(
        "{to:?} is another host, and status {status} answers with a file of this site{own}: \
         proxying is not supported; redirect with 301, 302, 303, 307 or 308"
    )
}

/// `name=value`, `name=:placeholder`.
fn parameter(word: &str, names: &mut Vec<(String, bool)>) -> Result<(String, Wanted), String> {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    if let Some(what) = conditional(name) {
        return Err(format!("{word:?} stands before the target. {}", refused(what)));
    }
    let plain = |text: &str| {
        let bytes = decode(text.as_bytes());
        bytes.and_then(|bytes| String::from_utf8(bytes).ok())
    };
    let malformed = || format!("{word:?} holds a malformed `%` escape");
    let own = plain(name).ok_or_else(malformed)?;
    if own.is_empty() {
        return Err(format!("{word:?} names no parameter"));
    }
    let Some(placeholder) = value.strip_prefix(':') else {
        return Ok((own, Wanted::Exactly(plain(value).ok_or_else(malformed)?)));
    };
    let fine = placeholder.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && placeholder.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !fine {
        return Err(format!("{word:?}: a placeholder is a colon, then letters, digits and `_`"));
    }
    if names.iter().any(|(other, _)| other == placeholder) || placeholder == "splat" {
        return Err(format!("the placeholder :{placeholder} stands there twice"));
    }
    names.push((placeholder.to_owned(), false));
    Ok((own, Wanted::Any))
}

fn status(word: Option<&str>, dialect: Dialect) -> Result<(u16, bool), String> {
    let Some(word) = word else {
        return Ok((if dialect == Dialect::Netlify { 301 } else { 302 }, false));
    };
    let (digits, force) = match word.strip_suffix('!') {
        Some(digits) => (digits, true),
        None => (word, false),
    };
    if force && dialect == Dialect::Pages {
        return Err(format!(
            "{word:?}: Pages' dialect has no `!`, because its redirects always come before files"
        ));
    }
    if let Some(what) = word.split_once('=').and_then(|(name, _)| conditional(name)) {
        return Err(refused(what));
    }
    let known: &[u16] = match dialect {
        Dialect::Netlify => &[200, 301, 302, 303, 307, 308, 404, 410, 451],
        Dialect::Pages => &[200, 301, 302, 303, 307, 308],
    };
    match digits.parse::<u16>() {
        Ok(status) if digits.len() == 3 && known.contains(&status) => Ok((status, force)),
        _ => {
            let known: Vec<String> = known.iter().map(u16::to_string).collect();
            Err(format!("{word:?} is no status of a rule: one of {}", known.join(", ")))
        }
    }
}

/// The canonical name of a condition on the visitor.
fn conditional(name: &str) -> Option<&'static str> {
    ["Country", "Language", "Role", "Cookie"].into_iter().find(|own| own.eq_ignore_ascii_case(name))
}

fn refused(what: &str) -> String {
    format!(
        "{what}= cannot be honoured: the answer to a URL would depend on who asks, and caches \
         between here and the visitor would mix answers up; decide that in the page, or give each \
         its own path"
    )
}

fn condition(word: &str, dialect: Dialect) -> Result<(), String> {
    match word.split_once('=').and_then(|(name, _)| conditional(name)) {
        Some(what) if dialect == Dialect::Netlify => Err(refused(what)),
        _ => Err(format!("{word:?} is not understood here: the line should have ended before it")),
    }
}

fn target(to: &str, names: &[(String, bool)]) -> Result<Template, String> {
    if !is_target(to) {
        return Err(format!("the target {to:?} must begin with `/`, `https://` or `http://`"));
    }
    if to.starts_with("//") {
        return Err(format!("{to:?} begins with two slashes; write https:// for another host"));
    }
    if let Some(rest) = to.split_once("://").map(|(_, rest)| rest).filter(|_| !stays(to)) {
        let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let name = host.split(':').next().unwrap_or(host);
        let port = host.split_once(':').map(|(_, port)| port);
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(format!("{to:?}: a host cannot hold placeholders; name it in full"));
        }
        crate::publish::check_domain(&name.to_ascii_lowercase())
            .map_err(|error| format!("{to:?}: {error}"))?;
    }
    let mut template = match to.split_once("://") {
        // The colon of a port is none of a placeholder.
        Some((scheme, rest)) if !stays(to) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let mut template = template(&rest[end..], names, false)?;
            template.0.insert(0, Part::Text(format!("{scheme}://{}", &rest[..end])));
            template
        }
        _ => template(to, names, false)?,
    };
    for part in &mut template.0 {
        if let Part::Text(text) = part {
            *text = escaped(text).ok_or_else(|| format!("{to:?} holds a malformed `%` escape"))?;
        }
    }
    Ok(template)
}

/// Text of a URL with what may not stand in one escaped; escapes that are there stay.
fn escaped(text: &str) -> Option<String> {
    decode(text.as_bytes())?;
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_graphic() && !b"\"<>[\\]^`{|}".contains(&byte);
        if plain { url.push(char::from(byte)) } else { encode(&[byte], false, &mut url) }
    }
    Some(url)
}
