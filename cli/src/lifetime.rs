//! How long something lives, as it is typed: `90s`, `30m`, `12h`, `7d`, `2w`.

use std::str::FromStr;
use std::time::Duration;

use atoll_proto::limits;

/// A span of whole seconds, at least one, at most `limits::ALIAS_LIFETIME_MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime(pub(crate) Duration);

impl FromStr for Lifetime {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        let wrong = || format!("{typed:?} is no span of time such as 12h or 7d");
        let end = typed.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = typed.split_at(end);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            "w" => 7 * 24 * 3600,
            _ => return Err(wrong()),
        };
        let seconds = number.checked_mul(unit).ok_or_else(wrong)?;
        let most = limits::ALIAS_LIFETIME_MAX.as_secs();
        if !(1..=most).contains(&seconds) {
            return Err(format!("{typed:?} must be between 1s and {}d", most / (24 * 3600)));
        }
        Ok(Self(Duration::from_secs(seconds)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn spans_have_a_number_and_a_unit() {
        for (typed, seconds) in [("2s", 2), ("30m", 1800), ("12h", 43_200), ("7d", 604_800)] {
            assert_eq!(typed.parse::<Lifetime>().unwrap().0.as_secs(), seconds, "{typed}");
        }
        assert_eq!("1w".parse::<Lifetime>().unwrap(), "7d".parse().unwrap());
        for bad in
            ["", "7", "d", "0s", "-1d", "1.5h", "7 d", "1y", "4000d", "99999999999999999999d"]
        {
            assert!(bad.parse::<Lifetime>().is_err(), "{bad}");
        }
    }
}
