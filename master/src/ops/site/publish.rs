//! Publish: record a deploy and point an alias at it, atomically.

use atoll_proto::master::ObjectKind;
use atoll_proto::publish::{Deploy, PublishEvent, Published, Site};
use atoll_proto::site::SiteSettings;
use atoll_proto::{AliasName, Code, DeployId, SiteName, WireError, limits};

use super::{Setting, check_current, earlier, log, set_alias};
use crate::operation::{Apply, Failure, Now, RootFacts};
use crate::ops::erased::check_below;
use crate::store::{Transaction, aliases, deploys, objects, sites};

/// The fields of the message.
pub(super) struct Publish {
    pub(super) site: SiteName,
    pub(super) alias: AliasName,
    pub(super) deploy: DeployId,
    pub(super) if_current: Option<Option<DeployId>>,
    pub(super) message: String,
    pub(super) create: bool,
}

/// Refuses a deploy message that is too long.
pub(crate) fn check_message(message: &str) -> Result<(), WireError> {
    if message.len() <= limits::MESSAGE_BYTES_MAX {
        return Ok(());
    }
    Err(WireError::invalid(format!(
        "the message of a deploy has {} bytes; at most {} are kept: shorten it",
        message.len(),
        limits::MESSAGE_BYTES_MAX
    )))
}

/// As [`publish`], unless some of its bytes were erased: its pages may all be known from before, and
/// then nobody else would say anything.
pub(super) fn publish_whole(
    tx: &mut Transaction<'_>,
    now: Now,
    request: Publish,
    root: Option<RootFacts>,
    expires_ms: Option<u64>,
) -> Apply<Published> {
    let deploy = request.deploy;
    check_below(tx, &deploy, || format!("deploy {deploy} cannot be published"))?;
    publish(tx, now, request, root, expires_ms)
}

/// `expires_ms` is when the alias is removed from now on, whatever was said before: a publish
/// says it anew each time.
pub(super) fn publish(
    tx: &mut Transaction<'_>,
    now: Now,
    request: Publish,
    root: Option<RootFacts>,
    expires_ms: Option<u64>,
) -> Apply<Published> {
    let Publish { site: name, alias, deploy, if_current, message, create } = request;
    check_message(&message)?;
    let record = aliases::get(tx, &name, &alias)?;
    let current = record.as_ref().map(|record| record.alias.deploy);
    if sites::get(tx, &name)?.is_none() {
        if !create {
            super::site(tx, &name)?;
        }
        check_current(&name, &alias, if_current, current)?;
        let (domains, settings) = (Vec::new(), SiteSettings::default());
        let created_ms = now.at_ms();
        let site = Site { name: name.clone(), domains, created_ms, settings };
        sites::put(tx, &site)?;
        log(tx, now, |_| PublishEvent::SiteSet(site))?;
    }
    check_current(&name, &alias, if_current, current)?;
    let root = check_root(tx, &deploy, root)?;

    let limits = super::site(tx, &name)?.settings.earlier;
    let earlier = earlier::after_move(record.as_ref(), deploy, limits, now.at_ms());
    let mut history = record.map(|record| record.history).unwrap_or_default();
    if let Some(current) = current.filter(|current| *current != deploy) {
        history.push(current);
    }
    let setting = Setting { deploy, history, earlier, expires_ms };
    let seq = set_alias(tx, now, &name, &alias, setting)?;
    let before = deploys::get(tx, &name, &deploy)?;
    if before.is_none() {
        objects::add_ref(tx, now, &deploy, 0, ObjectKind::Page)?;
    }
    let created_ms = before.as_ref().map_or(now.at_ms(), |before| before.created_ms);
    let message = match before {
        Some(before) if message.is_empty() => before.message,
        _ => message,
    };
    let RootFacts { files, bytes } = root;
    deploys::put(tx, &Deploy { id: deploy, site: name, created_ms, message, files, bytes, seq })?;
    Ok(Published { seq, deploy: Some(deploy), previous: current })
}

/// The root must be a page that was admitted, so that everything below it is counted. One that was
/// collected since the leader looked must be uploaded and admitted again.
fn check_root(
    tx: &Transaction<'_>,
    deploy: &DeployId,
    root: Option<RootFacts>,
) -> Apply<RootFacts> {
    let Some(object) = objects::get(tx, deploy)? else {
        return Err(Failure::Missing(vec![*deploy]));
    };
    match root {
        Some(root) if object.kind == ObjectKind::Page => Ok(root),
        _ => {
            let message = format!(
                "deploy {deploy} cannot be published: its root page is not admitted; upload and \
                 admit its pages first"
            );
            Err(WireError::new(Code::NotFound, message).into())
        }
    }
}
