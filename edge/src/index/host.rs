//! From the host of a request to the site and alias or deploy it names: pure.
//!
//! `<site>.<suffix>` is the site's `production` alias, `<alias>--<site>.<suffix>` another one; a
//! site's own domains name its `production` too, but never what is the name of a site that there is. `<digits>--<site>.<suffix>` is the deploy whose id
//! begins with these 8 or more hex digits, unless there is an alias of that name ([`deploy_digits`]).
//! Suffixes are `localhost` and the cluster's zone.

use atoll_proto::{AliasName, SiteName, limits};

use super::table::Table;

/// What a host name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    /// The site, which may not exist.
    pub site: SiteName,
    /// Its alias, which may not exist.
    pub alias: AliasName,
}

impl HostName {
    /// Whether it is no name that a site is known by: search engines are to pass it over.
    pub fn is_preview(&self) -> bool {
        self.alias != AliasName::production()
    }
}

/// The digits by which a name may mean a deploy where no alias has it.
pub fn deploy_digits(name: &AliasName) -> Option<&str> {
    let digits = name.as_str();
    let fine = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (digits.len() >= limits::DEPLOY_DIGITS_MIN && digits.bytes().all(fine)).then_some(digits)
}

/// Takes the port and a final dot off a host and lowers its case. `None` for what is no host name.
pub fn normalized(host: &str) -> Option<String> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return None,
        None => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(allowed) {
        return None;
    }
    Some(name.to_ascii_lowercase())
}

/// What a normalized host names, if it is one of ours.
pub fn resolve(host: &str, suffixes: &[String], table: &Table) -> Option<HostName> {
    let by_name = by_name(host, suffixes);
    // Whoever may set domains of one site must not take another's name.
    if let Some(name) = by_name.as_ref().filter(|name| table.site(&name.site).is_some()) {
        return Some(name.clone());
    }
    match table.domain(host) {
        Some(site) => Some(HostName { site: site.clone(), alias: AliasName::production() }),
        None => by_name,
    }
}

fn by_name(host: &str, suffixes: &[String]) -> Option<HostName> {
    let label = suffixes.iter().find_map(|suffix| host.strip_suffix(suffix)?.strip_suffix('.'))?;
    match label.split_once("--") {
        Some((alias, site)) => {
            Some(HostName { site: site.parse().ok()?, alias: alias.parse().ok()? })
        }
        None => Some(HostName { site: label.parse().ok()?, alias: AliasName::production() }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::publish::{PublishEntry, PublishEvent, Site};
    use atoll_proto::{ClusterId, Seq};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_are_normalized() {
        assert_eq!(normalized("Blog.LocalHost:8443").unwrap(), "blog.localhost");
        assert_eq!(normalized("blog.atoll.test.").unwrap(), "blog.atoll.test");
        for bad in ["", ":443", "a b", "a/b", "[::1]:443", "a:b", "é.test", "a\r\nb"] {
            assert_eq!(normalized(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_lead_to_sites_and_aliases() {
        let mut table = Table::empty(ClusterId([0; 16]));
        let own = ["shop.example", "www.atoll.test"];
        let taken = ["bank.atoll.test", "bank.localhost", "pr-7--bank.atoll.test"];
        let sites = [("bank", &[][..]), ("shop", &[own.as_slice(), &taken].concat())];
        for (seq, (name, domains)) in (1..).zip(sites) {
            table.apply(&PublishEntry {
                seq: Seq(seq),
                at_ms: 0,
                event: PublishEvent::SiteSet(Site {
                    name: name.parse().unwrap(),
                    domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
                    created_ms: 0,
                    settings: Default::default(),
                }),
            });
        }
        let suffixes = ["localhost".to_owned(), "atoll.test".to_owned()];
        let found = |host: &str| {
            resolve(host, &suffixes, &table).map(|found| format!("{}/{}", found.site, found.alias))
        };
        assert_eq!(found("blog.localhost").unwrap(), "blog/production");
        assert_eq!(found("blog.atoll.test").unwrap(), "blog/production");
        assert_eq!(found("preview-7--blog.localhost").unwrap(), "blog/preview-7");
        assert_eq!(found("shop.example").unwrap(), "shop/production");
        // A domain below a suffix is one as long as no site has that name.
        assert_eq!(found("www.atoll.test").unwrap(), "shop/production");
        for bank in ["bank.localhost", "bank.atoll.test"] {
            assert_eq!(found(bank).unwrap(), "bank/production");
        }
        assert_eq!(found("pr-7--bank.atoll.test").unwrap(), "bank/pr-7");
        for unknown in [
            "localhost",
            "atoll.test",
            "blog.example",
            "a.b.localhost",
            "blogatoll.test",
            "--blog.localhost",
            "blog--.localhost",
            "-blog.localhost",
            "example",
        ] {
            assert_eq!(found(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn eight_hex_digits_may_mean_a_deploy() {
        let digits = |name: &str| deploy_digits(&name.parse().unwrap()).map(str::to_owned);
        for name in ["01234567", "deadbeef", &"a".repeat(63)] {
            assert_eq!(digits(name).as_deref(), Some(name));
        }
        for name in ["0123456", "production", "deadbee-f", "deadbeefg"] {
            assert_eq!(digits(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_host_panics(host in any::<String>(), near in "[a-z.:-]{0,20}localhost(:[0-9]{0,3})?") {
            for host in [host, near] {
                if let Some(host) = normalized(&host) {
                    let table = Table::empty(ClusterId([0; 16]));
                    resolve(&host, &["localhost".to_owned()], &table);
                }
            }
        }
    }
}
