//! Just enough of Rust's and Markdown's grammar for the tidy rules: comments and literals, items
//! under `#[cfg(test)]`, links, code spans, headings. Not a parser: it never reports an error.

use std::collections::BTreeSet;

// ---- Rust text -----------------------------------------------------------------------------------

/// The source with comments and the inside of literals blanked; lines stay where they are.
pub(crate) fn code_only(source: &str) -> String {
    let text: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < text.len() {
        let end = match text[at] {
            '/' if text.get(at + 1) == Some(&'/') => end_of_line(&text, at),
            '/' if text.get(at + 1) == Some(&'*') => end_of_block(&text, at),
            '"' => end_of_string(&text, at),
            '\'' => end_of_char(&text, at),
            'r' if !follows_word(&text, at) => end_of_raw_string(&text, at).unwrap_or(at),
            'b' if !follows_word(&text, at) && text.get(at + 1) == Some(&'r') => {
                end_of_raw_string(&text, at + 1).unwrap_or(at)
            }
            _ => at,
        };
        if end > at {
            out.extend(text[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

pub(crate) fn follows_word(text: &[char], at: usize) -> bool {
    at > 0 && (is_word(text[at - 1]) && text[at - 1] != 'b')
}

pub(crate) fn end_of_line(text: &[char], at: usize) -> usize {
    text[at..].iter().position(|&c| c == '\n').map_or(text.len(), |n| at + n)
}

pub(crate) fn end_of_block(text: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i + 1 < text.len() {
        match (text[i], text[i + 1]) {
            ('/', '*') => {
                depth += 1;
                i += 2;
            }
            ('*', '/') => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    text.len()
}

pub(crate) fn end_of_string(text: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < text.len() {
        match text[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    text.len()
}

/// The end of a character literal; `at` itself where the quote starts a lifetime.
pub(crate) fn end_of_char(text: &[char], at: usize) -> usize {
    if text.get(at + 1) == Some(&'\\') {
        let from = at + 3;
        return text.iter().skip(from).position(|&c| c == '\'').map_or(at, |n| from + n + 1);
    }
    if text.get(at + 2) == Some(&'\'') { at + 3 } else { at }
}

pub(crate) fn end_of_raw_string(text: &[char], at: usize) -> Option<usize> {
    let hashes = text[at + 1..].iter().take_while(|&&c| c == '#').count();
    if text.get(at + 1 + hashes) != Some(&'"') {
        return None;
    }
    let mut i = at + 2 + hashes;
    while i < text.len() {
        let closes = text[i] == '"'
            && text.len() > i + hashes
            && text[i + 1..=i + hashes].iter().all(|&c| c == '#');
        if closes {
            return Some(i + 1 + hashes);
        }
        i += 1;
    }
    Some(text.len())
}

/// Code (from [`code_only`]) with the items under `#[cfg(test)]` blanked.
pub(crate) fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..start]);
        let end = start + end_of_item(&rest[start..]);
        out.extend(rest[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// Where the item ends that `text` starts with: at its closing brace, or at a semicolon before one.
pub(crate) fn end_of_item(text: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Whether `mark` stands in the line as the start of a path, not as a part of a longer one.
pub(crate) fn has_path(line: &str, mark: &str) -> bool {
    line.match_indices(mark).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| is_word(c) || c == ':')
    })
}

pub(crate) fn has_call(line: &str, call: &str) -> bool {
    let starts_with_word = call.starts_with(is_word);
    line.match_indices(call)
        .any(|(at, _)| !starts_with_word || !line[..at].chars().next_back().is_some_and(is_word))
}

pub(crate) fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

pub(crate) fn defines(code: &str, function: &str) -> bool {
    has_word(code, &format!("fn {function}"))
}

// ---- Markdown ------------------------------------------------------------------------------------

/// Lines outside fenced blocks, with their numbers.
pub(crate) fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then_some((number + 1, line))
    })
}

/// Targets of `[text](target)`, with the number of their line.
pub(crate) fn markdown_links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        // Every second part lies between backticks.
        let visible: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        let mut rest = visible.as_str();
        while let Some(start) = rest.find("](") {
            rest = &rest[start + 2..];
            let Some(end) = rest.find(')') else { break };
            links.push((number, rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    links
}

/// What stands between backticks, with the number of its line.
pub(crate) fn code_spans(text: &str) -> Vec<(usize, String)> {
    prose(text)
        .flat_map(|(number, line)| {
            let spans: Vec<_> =
                line.split('`').skip(1).step_by(2).map(|word| (number, word.to_owned())).collect();
            spans
        })
        .collect()
}

/// Anchors of a document's headings, made as the usual renderers make them.
pub(crate) fn headings(text: &str) -> BTreeSet<String> {
    prose(text)
        .filter(|(_, line)| line.starts_with('#'))
        .map(|(_, line)| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|&c| c.is_alphanumeric() || c == ' ' || c == '-' || c == '_')
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn text_is_understood() {
    let source = r##"
/// docs say x.unwrap()
fn life<'a>(s: &'a str) -> char { let _ = "todo!(\"x\")"; let _ = r#"dbg!("#; '"' } // dbg!(
/* a /* nested */ x.unwrap() */ fn kept() { y.unwrap() }
#[cfg(test)]
mod tests { fn t() { "}"; z.unwrap() } }
fn after() {}
"##;
    let code = code_only(source);
    assert_eq!(code.lines().count(), source.lines().count(), "line numbers are kept");
    assert!(!code.contains("todo!") && !code.contains("dbg!"), "{code}");
    assert_eq!(code.matches(".unwrap()").count(), 2, "{code}");
    let code = without_tests(&code);
    assert_eq!(code.matches(".unwrap()").count(), 1, "{code}");
    assert!(code.contains("fn after") && code.contains("fn kept"), "{code}");
    assert_eq!(code.lines().count(), source.lines().count(), "line numbers are kept");

    assert!(has_path("use quinn::Endpoint;", "quinn::"));
    assert!(!has_path("use h3_quinn::Connection;", "quinn::"));
    assert!(!has_path("use super::quinn::Connection;", "quinn::"));
    assert!(has_call("    print!(\"x\")", "print!("));
    assert!(!has_call("    eprint!(\"x\")", "print!("));
    assert!(has_call("let x = a.unwrap();", ".unwrap()"));
    assert!(defines("pub async fn read_chunk<T>(", "read_chunk"));
    assert!(!defines("fn read_chunk_at(", "read_chunk"));
    assert!(headings("# A site, online: now\n").contains("a-site-online-now"));
    assert_eq!(
        markdown_links("see [a](b.md#c)\n```\n[x](y)\n```\n`[x](y)`"),
        [(1, "b.md#c".to_owned())]
    );
    assert_eq!(code_spans("a `b/c.rs::d` e"), [(1, "b/c.rs::d".to_owned())]);
}
