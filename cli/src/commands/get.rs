//! `atoll get`: fetch a URL over a chosen version of HTTP.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use http::header::{HeaderName, HeaderValue};
use http::{Method, Uri, Version};

use crate::connect::Context;
use crate::fetch::{Fetch, Head, Receiver, fetch, host, roots};
use crate::output::Output;
use crate::report::{Exit, Failure};

/// Fetch a URL over HTTP/1.1, 2 or 3 and write its body to standard output. Names under .localhost
/// are this machine
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("version").multiple(false),
    after_help = "EXAMPLES
  atoll get https://blog.localhost:20443/ --http3 -v
  atoll get https://blog.localhost:20443/big.iso -o big.iso
  atoll get https://blog.example/ --resolve blog.example:443:192.0.2.7 --ca ca.pem

Trusts the certificates of --ca, of the cluster that the client configuration names, and those the
machine trusts. Exit code 1 for status 400 and above, unless --any-status."
)]
pub(crate) struct GetArgs {
    /// What to fetch
    #[arg(value_name = "URL", value_parser = url)]
    url: Uri,
    /// Over HTTP/1.1
    #[arg(long, group = "version")]
    http1: bool,
    /// Over HTTP/2
    #[arg(long, group = "version")]
    http2: bool,
    /// Over HTTP/3 (QUIC)
    #[arg(long, group = "version")]
    http3: bool,
    /// Trust the authorities in this file
    #[arg(long, value_name = "PEM")]
    ca: Option<PathBuf>,
    /// Take this address for a host and port
    #[arg(long, value_name = "HOST:PORT:ADDR", value_parser = resolve)]
    resolve: Vec<Resolve>,
    /// Send a header
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Show status and headers on standard error
    #[arg(short, long)]
    verbose: bool,
    /// Write the body to this file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Exit code 0 whatever the status
    #[arg(long)]
    any_status: bool,
}

/// Where a host and port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolve {
    host: String,
    port: u16,
    addr: IpAddr,
}

/// A whole URL, as typed.
pub(crate) fn url(typed: &str) -> Result<Uri, String> {
    let uri: Uri = typed.parse().map_err(|error| format!("{error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(uri),
        _ => Err("write it whole, such as https://blog.localhost:20443/".to_owned()),
    }
}

fn resolve(typed: &str) -> Result<Resolve, String> {
    let wrong = || "write HOST:PORT:ADDR, such as blog.example:443:192.0.2.7".to_owned();
    let mut parts = typed.splitn(3, ':');
    let (Some(host), Some(port), Some(addr)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong());
    };
    let addr = addr.trim_start_matches('[').trim_end_matches(']');
    Ok(Resolve {
        host: host.to_ascii_lowercase(),
        port: port.parse().map_err(|_error| wrong())?,
        addr: addr.parse().map_err(|_error| wrong())?,
    })
}

fn header(typed: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = typed.split_once(':').ok_or("write NAME: VALUE")?;
    let name = name.trim().parse::<HeaderName>().map_err(|error| error.to_string())?;
    let value = HeaderValue::from_str(value.trim()).map_err(|error| error.to_string())?;
    Ok((name, value))
}

/// Does it.
pub(crate) async fn run(context: &Context, args: GetArgs) -> Result<(), Failure> {
    let version = match (args.http1, args.http2, args.http3) {
        (true, _, _) => Some(Version::HTTP_11),
        (_, true, _) => Some(Version::HTTP_2),
        (_, _, true) => Some(Version::HTTP_3),
        _ => None,
    };
    let ca = args.ca.clone().or_else(|| cluster_ca(context));
    let request = Fetch {
        method: Method::GET,
        addrs: addresses(&args.url, &args.resolve).await?,
        url: args.url.clone(),
        version,
        headers: args.headers,
        roots: Arc::new(roots(ca.as_deref(), true)?),
    };
    let file = match &args.output {
        Some(path) => Some(File::create(path).map_err(Failure::file("write", path))?),
        None => None,
    };
    let mut show = Show { out: &context.out, verbose: args.verbose, file };
    let head = fetch(&request, &mut show).await?;
    context.out.flush()?;
    if head.status.as_u16() < 400 || args.any_status {
        return Ok(());
    }
    if !args.verbose {
        context.out.note(format_args!("atoll: {}: {}", args.url, head.status));
    }
    Err(Failure::Said(Exit::Failed))
}

/// The authority that signs the certificates of the configured cluster's edges, where it is known.
/// Without a configuration only the machine's own authorities are trusted.
pub(crate) fn cluster_ca(context: &Context) -> Option<PathBuf> {
    let path = context.config_path().ok()?.parent()?.join("web-ca/ca.pem");
    path.exists().then_some(path)
}

/// Where the host of a URL is.
pub(crate) async fn addresses(url: &Uri, resolve: &[Resolve]) -> Result<Vec<SocketAddr>, Failure> {
    let name = host(url).to_ascii_lowercase();
    let default = if url.scheme_str() == Some("http") { 80 } else { 443 };
    let port = url.port_u16().unwrap_or(default);
    let told = resolve.iter().find(|told| told.host == name && told.port == port);
    if let Some(told) = told {
        return Ok(vec![(told.addr, port).into()]);
    }
    // RFC 6761 §6.3: names under localhost are the loopback address.
    let relative = name.strip_suffix('.').unwrap_or(&name);
    if relative == "localhost" || relative.ends_with(".localhost") {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into()]);
    }
    let found = tokio::net::lookup_host((name.as_str(), port))
        .await
        .map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
    Ok(found.collect())
}

struct Show<'a> {
    out: &'a Output,
    verbose: bool,
    file: Option<File>,
}

impl Receiver for Show<'_> {
    fn head(&mut self, head: &Head) -> Result<(), Failure> {
        if self.verbose {
            self.out.note(format_args!("{:?} {}", head.version, head.status));
            for (name, value) in &head.headers {
                let value = crate::text::name(value.as_bytes());
                self.out.note(format_args!("{name}: {value}"));
            }
            self.out.note("");
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match &mut self.file {
            Some(file) => {
                file.write_all(bytes).map_err(|error| Failure::failed("write the body", error))
            }
            None => self.out.bytes(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_typed_is_checked() {
        assert!(url("https://blog.localhost:1/a%20b?c").is_ok());
        for bad in ["blog.localhost", "ftp://x/", "https:///x", "/x", ""] {
            assert!(url(bad).is_err(), "{bad}");
        }
        let told = resolve("Blog.example:443:[2001:db8::1]").unwrap();
        assert_eq!((told.host.as_str(), told.port), ("blog.example", 443));
        assert_eq!(told.addr, "2001:db8::1".parse::<IpAddr>().unwrap());
        assert!(resolve("blog:443").is_err() && resolve("blog:x:1.2.3.4").is_err());
        assert_eq!(header("Range: bytes=0-1").unwrap().1, "bytes=0-1");
        assert!(header("no colon").is_err() && header("a b: c").is_err());
    }
}
