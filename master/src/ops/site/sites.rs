//! Create, configure and remove sites.

use atoll_proto::publish::{PublishEvent, Published, Site, check_domain};
use atoll_proto::site::{SiteChanges, SiteSettings};
use atoll_proto::{Code, SiteName, WireError};

use super::log;
use crate::operation::{Apply, Now};
use crate::store::{Read, Transaction, aliases, deploys, live, objects, sites};

/// Most host names of one site.
const DOMAINS_MAX: usize = 100;

pub(super) fn create(
    tx: &mut Transaction<'_>,
    now: Now,
    name: SiteName,
    domains: Vec<String>,
    settings: SiteSettings,
) -> Apply<Published> {
    if sites::get(tx, &name)?.is_some() {
        let message = format!("there is a site {name} already");
        return Err(WireError::new(Code::Exists, message).into());
    }
    put(tx, now, Site { name, domains, created_ms: now.at_ms(), settings })
}

pub(super) fn configure(
    tx: &mut Transaction<'_>,
    now: Now,
    name: &SiteName,
    changes: &SiteChanges,
) -> Apply<Published> {
    let site = super::site(tx, name)?;
    let settings = changes.apply(&site.settings);
    let domains = changes.domains.clone().unwrap_or_else(|| site.domains.clone());
    if settings.live != site.settings.live {
        live::remove(tx, name);
    }
    put(tx, now, Site { domains, settings, ..site })
}

fn put(tx: &mut Transaction<'_>, now: Now, site: Site) -> Apply<Published> {
    check_domains(tx, &site)?;
    site.settings.check().map_err(WireError::invalid)?;
    sites::put(tx, &site)?;
    let seq = log(tx, now, |_| PublishEvent::SiteSet(site))?;
    Ok(Published { seq, deploy: None, previous: None })
}

/// Refuses host names that are malformed, doubled or owned by another site.
fn check_domains(read: &impl Read, site: &Site) -> Apply<()> {
    if site.domains.len() > DOMAINS_MAX {
        let message = format!("site {} cannot have more than {DOMAINS_MAX} domains", site.name);
        return Err(WireError::new(Code::Limit, message).into());
    }
    let mut seen = std::collections::BTreeSet::new();
    for domain in &site.domains {
        check_domain(domain).map_err(WireError::invalid)?;
        if !seen.insert(domain) {
            return Err(WireError::invalid(format!("domain {domain} is given twice")).into());
        }
        if let Some(owner) = sites::owner(read, domain)?
            && owner != site.name
        {
            let message = format!(
                "domain {domain} belongs to site {owner}: take it away there first, with \
                 `atoll site set {owner}`"
            );
            return Err(WireError::new(Code::Exists, message).into());
        }
    }
    Ok(())
}

pub(super) fn remove(tx: &mut Transaction<'_>, now: Now, name: &SiteName) -> Apply<Published> {
    let site = super::site(tx, name)?;
    for record in aliases::all(tx, Some(name))? {
        aliases::remove(tx, name, &record.alias.alias);
    }
    for deploy in deploys::list(tx, name, None, usize::MAX)? {
        objects::drop_ref(tx, now, &deploy.id)?;
        deploys::remove(tx, &deploy);
    }
    live::remove(tx, name);
    sites::remove(tx, &site);
    let seq = log(tx, now, |_| PublishEvent::SiteRemoved(name.clone()))?;
    Ok(Published { seq, deploy: None, previous: None })
}
