//! How numbers, times and names are written for people.

use std::time::{SystemTime, UNIX_EPOCH};

use atoll_proto::ChunkId;

/// Bytes in binary units.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// `1 file`, `2 files`.
pub(crate) fn count(number: u64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// Milliseconds as a duration a person can read.
pub(crate) fn duration_ms(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// Seconds as days and hours.
pub(crate) fn days(secs: u32) -> String {
    match (u64::from(secs / 86_400), u64::from(secs % 86_400 / 3600)) {
        (0, 0) => duration_ms(u64::from(secs) * 1000),
        (0, hours) => count(hours, "hour"),
        (days, 0) => count(days, "day"),
        (days, hours) => format!("{} {}", count(days, "day"), count(hours, "hour")),
    }
}

/// The first digits of an id, enough to name a deploy on the command line.
pub(crate) fn short(id: &ChunkId) -> String {
    id.short()
}

/// Now, in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A moment in UTC, such as `2026-11-24 00:45:01`.
pub(crate) fn utc(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day % 3600 / 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// When something ends, or that it never does.
pub(crate) fn expiry(at_ms: Option<u64>) -> String {
    at_ms.map_or("never".to_owned(), |at| utc(i64::try_from(at).unwrap_or(i64::MAX)))
}

/// Year, month and day of a number of days since 1970-01-01: `civil_from_days` of Howard
/// Hinnant's "chrono-compatible low-level date algorithms".
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// A file name for a terminal or a message: control characters and bytes that are not UTF-8 are
/// written as `\xNN`.
pub(crate) fn name(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                let mut buffer = [0; 4];
                for byte in character.encode_utf8(&mut buffer).bytes() {
                    out.push_str(&format!("\\x{byte:02x}"));
                }
            } else {
                out.push(character);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Permission bits as `ls -l` shows them, after the letter of the kind.
pub(crate) fn mode(kind: char, mode: u32) -> String {
    let mut text = String::from(kind);
    for shift in [6, 3, 0] {
        let bits = mode >> shift & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(if bits & 1 != 0 { 'x' } else { '-' });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_right_around_leap_days_and_before_the_epoch() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(utc(1_795_481_101_000), "2026-11-24 00:45:01");
        assert_eq!(utc(-1), "1969-12-31 23:59:59");
    }

    #[test]
    fn names_never_disturb_a_terminal() {
        assert_eq!(name(b"a b\n\xff\x1b[31m\xc3\xa9"), "a b\\x0a\\xff\\x1b[31m\u{e9}");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(0, "file"), "0 files");
        assert_eq!(duration_ms(15), "15 ms");
        assert_eq!(duration_ms(2345), "2.3 s");
        assert_eq!(duration_ms(61_000), "1 min 1 s");
        assert_eq!(mode('d', 0o755), "drwxr-xr-x");
    }
}
