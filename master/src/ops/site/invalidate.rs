//! Tell every edge to drop cached answers.

use atoll_proto::publish::{Pattern, PublishEvent, Published};
use atoll_proto::rules::template::decode;
use atoll_proto::tags::check_tag;
use atoll_proto::{Code, SiteName, WireError, limits};

use super::log;
use crate::operation::{Apply, Now};
use crate::store::Transaction;

/// Longest path, prefix or tag in bytes.
const PATTERN_BYTES_MAX: usize = 4096;
/// Most bytes of all patterns together.
const PATTERNS_BYTES_MAX: usize = 256 << 10;

pub(super) fn invalidate(
    tx: &mut Transaction<'_>,
    now: Now,
    site: SiteName,
    patterns: Vec<Pattern>,
    soft: bool,
) -> Apply<Published> {
    super::site(tx, &site)?;
    check(&patterns)?;
    let seq = log(tx, now, |_| PublishEvent::Invalidate { site, patterns, soft })?;
    Ok(Published { seq, deploy: None, previous: None })
}

fn check(patterns: &[Pattern]) -> Result<(), WireError> {
    if patterns.is_empty() {
        let message = "nothing to invalidate: give a path, a prefix, a tag or all";
        return Err(WireError::invalid(message));
    }
    let mut bytes = 0;
    for pattern in patterns {
        let text = match pattern {
            Pattern::Path(text) | Pattern::Prefix(text) => {
                if !text.starts_with('/') {
                    let message = format!("{text:?} does not start with '/'");
                    return Err(WireError::invalid(message));
                }
                if decode(text.as_bytes()).is_none() {
                    let message = format!("{text:?} holds a malformed '%' escape");
                    return Err(WireError::invalid(message));
                }
                text
            }
            Pattern::Tag(text) => {
                check_tag(text).map_err(WireError::invalid)?;
                text
            }
            Pattern::All => continue,
        };
        if text.len() > PATTERN_BYTES_MAX {
            let message = format!("a pattern is longer than {PATTERN_BYTES_MAX} bytes");
            return Err(WireError::invalid(message));
        }
        bytes += text.len();
    }
    if patterns.len() > limits::INVALIDATE_PATTERNS_MAX || bytes > PATTERNS_BYTES_MAX {
        let message = format!(
            "one invalidation may have {} patterns of {PATTERNS_BYTES_MAX} bytes together: send \
             several, or invalidate a prefix or all",
            limits::INVALIDATE_PATTERNS_MAX
        );
        return Err(WireError::new(Code::Limit, message));
    }
    Ok(())
}
