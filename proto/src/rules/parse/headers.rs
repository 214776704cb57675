//! The blocks of `_headers`: a path, then lines of `Name: value`.

use super::Faults;
use super::source::{Source, source, template};
use crate::rules::template::{Part, Template};
use crate::rules::{HEADERS_FILE, HeaderChange, HeaderRule};
use crate::site::Dialect;

/// Headers that say how an answer travels, or which answer it is.
const OWN: &[&str] = &[
    "accept-ranges",
    "age",
    "allow",
    "alt-svc",
    "atoll-deploy",
    "cache-status",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "date",
    "etag",
    "keep-alive",
    "last-modified",
    "location",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "server",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Most headers of one block.
const CHANGES_MAX: usize = 100;

/// Reads all blocks; what is wrong is added to `faults`.
pub(super) fn blocks(
    lines: &[(u32, &str)],
    dialect: Dialect,
    faults: &mut Faults,
) -> Vec<HeaderRule> {
    let mut rules: Vec<HeaderRule> = Vec::new();
    let mut names = Vec::new();
    // Whether headers have a block to belong to; in one whose path is wrong they are passed over.
    let mut state = State::Outside;
    for (number, text) in lines {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if is_path(text) {
            empty_block(&rules, &state, faults);
            match path(text, dialect) {
                Ok(source) => {
                    names = source.names;
                    state = State::Inside;
                    let source = source.pattern;
                    rules.push(HeaderRule { line: *number, source, changes: Vec::new() });
                }
                Err(reason) => {
                    state = State::Wrong;
                    faults.add(HEADERS_FILE, *number, reason);
                }
            }
            continue;
        }
        let added = match (&state, rules.last_mut()) {
            (State::Inside, Some(rule)) => change(text, &names, dialect, &mut rule.changes),
            (State::Wrong, _) => change(text, &names, dialect, &mut Vec::new()),
            _ => Err("a header before any path: write the path on a line above".to_owned()),
        };
        if let Err(reason) = added {
            faults.add(HEADERS_FILE, *number, reason);
        }
    }
    empty_block(&rules, &state, faults);
    rules
}

enum State {
    Outside,
    Inside,
    Wrong,
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') || text.starts_with("https://") || text.starts_with("http://")
}

fn empty_block(rules: &[HeaderRule], state: &State, faults: &mut Faults) {
    let known = |line| faults.told.iter().any(|f| f.file == HEADERS_FILE && f.line >= line);
    match (state, rules.last()) {
        // Where a header is wrong, that is the error.
        (State::Inside, Some(rule)) if rule.changes.is_empty() && !known(rule.line) => {
            let reason = "a path without any header below it".to_owned();
            faults.add(HEADERS_FILE, rule.line, reason);
        }
        _ => {}
    }
}

fn path(text: &str, dialect: Dialect) -> Result<Source, String> {
    if text.contains(char::is_whitespace) {
        return Err(format!("{text:?} is not a path: it holds a space; write %20"));
    }
    source(text, dialect)
}

fn change(
    text: &str,
    names: &[(String, bool)],
    dialect: Dialect,
    changes: &mut Vec<HeaderChange>,
) -> Result<(), String> {
    if changes.len() == CHANGES_MAX {
        return Err(format!("too many headers for one path: at most {CHANGES_MAX}"));
    }
    if let Some(name) = text.strip_prefix('!') {
        if dialect == Dialect::Netlify {
            return Err(format!("{text:?}: Netlify's dialect cannot remove headers with `!`"));
        }
        let name = header_name(name.trim())?;
        changes.push(HeaderChange::Remove { name });
        return Ok(());
    }
    let Some((name, value)) = text.split_once(':') else {
        return Err(format!("{text:?} is neither a path nor `Name: value`"));
    };
    let name = header_name(name.trim_end())?;
    let value = value.trim();
    if value.is_empty() {
        return Err(format!("the header {name} has no value"));
    }
    if !value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
        return Err(format!("the value of {name} holds a character that is not ASCII"));
    }
    let value = match dialect {
        Dialect::Netlify => Template::text(value),
        Dialect::Pages => template(value, names, true)?,
    };
    // The same header again adds to its value.
    let same = changes.iter_mut().find_map(|change| match change {
        HeaderChange::Set { name: other, value } if *other == name => Some(value),
        _ => None,
    });
    match same {
        Some(before) => {
            before.0.push(Part::Text(", ".to_owned()));
            before.0.extend(value.0);
            if !before.is_sound() {
                return Err(format!("placeholders are used too often in the values of {name}"));
            }
        }
        None => changes.push(HeaderChange::Set { name, value }),
    }
    Ok(())
}

fn header_name(name: &str) -> Result<String, String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("{name:?} is not the name of a header"));
    }
    let name = name.to_ascii_lowercase();
    if name == "set-cookie" {
        return Err("set-cookie cannot be set by a rule: answers are shared by caches".to_owned());
    }
    if OWN.contains(&name.as_str()) {
        return Err(format!("{name} belongs to the server: a rule cannot change it"));
    }
    Ok(name)
}
