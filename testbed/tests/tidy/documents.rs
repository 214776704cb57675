//! Documents must stay true: links lead somewhere, files and functions they name exist.
//! Part of the tidy test; it reads the Markdown files and does not judge their words.

use std::path::Path;

use crate::LAYERS;
use crate::report::Report;
use crate::text::{code_only, code_spans, defines, headings, markdown_links};
use crate::tree::{documents, normalized, root, tree};

#[test]
fn links_in_documents_resolve() {
    let mut report = Report::new("a link that leads nowhere", "correct the path or the heading");
    for (path, text) in documents() {
        for (number, target) in markdown_links(&text) {
            let place = format!("{path}:{number}");
            let outside = target.contains("://") || target.starts_with("mailto:");
            if outside {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let full = if file.is_empty() {
                path.clone()
            } else {
                let folder = Path::new(&path).parent().unwrap_or(Path::new(""));
                normalized(&folder.join(file))
            };
            if !root().join(&full).exists() {
                report.add(&place, &target);
            } else if !anchor.is_empty() && full.ends_with(".md") {
                let text = std::fs::read_to_string(root().join(&full)).unwrap();
                if !headings(&text).contains(anchor) {
                    report.add(&place, &format!("{target}: no such heading"));
                }
            }
        }
    }
    report.finish();
}

#[test]
fn functions_named_in_documents_exist() {
    let mut report = Report::new(
        "`path/file.rs::function` in a document must exist",
        "follow the function to where it went, and check that the text around it is still true",
    );
    for (path, text) in documents() {
        let mut references = 0;
        for (number, word) in code_spans(&text) {
            let Some((file, function)) = word.split_once(".rs::") else {
                continue;
            };
            references += 1;
            let file = format!("{file}.rs");
            let name = function.rsplit("::").next().unwrap_or(function);
            let name = name.trim_end_matches("()");
            let place = format!("{path}:{number}");
            match std::fs::read_to_string(root().join(&file)) {
                Err(_) => report.add(&place, &format!("{word}: no file {file}")),
                Ok(source) if !defines(&code_only(&source), name) => {
                    report.add(&place, &format!("{word}: no fn {name} in {file}"));
                }
                Ok(_) => {}
            }
        }
        if path.starts_with("docs/LIFE_OF_") && references < 5 {
            report.add(&path, "a life without functions: name each hop as `file.rs::function`");
        }
    }
    report.finish();
}

#[test]
fn files_named_in_documents_exist() {
    let mut report = Report::new(
        "`member/path` in a document must exist",
        "follow the file to where it went, and check that the text around it is still true",
    );
    let tree = tree();
    for (path, text) in documents().filter(|(path, _)| !path.starts_with("CHANGELOG")) {
        for (number, word) in code_spans(&text) {
            let first = word.split('/').next().unwrap_or_default();
            let member = LAYERS.iter().any(|(folder, _)| *folder == first)
                || ["docs", "scripts", "demo"].contains(&first);
            let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if !member || !plain || !word.contains('/') {
                continue;
            }
            let folder = format!("{}/", word.trim_end_matches('/'));
            if !tree.iter().any(|file| *file == word || file.starts_with(&folder)) {
                report.add(&format!("{path}:{number}"), &word);
            }
        }
    }
    report.finish();
}
