//! One line of `_redirects`: `from [parameter=value]… to [status[!]] [condition=value]…`.

use super::source::{Place, Source, source, template};
use crate::limits;
use crate::rules::template::{Part, Template, Within, decode, encode};
use crate::rules::{Redirect, Wanted};
use crate::site::{Dialect, HtmlHandling};

/// Reads a line; `None` for an empty one and a comment.
pub(super) fn line(
    text: &str,
    line: u32,
    dialect: Dialect,
    html: HtmlHandling,
) -> Result<Option<Redirect>, String> {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    // In Pages' dialect the second word is a target, whatever it begins with.
    let comment = words.iter().enumerate().position(|(number, word)| {
        word.starts_with('#') && (dialect == Dialect::Netlify || number != 1)
    });
    words.truncate(comment.unwrap_or(words.len()));
    let mut words = words.into_iter().peekable();
    let Some(from) = words.next() else { return Ok(None) };
    let Source { pattern, mut names } = source(from, dialect, Place::Redirects)?;
    let mut query = Vec::new();
    if dialect == Dialect::Netlify {
        while let Some(word) = words.next_if(|word| !is_target(word) && word.contains('=')) {
            query.push(parameter(word, &mut names)?);
        }
        let max = limits::RULE_WANTED_MAX;
        if query.len() > max {
            return Err(format!("too many parameters: at most {max}"));
        }
    }
    let own = words.peek().and_then(|word| forward(from, word));
    let own = own.filter(|_| dialect == Dialect::Netlify && query.is_empty());
    let Some(to) = own.as_deref().or_else(|| words.next()) else {
        return Err("the target is missing: write `from to`".to_owned());
    };
    let (status, force) = status(words.next_if(|word| !word.contains('=')), dialect)?;
    let mut conditions = Conditions::default();
    for word in words {
        conditions.add(word, dialect)?;
    }
    let target = target(to, &names)?;
    if dialect == Dialect::Pages && circles(from, to, html) {
        return Err(format!(
            "{to:?} would be redirected back to where this rule holds, for ever, and Pages leaves \
             such a rule out: remove it; `--spa` answers every navigation with /index.html"
        ));
    }
    let host = pattern.host.as_deref();
    if !matches!(status, 301..=308) && !stays(to) {
        return Err(same_site_only(to, status, host));
    }
    let Conditions { languages, cookies } = conditions;
    let source = pattern;
    Ok(Some(Redirect { line, source, query, target, status, force, languages, cookies }))
}

/// The target of `/admin/* 200`, which says that files answer there, with what else the line says:
/// the path itself.
fn forward(from: &str, word: &str) -> Option<String> {
    if word.strip_suffix('!').unwrap_or(word) != "200" {
        return None;
    }
    let path = match from.split_once("://") {
        Some((_, rest)) => &rest[rest.find('/')?..],
        None => from,
    };
    path.strip_suffix("/*").map(|path| format!("{path}/:splat"))
}

fn is_target(word: &str) -> bool {
    word.starts_with('/') || word.starts_with("http://") || word.starts_with("https://")
}

/// Whether a rule of Pages leads to a page whose canonical URL is that of the rule. Under `/*` that is
/// so in every mode, because rules come before files; for a directory alone in those that redirect.
fn circles(from: &str, to: &str, html: HtmlHandling) -> bool {
    let redirects = !matches!(html, HtmlHandling::None | HtmlHandling::Lenient);
    let source = from.split(['?', '#']).next().unwrap_or(from);
    stays(to)
        && (to.ends_with("/index") || to.ends_with("/index.html"))
        && (source.ends_with("/*") || (redirects && source.ends_with('/')))
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
        return Err(format!("{what}= stands before the target: write it at the end of the line"));
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
    let known = match dialect {
        Dialect::Netlify => &super::STATUSES[..],
        Dialect::Pages => &super::STATUSES[..6],
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

/// What a rule wants of who asks.
#[derive(Default)]
struct Conditions {
    languages: Vec<String>,
    cookies: Vec<String>,
}

impl Conditions {
    fn add(&mut self, word: &str, dialect: Dialect) -> Result<(), String> {
        let condition = word.split_once('=').filter(|_| dialect == Dialect::Netlify);
        let condition = condition.and_then(|(name, values)| Some((conditional(name)?, values)));
        let Some((what, values)) = condition else {
            return Err(format!(
                "{word:?} is not understood here: the line should have ended before it"
            ));
        };
        let (list, fits): (_, fn(u8) -> bool) = match what {
            "Language" => (&mut self.languages, |b| b.is_ascii_alphanumeric() || b == b'-'),
            "Cookie" => (&mut self.cookies, |b| {
                b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b)
            }),
            _ => return Err(refused(what)),
        };
        if !list.is_empty() {
            return Err(format!("{what}= stands there twice: separate values by commas"));
        }
        for value in values.split(',') {
            if value.is_empty() || !value.bytes().all(fits) {
                return Err(format!("{word:?}: {value:?} cannot be a value of {what}="));
            }
            let lower = what == "Language";
            list.push(if lower { value.to_ascii_lowercase() } else { value.to_owned() });
        }
        let max = limits::RULE_CONDITIONS_MAX;
        if list.len() > max {
            return Err(format!("{what}= has too many values: at most {max}"));
        }
        Ok(())
    }
}

fn refused(what: &str) -> String {
    let instead = match what {
        "Country" => "edges do not know where visitors are: decide by Language=, or in the page",
        _ => "edges do not know who is signed in: decide that in the page, or by Cookie=",
    };
    format!("{what}= cannot be honoured: {instead}")
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
    if !template.is_sound() {
        return Err("the target is too long".to_owned());
    }
    Ok(template)
}

/// Text of a URL with what may not stand in one escaped; escapes that are there stay.
fn escaped(text: &str) -> Option<String> {
    decode(text.as_bytes())?;
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_graphic() && !b"\"<>[\\]^`{|}".contains(&byte);
        if plain { url.push(char::from(byte)) } else { encode(&[byte], Within::Query, &mut url) }
    }
    Some(url)
}
