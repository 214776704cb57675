//! `acked_is_durable` and `no_wrong_bytes`: everything acknowledged reads back, byte for byte, every
//! way there is to read it; an operation whose outcome was open happened whole or not at all.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use rand::seq::SliceRandom as _;
use tokio::sync::Semaphore;

use super::Eyes;
use crate::cluster::DevCluster;
use crate::history::{History, State};
use crate::http::Version;
use crate::payload::Payload;
use crate::tree::{Tree, url_path};
use crate::workload::{VERSION, site_files};
use crate::{seed, wait};

/// Files read at a time.
const PARALLEL: usize = 16;
/// Files read through a process of their own, which costs more than the read.
const COMMANDS: usize = 3;
/// Until the mount must show a deploy.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// How much is read.
#[derive(Debug, Clone, Copy)]
pub enum Extent {
    /// Everything.
    All,
    /// What was changed last, all that is open, and so many others.
    Some {
        /// Places named by operations from this number on are read.
        since: usize,
        /// How many of the others.
        others: usize,
        /// Which.
        seed: u64,
    },
}

/// Everything that was acknowledged reads back right. Nobody may work on the cluster meanwhile.
/// Returns how many places were read.
///
/// # Errors
/// When one cannot be read, or holds what it must not.
pub fn acked_is_durable(eyes: &Eyes, history: &History, extent: Extent) -> Result<usize> {
    let places = chosen(history, extent);
    let (sites, files): (Vec<String>, Vec<String>) =
        places.into_iter().partition(|place| !place.starts_with('/'));
    read_files(eyes, history, &files).context("acked_is_durable")?;
    nothing_else_is_there(eyes, history, &files).context("acked_is_durable")?;
    other_ways(eyes, history, &files).context("acked_is_durable")?;
    for site in &sites {
        let checked = site_is_durable(eyes, history, site);
        checked.with_context(|| format!("acked_is_durable: site {site}"))?;
    }
    Ok(files.len() + sites.len())
}

/// Reads places at random, once, while nobody works: nothing differs from what was written, and
/// what was acknowledged may be refused for the moment, but not be missing or wrong. Returns how
/// many could be read.
///
/// # Errors
/// When a wrong byte is read.
pub fn no_wrong_bytes(eyes: &Eyes, history: &History, extent: Extent) -> Result<usize> {
    let files: Vec<String> =
        chosen(history, extent).into_iter().filter(|place| place.starts_with('/')).collect();
    let mut read = 0;
    for (place, found) in read_all(eyes, &files)? {
        match found {
            Ok(found) => {
                history.settle_bytes(&place, found.as_deref()).context("no_wrong_bytes")?;
                read += 1;
            }
            Err(error) => eyes.cluster.tell(format_args!("not readable now: {place}: {error:#}")),
        }
    }
    Ok(read)
}

fn chosen(history: &History, extent: Extent) -> Vec<String> {
    let all = history.places();
    let Extent::Some { since, others, seed } = extent else {
        return all.into_iter().map(|(name, _)| name).collect();
    };
    let open = history.open();
    let (mut chosen, mut rest): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(name, last)| *last >= since || open.contains(name));
    rest.shuffle(&mut seed::rng(seed));
    rest.truncate(others);
    chosen.append(&mut rest);
    chosen.into_iter().map(|(name, _)| name).collect()
}

type Read = (String, Result<Option<Bytes>>);

/// Reads files through the client library, several at a time.
fn read_all(eyes: &Eyes, files: &[String]) -> Result<Vec<Read>> {
    eyes.handle.block_on(async {
        let room = Arc::new(Semaphore::new(PARALLEL));
        let mut reads = Vec::new();
        for place in files {
            let (volume, place, room) = (eyes.volume.clone(), place.clone(), Arc::clone(&room));
            reads.push(tokio::spawn(async move {
                let _held = room.acquire_owned().await;
                let found = volume.get(&place).await;
                (place, found)
            }));
        }
        let mut all = Vec::new();
        for read in reads {
            all.push(read.await.context("a reader panicked")?);
        }
        Ok(all)
    })
}

fn read_files(eyes: &Eyes, history: &History, files: &[String]) -> Result<()> {
    for (place, found) in read_all(eyes, files)? {
        let found = found.with_context(|| history.story(&place))?;
        history.settle_bytes(&place, found.as_deref())?;
    }
    Ok(())
}

/// The directories list what they must, and nothing that was removed.
fn nothing_else_is_there(eyes: &Eyes, history: &History, files: &[String]) -> Result<()> {
    let folders: BTreeSet<&str> =
        files.iter().filter_map(|place| Some(place.rsplit_once('/')?.0)).collect();
    for folder in folders {
        let listed: BTreeSet<String> = eyes
            .handle
            .block_on(eyes.volume.list(folder))?
            .into_iter()
            .map(|name| format!("{folder}/{name}"))
            .collect();
        for place in &listed {
            // The new file of a replacement that was cut short: nobody promised anything about it.
            if !place.ends_with(".new") {
                let possible = history.possible(place);
                let right = possible.iter().any(|state| *state != State::Absent);
                ensure!(right, "{place} is listed\n{}", history.story(place));
            }
        }
        for place in files.iter().filter(|place| place.starts_with(&format!("{folder}/"))) {
            let certain = history.certain(place);
            let missing = certain.is_some_and(|(state, _)| state != State::Absent);
            ensure!(
                !missing || listed.contains(place),
                "{place} is not listed\n{}",
                history.story(place)
            );
        }
    }
    Ok(())
}

/// What the client library read, the mount and `atoll cat` read as well.
fn other_ways(eyes: &Eyes, history: &History, files: &[String]) -> Result<()> {
    let there: Vec<(&String, Bytes)> = files
        .iter()
        .filter_map(|place| match history.certain(place)? {
            (State::Holds(payload), _) => Some((place, payload.content(place))),
            _ => None,
        })
        .collect();
    let step = there.len().div_ceil(COMMANDS).max(1);
    for (place, content) in there.iter().step_by(step) {
        let found = eyes.cluster.atoll(&["cat", place])?.ok()?;
        ensure!(found.stdout == *content, "`atoll cat {place}` differs\n{}", history.story(place));
    }
    if !eyes.mounted {
        return Ok(());
    }
    let mount = eyes.cluster.mount();
    for (place, content) in &there {
        let path = mount.join(place.trim_start_matches('/'));
        let found = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(found == *content, "{} differs\n{}", path.display(), history.story(place));
    }
    Ok(())
}

fn site_is_durable(eyes: &Eyes, history: &History, site: &str) -> Result<()> {
    let cluster = &eyes.cluster;
    let possible = history.possible(site);
    let edges = cluster.edges();
    ensure!(!edges.is_empty(), "sites were deployed, and there is no edge to ask");
    let mut settled = None;
    for (name, addr) in edges {
        let asked = eyes.handle.block_on(Box::pin(async {
            let mut visitor = cluster.visit(Version::H2, addr, site).await?;
            let version = visitor.get(&format!("/{VERSION}")).await?;
            if version.status != 200 && possible.contains(&State::Absent) {
                return Ok(State::Absent);
            }
            ensure!(version.status == 200, "{name}: {VERSION}: {}", version.status);
            let text = std::str::from_utf8(&version.body).context("no text")?;
            let generation = text.parse().with_context(|| format!("{VERSION} is {text:?}"))?;
            let files = site_files(site, generation);
            for (path, payload) in &files {
                let answer = visitor.get(&url_path(path.as_bytes())).await?;
                let right = payload.content(&format!("{site}/{path}"));
                ensure!(
                    answer.status == 200 && answer.body == right,
                    "{name}: {path}: {} and {} bytes, judged {:?}, not {payload:?}",
                    answer.status,
                    answer.body.len(),
                    Payload::judge(&format!("{site}/{path}"), &answer.body),
                );
            }
            Ok(State::Holds(Payload { generation, bytes: files.len() as u64 }))
        }))?;
        settled = Some(history.settle(site, asked)?);
    }
    match settled {
        Some(State::Holds(payload)) if eyes.mounted => {
            below_sites(cluster, site, payload.generation)
        }
        _ => Ok(()),
    }
}

/// The deploy that the alias names, read in the mount: past every cache of the edges.
fn below_sites(cluster: &DevCluster, site: &str, generation: u64) -> Result<()> {
    let shown = cluster.json(&["site", "show", site])?;
    let deploy = shown["aliases"][0]["deploy"].as_str().context("the alias names a deploy")?;
    let folder = cluster.mount().join(".sites").join(site).join(deploy);
    wait::holds("the deploy in the mount", SHOWN_TIMEOUT, || folder.is_dir())?;
    let mut tree = Tree::default();
    tree.put(VERSION, generation.to_string());
    for (path, payload) in site_files(site, generation) {
        tree.put(&path, payload.content(&format!("{site}/{path}")));
    }
    let found = Tree::read(&folder).map_err(|error| anyhow!("{}: {error:#}", folder.display()))?;
    tree.ensure_equals(&found, "in the mount")
}
