//! Clean URLs: the published table of the four modes, and what it leaves open.

use super::*;

/// What a request is answered with: the file, `-> URL`, or nothing.
fn answer(mode: HtmlHandling, files: &[&str], url: &str) -> String {
    let path = url.strip_prefix('/').unwrap_or(url);
    let directory = path.ends_with('/') || path.is_empty();
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut exists = |file: &[u8]| Ok::<_, ()>(files.iter().any(|own| own.as_bytes() == file));
    match resolve(mode, path.as_bytes(), directory, &mut exists) {
        Ok(Some(Resolved::File(file))) => String::from_utf8_lossy(&file).into_owned(),
        Ok(Some(Resolved::Moved { path, directory })) => {
            let slash = if directory && !path.is_empty() { "/" } else { "" };
            format!("-> /{}{slash}", String::from_utf8_lossy(&path))
        }
        Ok(None) => "404".to_owned(),
        Err(()) => "error".to_owned(),
    }
}

/// A request, and what it is answered with in the modes auto, force, drop and none.
type Row = (&'static str, [&'static str; 4]);

/// The files of a site, and rows about it.
const TABLE: &[(&[&str], &[Row])] = &[
    // The published table. Where it says that /folder/index leads to /folder, from where the next
    // redirect leads to /folder/, the one redirect here leads to the end at once.
    (
        &["index.html", "file.html", "folder/index.html"],
        &[
            ("/file", ["file.html", "-> /file/", "file.html", "404"]),
            ("/file.html", ["-> /file", "-> /file/", "-> /file", "file.html"]),
            ("/file/", ["-> /file", "file.html", "-> /file", "404"]),
            ("/file/index", ["-> /file", "-> /file/", "-> /file", "404"]),
            ("/file/index.html", ["-> /file", "-> /file/", "-> /file", "404"]),
            ("/folder", ["-> /folder/", "-> /folder/", "folder/index.html", "404"]),
            ("/folder.html", ["-> /folder/", "-> /folder/", "-> /folder", "404"]),
            ("/folder/", ["folder/index.html", "folder/index.html", "-> /folder", "404"]),
            ("/folder/index", ["-> /folder/", "-> /folder/", "-> /folder", "404"]),
            (
                "/folder/index.html",
                ["-> /folder/", "-> /folder/", "-> /folder", "folder/index.html"],
            ),
            ("/", ["index.html", "index.html", "index.html", "404"]),
            ("/index", ["-> /", "-> /", "-> /", "404"]),
            ("/index.html", ["-> /", "-> /", "-> /", "index.html"]),
            ("/index/", ["-> /", "-> /", "-> /", "404"]),
            ("/other", ["404", "404", "404", "404"]),
            ("/other/", ["404", "404", "404", "404"]),
        ],
    ),
    // A page and a directory of one name: each mode reaches both.
    (
        &["both.html", "both/index.html"],
        &[
            ("/both", ["both.html", "-> /both/", "both.html", "404"]),
            ("/both/", ["both/index.html", "both/index.html", "-> /both", "404"]),
            ("/both.html", ["-> /both", "both.html", "-> /both", "both.html"]),
            ("/both/index.html", ["-> /both/", "-> /both/", "both/index.html", "both/index.html"]),
        ],
    ),
    // A file without extension hides the page of the same name, which keeps its own URL.
    (
        &["bin", "bin.html", "x/index", "x/index.html"],
        &[
            ("/bin", ["bin", "bin", "bin", "bin"]),
            ("/bin.html", ["bin.html", "-> /bin/", "bin.html", "bin.html"]),
            ("/x/index", ["x/index", "x/index", "x/index", "x/index"]),
            ("/x/", ["x/index.html", "x/index.html", "-> /x", "404"]),
        ],
    ),
    // Other files have one URL.
    (
        &["a.css", "d/b.js", "_.html"],
        &[
            ("/a.css", ["a.css", "a.css", "a.css", "a.css"]),
            ("/a.css/", ["404", "404", "404", "404"]),
            ("/d/b.js", ["d/b.js", "d/b.js", "d/b.js", "d/b.js"]),
            ("/d", ["404", "404", "404", "404"]),
            ("/d/", ["404", "404", "404", "404"]),
            ("/_", ["_.html", "-> /_/", "_.html", "404"]),
        ],
    ),
];

#[test]
fn pages_have_the_urls_of_the_table_in_all_four_modes() {
    let modes = [AutoTrailingSlash, ForceTrailingSlash, DropTrailingSlash, HtmlHandling::None];
    for (files, rows) in TABLE {
        for (url, expected) in *rows {
            for (mode, expected) in modes.iter().zip(expected) {
                assert_eq!(&answer(*mode, files, url), expected, "{url} of {files:?} in {mode}");
            }
        }
    }
}

#[test]
fn redirects_never_lead_in_circles() {
    let names = ["a", "a.html", "a/index.html", "a/index", "index.html", "a/b.html", "a/b"];
    let urls = ["/", "/a", "/a/", "/a.html", "/a/index", "/a/index.html", "/index", "/a/b/"];
    for chosen in 0_u32..1 << names.len() {
        let files: Vec<&str> = (names.iter().enumerate())
            .filter(|(at, _)| chosen & (1 << at) != 0)
            .map(|(_, name)| *name)
            .collect();
        let last = [HtmlHandling::None, Lenient];
        for mode in [AutoTrailingSlash, ForceTrailingSlash, DropTrailingSlash].iter().chain(&last) {
            let mode = *mode;
            for url in urls {
                if let Some(next) = answer(mode, &files, url).strip_prefix("-> ") {
                    let end = answer(mode, &files, next);
                    assert!(!end.starts_with("->") && end != "404", "{url} {files:?} {mode}");
                }
            }
        }
    }
}

#[test]
fn lenient_serves_files_under_their_own_names_and_clean_urls_besides() {
    let files = ["index.html", "file.html", "folder/index.html", "both.html", "both/index.html"];
    for (url, expected) in [
        ("/", "index.html"),
        ("/index.html", "index.html"),
        ("/index", "index.html"),
        ("/file.html", "file.html"),
        ("/file", "file.html"),
        ("/file/", "404"),
        ("/folder", "-> /folder/"),
        ("/folder/", "folder/index.html"),
        ("/folder/index", "folder/index.html"),
        ("/folder/index.html", "folder/index.html"),
        ("/folder.html", "404"),
        ("/both", "-> /both/"),
        ("/both/", "both/index.html"),
        ("/both.html", "both.html"),
        ("/other", "404"),
    ] {
        assert_eq!(answer(Lenient, &files, url), expected, "{url}");
    }
    let files = ["bin", "bin.html"];
    for (url, expected) in [("/bin", "bin"), ("/bin.html", "bin.html"), ("/bin/", "404")] {
        assert_eq!(answer(Lenient, &files, url), expected, "{url}");
    }
}
