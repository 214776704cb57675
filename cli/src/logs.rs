//! The end of a log file, for a message about the process that wrote it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes looked at from the end of a log.
const TAIL_BYTES: u64 = 16 << 10;

/// The last lines of a file, indented; empty when there is none.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    all[from..].iter().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_the_last_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let long: String = (0..5000).map(|number| format!("line {number}\n")).collect();
        std::fs::write(file.path(), long).unwrap();
        assert_eq!(tail(file.path(), 2), "    line 4998\n    line 4999\n");
        assert_eq!(tail(Path::new("/absent"), 2), "");
    }
}
