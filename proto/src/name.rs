//! Names people choose: sites, aliases, and file names, which are bytes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::limits;

/// The name in the root directory under which mounts show the deploys of sites. No file or
/// directory of the namespace can have it there.
pub const SITES_NAME: &[u8] = b".sites";

/// Files and directories of these names are never part of a site.
pub const NEVER_SERVED: [&[u8]; 4] = [b".git", b".atoll", b".DS_Store", b".atollignore"];

/// Files at the top of a site that say how it is served; they are not served themselves.
pub const RULE_FILES: [&[u8]; 2] = [b"_redirects", b"_headers"];

/// A name that breaks the rules, and which rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} {rule}")]
pub struct BadName {
    what: &'static str,
    name: String,
    rule: &'static str,
}

fn check_label(what: &'static str, name: &str) -> Result<(), BadName> {
    let bad = |rule| Err(BadName { what, name: name.to_owned(), rule });
    if name.is_empty() || name.len() > limits::SITE_NAME_BYTES_MAX {
        return bad("must have 1 to 63 characters");
    }
    if !name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        return bad("may hold only a-z, 0-9 and '-'");
    }
    if name.starts_with('-') || name.ends_with('-') {
        return bad("must not start or end with '-'");
    }
    if name.contains("--") {
        return bad("must not hold '--', which separates alias and site in a host name");
    }
    Ok(())
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                check_label($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                check_label($what, &text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

label!(
    /// The name of a site: one lower-case DNS label.
    SiteName,
    "site name"
);
label!(
    /// A mutable name within a site that points at a deploy, such as `production`.
    AliasName,
    "alias name"
);

impl AliasName {
    /// The alias a site serves under its own name.
    pub fn production() -> Self {
        Self("production".to_owned())
    }
}

/// A file name or path as bytes: Unix names need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteName(pub Vec<u8>);

impl ByteName {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For messages: invalid sequences become U+FFFD.
    pub fn lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl Serialize for ByteName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for ByteName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes::Bytes::deserialize(deserializer).map(|bytes| Self(bytes.to_vec()))
    }
}

impl From<&[u8]> for ByteName {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<&str> for ByteName {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for ByteName {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for ByteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.lossy())
    }
}

impl fmt::Display for ByteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lossy())
    }
}

/// Checks one directory entry name by the rules of POSIX.
///
/// # Errors
/// When it is empty, `.` or `..`, too long, or holds a slash or NUL.
pub fn check_entry_name(name: &[u8]) -> Result<(), BadName> {
    let bad = |rule| {
        Err(BadName { what: "file name", name: String::from_utf8_lossy(name).into_owned(), rule })
    };
    match name {
        b"" => bad("must not be empty"),
        b"." | b".." => bad("is reserved"),
        _ if name.len() > limits::NAME_BYTES_MAX => bad("is longer than 255 bytes"),
        _ if name.contains(&b'/') => bad("must not hold '/'"),
        _ if name.contains(&0) => bad("must not hold NUL"),
        _ => Ok(()),
    }
}

/// Checks the path of a file within a site: relative, `/` between entry names, no empty parts.
///
/// # Errors
/// When a part breaks [`check_entry_name`] or the whole is too long.
pub fn check_site_path(path: &[u8]) -> Result<(), BadName> {
    if path.len() > limits::SITE_PATH_BYTES_MAX {
        return Err(BadName {
            what: "path",
            name: String::from_utf8_lossy(&path[..64]).into_owned(),
            rule: "is longer than 4096 bytes",
        });
    }
    path.split(|byte| *byte == b'/').try_for_each(check_entry_name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn site_names_are_dns_labels() {
        for good in ["a", "my-site", "x1", &"a".repeat(63)] {
            assert!(good.parse::<SiteName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a--b", "A", "a.b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<SiteName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_have_no_dots_and_no_empty_parts() {
        assert!(check_site_path(b"a/b c/\xff#?%").is_ok());
        for bad in [&b""[..], b"/a", b"a/", b"a//b", b"a/../b", b"./a", b"a\0"] {
            assert!(check_site_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn byte_names_travel() {
        let name = ByteName(vec![0xff, b'a']);
        assert_eq!(crate::decode::<ByteName>(&crate::encode(&name)).unwrap(), name);
    }
}
