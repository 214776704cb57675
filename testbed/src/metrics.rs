//! Reading a role's `/metrics`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Metrics of one process at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scrape {
    /// Name with labels, as printed, to value.
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    /// Asks an admin address.
    ///
    /// # Errors
    /// When it does not answer, or not with metrics.
    pub fn of(admin: SocketAddr) -> Result<Self> {
        let (status, body) = plain_get(admin, "/metrics")?;
        ensure!(status == 200, "/metrics of {admin}: status {status}");
        Ok(Self::parse(&body))
    }

    fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect();
        Self { samples }
    }

    /// The sum over all labels; 0 for a metric that was never touched.
    pub fn sum(&self, name: &str) -> f64 {
        self.sum_where(name, "")
    }

    /// The sum over samples whose labels contain this text.
    pub fn sum_where(&self, name: &str, label: &str) -> f64 {
        self.samples
            .iter()
            .filter(|(sample, _)| {
                let (own, labels) = sample.split_once('{').unwrap_or((sample, ""));
                own == name && labels.contains(label)
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// Names of all metrics.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.samples.keys().map(|sample| sample.split('{').next().unwrap_or(sample))
    }

    /// What grew since an earlier scrape, for messages.
    pub fn grown_since(&self, before: &Self) -> BTreeMap<String, f64> {
        self.samples
            .iter()
            .filter_map(|(name, value)| {
                let growth = value - before.samples.get(name).copied().unwrap_or(0.0);
                (growth > 0.0).then(|| (name.clone(), growth))
            })
            .collect()
    }
}

/// A GET over plain HTTP/1.0 to an admin address: status and body.
///
/// # Errors
/// When nothing that looks like HTTP comes back.
pub fn plain_get(addr: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream =
        TcpStream::connect_timeout(&addr, TIMEOUT).with_context(|| format!("connect to {addr}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("a head and a body")?;
    let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    Ok((status.with_context(|| format!("no status in {head:?}"))?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_labels() {
        let text = "# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3\nab 5\nb 1.5\n";
        let scrape = Scrape::parse(text);
        assert_eq!(scrape.sum("a"), 5.0);
        assert_eq!(scrape.sum_where("a", "x=\"2\""), 3.0);
        assert_eq!(scrape.sum("absent"), 0.0);
        assert_eq!(scrape.grown_since(&Scrape::parse("b 1\na{x=\"1\"} 2\nab 5\n")).len(), 2);
    }
}
