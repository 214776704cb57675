//! What the owner of a site chooses beside its names, and changes of it.
//!
//! Each choice is written as users type it: [`Display`](fmt::Display) and [`FromStr`] are the
//! command line's words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Malformed, limits};

/// What the owner of a site chose. The default is what a site has that was created without.
///
/// Edges go by `policy`, `earlier` and `live`; `dialect`, `html_handling` and `spa` become part of
/// each deploy ([`crate::rules`]).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SiteSettings {
    /// What an edge does that has lost touch with the masters.
    pub policy: Policy,
    /// How `_redirects` and `_headers` are read.
    pub dialect: Dialect,
    /// How URLs with and without `.html` and a final slash are treated.
    pub html_handling: HtmlHandling,
    /// Whether navigations to paths that do not exist get `/index.html`.
    pub spa: bool,
    /// Which files of earlier deploys stay reachable.
    pub earlier: EarlierLimits,
    /// The directory of the file system that the site follows, `/`-rooted.
    pub live: Option<String>,
}

/// What an edge does for a site when it has lost touch with the masters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Policy {
    /// It answers 503 once its lease has ended.
    #[default]
    Strict,
    /// It serves on for this long after its lease has ended.
    Bounded {
        /// Seconds.
        secs: u32,
    },
    /// It serves on, and says so.
    Available,
}

/// Seconds of `bounded` without a number.
pub const BOUNDED_SECS: u32 = 60;
/// Most seconds of `bounded`.
pub const BOUNDED_SECS_MAX: u32 = 24 * 3600;

/// Whose way of reading `_redirects` and `_headers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Dialect {
    /// Netlify's.
    #[default]
    Netlify,
    /// Cloudflare Pages'.
    Pages,
}

/// How URLs of pages are treated: the four ways of Cloudflare's `html_handling`, and our own.
/// Variant numbers are stable on the wire and on disk: only append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum HtmlHandling {
    /// As `AutoTrailingSlash`, but a page is served under its file's own name too. What every site
    /// had before there was a choice.
    #[default]
    Lenient,
    /// A final slash always.
    ForceTrailingSlash,
    /// Never a final slash.
    DropTrailingSlash,
    /// Files under their own names only.
    None,
    /// `/about` for `about.html`, `/docs/` for `docs/index.html`; other URLs of a page redirect.
    AutoTrailingSlash,
}

/// Which files of deploys that an alias pointed at before stay reachable under their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierLimits {
    /// Of so many deploys, at most `limits::EARLIER_DEPLOYS_MAX`; 0: of none.
    pub count: u32,
    /// For so many seconds after another took their place.
    pub age_secs: u32,
}

impl Default for EarlierLimits {
    fn default() -> Self {
        Self { count: 10, age_secs: 7 * 24 * 3600 }
    }
}

/// Changes of a site's configuration: `None` leaves what there is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SiteChanges {
    /// Its own host names.
    pub domains: Option<Vec<String>>,
    /// See [`SiteSettings::policy`].
    pub policy: Option<Policy>,
    /// See [`SiteSettings::dialect`].
    pub dialect: Option<Dialect>,
    /// See [`SiteSettings::html_handling`].
    pub html_handling: Option<HtmlHandling>,
    /// See [`SiteSettings::spa`].
    pub spa: Option<bool>,
    /// See [`EarlierLimits::count`].
    pub earlier_count: Option<u32>,
    /// See [`EarlierLimits::age_secs`].
    pub earlier_age_secs: Option<u32>,
    /// See [`SiteSettings::live`]; `Some(None)` follows no directory any more.
    pub live: Option<Option<String>>,
}

impl SiteChanges {
    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The settings after these changes.
    pub fn apply(&self, settings: &SiteSettings) -> SiteSettings {
        let earlier = EarlierLimits {
            count: self.earlier_count.unwrap_or(settings.earlier.count),
            age_secs: self.earlier_age_secs.unwrap_or(settings.earlier.age_secs),
        };
        SiteSettings {
            policy: self.policy.unwrap_or(settings.policy),
            dialect: self.dialect.unwrap_or(settings.dialect),
            html_handling: self.html_handling.unwrap_or(settings.html_handling),
            spa: self.spa.unwrap_or(settings.spa),
            earlier,
            live: self.live.clone().unwrap_or_else(|| settings.live.clone()),
        }
    }
}

impl SiteSettings {
    /// Checks what does not show in the types.
    ///
    /// # Errors
    /// With the rule that is broken.
    pub fn check(&self) -> Result<(), String> {
        if self.earlier.count as usize > limits::EARLIER_DEPLOYS_MAX {
            return Err(format!(
                "files of {} earlier deploys cannot be kept, at most of {}",
                self.earlier.count,
                limits::EARLIER_DEPLOYS_MAX
            ));
        }
        if let Policy::Bounded { secs } = self.policy
            && secs > BOUNDED_SECS_MAX
        {
            return Err(format!("bounded={secs} is too long: at most {BOUNDED_SECS_MAX} seconds"));
        }
        self.live.as_deref().map_or(Ok(()), check_live)
    }
}

fn check_live(path: &str) -> Result<(), String> {
    let bad = |rule: &str| Err(format!("the live directory {path:?} {rule}"));
    if path.len() > limits::LIVE_PATH_BYTES_MAX {
        return bad("is too long");
    }
    let Some(rest) = path.strip_prefix('/') else {
        return bad("must begin with a slash");
    };
    if rest.is_empty() {
        return bad("cannot be the whole file system");
    }
    for name in rest.split('/') {
        if name.is_empty() || name == "." || name == ".." || name.contains('\0') {
            return bad("must be a plain path, without empty names, '.' and '..'");
        }
        if name.len() > limits::NAME_BYTES_MAX {
            return bad("has a name that is too long");
        }
    }
    if rest == ".sites" || rest.starts_with(".sites/") {
        return bad("cannot be under /.sites");
    }
    Ok(())
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strict => f.write_str("strict"),
            Self::Bounded { secs } => write!(f, "bounded={secs}"),
            Self::Available => f.write_str("available"),
        }
    }
}

impl FromStr for Policy {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let bad = || Malformed {
            reason: format!("{text:?} is none of strict, bounded=SECS and available"),
        };
        match text {
            "strict" => Ok(Self::Strict),
            "available" => Ok(Self::Available),
            "bounded" => Ok(Self::Bounded { secs: BOUNDED_SECS }),
            _ => {
                let secs = text.strip_prefix("bounded=").ok_or_else(bad)?;
                let secs: u32 = secs.parse().map_err(|_| bad())?;
                if secs > BOUNDED_SECS_MAX {
                    let reason = format!("{text:?}: at most {BOUNDED_SECS_MAX} seconds");
                    return Err(Malformed { reason });
                }
                Ok(Self::Bounded { secs })
            }
        }
    }
}

/// Writes and reads an enum as one of a few words.
macro_rules! words {
    ($name:ident, $($word:literal => $variant:ident),+) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => {
                        let words = [$($word),+].join(", ");
                        Err(Malformed { reason: format!("{text:?} is none of {words}") })
                    }
                }
            }
        }
    };
}

words!(Dialect, "netlify" => Netlify, "pages" => Pages);
words!(
    HtmlHandling,
    "auto-trailing-slash" => AutoTrailingSlash,
    "force-trailing-slash" => ForceTrailingSlash,
    "drop-trailing-slash" => DropTrailingSlash,
    "none" => None,
    "lenient" => Lenient
);

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_others_are_refused() {
        for word in ["strict", "bounded=7", "available"] {
            assert_eq!(word.parse::<Policy>().unwrap().to_string(), word);
        }
        assert_eq!("bounded".parse::<Policy>().unwrap(), Policy::Bounded { secs: BOUNDED_SECS });
        for word in ["", "Strict", "bounded=", "bounded=-1", "bounded=99999999"] {
            assert!(word.parse::<Policy>().is_err(), "{word}");
        }
        for word in ["netlify", "pages"] {
            assert_eq!(word.parse::<Dialect>().unwrap().to_string(), word);
        }
        for word in [
            "auto-trailing-slash",
            "force-trailing-slash",
            "drop-trailing-slash",
            "none",
            "lenient",
        ] {
            assert_eq!(word.parse::<HtmlHandling>().unwrap().to_string(), word);
        }
        assert!("auto".parse::<HtmlHandling>().is_err());
        // Sites from before there was a choice have the first variant of each.
        let (policy, dialect, html, spa) = crate::decode(&[0u8, 0, 0, 0]).unwrap();
        let before =
            SiteSettings { policy, dialect, html_handling: html, spa, ..Default::default() };
        assert_eq!(before, SiteSettings::default());
    }

    #[test]
    fn changes_leave_the_rest() {
        let before = SiteSettings { spa: true, live: Some("/a".into()), ..Default::default() };
        assert_eq!(SiteChanges::default().apply(&before), before);
        let changes =
            SiteChanges { earlier_count: Some(0), live: Some(None), ..Default::default() };
        let after = changes.apply(&before);
        assert_eq!((after.earlier.count, after.live, after.spa), (0, None, true));
        assert_eq!(after.earlier.age_secs, before.earlier.age_secs);
    }

    #[test]
    fn bad_settings_are_refused() {
        let live = |path: &str| SiteSettings { live: Some(path.to_owned()), ..Default::default() };
        assert!(live("/sites/blog").check().is_ok());
        for path in ["", "sites", "/", "/a//b", "/a/", "/a/../b", "/.sites/blog", "/a\0"] {
            assert!(live(path).check().is_err(), "{path:?}");
        }
        let mut many = SiteSettings::default();
        many.earlier.count = 33;
        assert!(many.check().is_err());
    }
}
