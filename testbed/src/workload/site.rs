//! Sites: what a deploy of a generation holds, and the worker that deploys.

use std::fs;

use anyhow::{Context as _, Result};
use rand::Rng as _;

use super::Worker;
use crate::history::{State, Way};
use crate::payload::Payload;
use crate::seed;

/// Sites there are.
const SITES: usize = 2;
/// Files of each, beside [`VERSION`].
pub const SITE_FILES: usize = 12;
/// The file that tells the generation of the deploy.
pub const VERSION: &str = "version.txt";

/// The files of a deploy. Some change with every generation, some seldom, so that a deploy uploads
/// some chunks and refers to others that have been there for long.
pub fn site_files(site: &str, generation: u64) -> Vec<(String, Payload)> {
    const STEPS: [u64; 4] = [1, 16, 256, 1 << 14];
    let file = |index: usize| {
        let path = format!("d{}/f{index}.bin", index % 3);
        let generation = generation - generation % STEPS[index % STEPS.len()];
        let key = blake3::hash(format!("{site}/{path}/{generation}").as_bytes());
        let key = key.as_bytes()[..8].try_into().expect("a hash has eight bytes");
        let payload = Payload::of_any_size(generation, &mut seed::rng(u64::from_le_bytes(key)));
        (path, payload)
    };
    (0..SITE_FILES).map(file).collect()
}

impl Worker {
    pub(super) fn deploy_once(&mut self) {
        let site = format!("crew-{}", self.rng.random_range(0..SITES));
        let begun = self.history.begin(&site, Way::Deploy, |generation, _| {
            Some(State::Holds(Payload { generation, bytes: SITE_FILES as u64 }))
        });
        let Some((ticket, State::Holds(deploy))) = begun else {
            return self.pause();
        };
        match self.deploy_now(&site, deploy.generation) {
            Ok(()) => {
                self.history.acknowledged(ticket);
                self.tally.acknowledged.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            Err(error) => {
                self.note(format_args!("deploy of {site}: {error:#}"));
                self.history.unknown(ticket, format_args!("{error:#}"));
            }
        }
        self.pause();
    }

    fn deploy_now(&self, site: &str, generation: u64) -> Result<()> {
        let folder = self.cluster.work().join(format!("deploy-{site}"));
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir(&folder)?;
        fs::write(folder.join(VERSION), generation.to_string())?;
        for (path, payload) in site_files(site, generation) {
            let full = folder.join(&path);
            fs::create_dir_all(full.parent().context("below the folder")?)?;
            fs::write(full, payload.content(&format!("{site}/{path}")))?;
        }
        let folder = folder.to_str().context("a plain path")?;
        self.command(&["deploy", folder, "--site", site, "--create"])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn most_files_of_a_site_stay_from_deploy_to_deploy() {
        let (one, next) = (site_files("s", 1000), site_files("s", 1001));
        assert_eq!(one, site_files("s", 1000));
        let paths: BTreeSet<_> = one.iter().map(|(path, _)| path).collect();
        assert_eq!(paths.len(), SITE_FILES);
        let changed = one.iter().zip(&next).filter(|(one, next)| one != next).count();
        assert!((3..SITE_FILES / 2).contains(&changed), "{changed}");
    }
}
