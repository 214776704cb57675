//! The blocks of `_headers`: a path, then lines of `Name: value`.

use super::source::{Place, Source, source, template};
use super::{Faults, Room};
use crate::limits;
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

/// The blocks so far.
pub(super) struct Blocks {
    dialect: Dialect,
    rules: Vec<HeaderRule>,
    room: Room,
    /// What the path of the last one captures.
    names: Vec<(String, bool)>,
    state: State,
    /// Whether something is wrong since the last path.
    wrong: bool,
}

/// Whether headers have a block to belong to; in one whose path is wrong they are passed over.
enum State {
    Outside,
    Inside,
    Wrong,
}

impl Blocks {
    pub(super) fn new(dialect: Dialect) -> Self {
        let (rules, names, room) = (Vec::new(), Vec::new(), Room::default());
        Self { dialect, rules, room, names, state: State::Outside, wrong: false }
    }

    /// Reads a line; `false` when there are too many to go on.
    pub(super) fn line(&mut self, number: u32, text: &str, faults: &mut Faults) -> bool {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            return true;
        }
        if !is_path(text) {
            let added = match (&self.state, self.rules.last_mut()) {
                (State::Inside, Some(rule)) => {
                    change(text, &self.names, self.dialect, &mut rule.changes)
                }
                (State::Wrong, _) => change(text, &self.names, self.dialect, &mut Vec::new()),
                _ => Err("a header before any path: write the path on a line above".to_owned()),
            };
            if let Err(reason) = added {
                self.wrong = true;
                faults.add(HEADERS_FILE, number, reason);
            }
            return true;
        }
        self.end(faults);
        match path(text, self.dialect) {
            Ok(source) => {
                if let Err(reason) = self.room.take(&source.pattern) {
                    faults.add_over(HEADERS_FILE, number, reason);
                    return false;
                }
                (self.names, self.state) = (source.names, State::Inside);
                let source = source.pattern;
                self.rules.push(HeaderRule { line: number, source, changes: Vec::new() });
            }
            Err(reason) => {
                self.state = State::Wrong;
                faults.add(HEADERS_FILE, number, reason);
            }
        }
        true
    }

    /// The end of the file.
    pub(super) fn finish(mut self, faults: &mut Faults) -> Vec<HeaderRule> {
        self.end(faults);
        self.rules
    }

    /// The end of a block. One without headers is an error, unless those it has are wrong.
    fn end(&mut self, faults: &mut Faults) {
        let empty = self.rules.last().filter(|rule| rule.changes.is_empty());
        if let (State::Inside, Some(rule), false) = (&self.state, empty, self.wrong) {
            let reason = "a path without any header below it".to_owned();
            faults.add(HEADERS_FILE, rule.line, reason);
        }
        self.wrong = false;
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') || text.starts_with("https://") || text.starts_with("http://")
}

fn path(text: &str, dialect: Dialect) -> Result<Source, String> {
    if text.contains(char::is_whitespace) {
        return Err(format!("{text:?} is not a path: it holds a space; write %20"));
    }
    source(text, dialect, Place::Headers)
}

fn change(
    text: &str,
    names: &[(String, bool)],
    dialect: Dialect,
    changes: &mut Vec<HeaderChange>,
) -> Result<(), String> {
    if changes.len() == limits::RULE_CHANGES_MAX {
        let max = limits::RULE_CHANGES_MAX;
        return Err(format!("too many headers for one path: at most {max}"));
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
            let max = limits::LOCATION_BYTES_MAX;
            if before.text_bytes() + value.text_bytes() + 2 > max {
                return Err(format!("the value of {name} is too long: at most {max} bytes"));
            }
            before.push(Part::Text(", ".to_owned()));
            for part in value.0 {
                before.push(part);
            }
            if !before.is_sound() {
                return Err(format!("placeholders are used too often in the values of {name}"));
            }
        }
        None => changes.push(HeaderChange::Set { name, value }),
    }
    Ok(())
}

/// The name in lower case, if a rule may set it.
pub(super) fn header_name(name: &str) -> Result<String, String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("{name:?} is not the name of a header"));
    }
    let name = name.to_ascii_lowercase();
    if name == "set-cookie" {
        return Err("set-cookie cannot be set by a rule: answers are shared by caches".to_owned());
    }
    if name == "basic-auth" {
        let reason = "basic-auth would show the passwords to every visitor: sites cannot be \
                      protected by password";
        return Err(reason.to_owned());
    }
    if OWN.contains(&name.as_str()) {
        return Err(format!("{name} belongs to the server: a rule cannot change it"));
    }
    Ok(name)
}
