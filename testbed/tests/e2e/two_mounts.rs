//! Several mounts of one cluster: close-to-open, appends, names, and attributes.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_testbed::{DevCluster, seed, wait};
use rand::Rng as _;

use super::posix::as_user;
use super::word;

/// Files that two mounts make at the same time.
const FILES: usize = 100;

/// A change elsewhere is seen at the latest when the kernel asks again: after a second.
const SEEN: Duration = Duration::from_secs(10);

fn two_mounts(cluster: &DevCluster) -> Result<[PathBuf; 2]> {
    let mounts = ["one", "two"].map(|name| cluster.work().join(name));
    for mount in &mounts {
        fs::create_dir(mount)?;
        cluster.atoll(&["mount", "--allow-other", word(mount)])?.ok()?;
    }
    Ok(mounts)
}

fn finish(cluster: DevCluster, mounts: &[PathBuf; 2]) -> Result<()> {
    for mount in mounts {
        cluster.atoll(&["umount", word(mount)])?.ok()?;
    }
    cluster.finish()
}

#[test]
fn what_is_closed_on_one_mount_is_opened_on_another() -> Result<()> {
    let seed = seed::or(32);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let mounts = two_mounts(&cluster)?;
    let mut random = seed::rng(seed);
    fs::write(mounts[0].join("f"), "")?;
    wait::holds("the file on the other mount", SEEN, || mounts[1].join("f").exists())?;
    let mut expected: Vec<u8> = Vec::new();
    for round in 0..60u8 {
        // By open and close alone, in turns: nothing has to be waited for.
        let writer = &mounts[usize::from(round % 2)];
        let mut file = File::options().write(true).open(writer.join("f"))?;
        match random.random_range(0..3) {
            0 => {
                file.set_len(0)?;
                expected = vec![round; random.random_range(0..3_000_000)];
                file.write_all(&expected)?;
            }
            1 => {
                use std::os::unix::fs::FileExt as _;
                let (at, len) = (random.random_range(0..2_000_000), random.random_range(1..5000));
                file.write_all_at(&vec![round; len], at as u64)?;
                expected.resize(expected.len().max(at + len), 0);
                expected[at..at + len].fill(round);
            }
            _ => {
                let len = random.random_range(0..2_500_000);
                file.set_len(len as u64)?;
                expected.resize(len, 0);
            }
        }
        if round % 3 == 0 {
            file.sync_all()?;
        }
        drop(file);
        for reader in mounts.iter().rev() {
            let found = fs::read(reader.join("f"))?;
            ensure!(
                found == expected,
                "round {round}: {} bytes in {}",
                found.len(),
                reader.display()
            );
            let len = File::open(reader.join("f"))?.metadata()?.len();
            ensure!(len == expected.len() as u64, "round {round}: length {len}");
        }
    }
    // Whoever has it open reads on in what it opened, when the file is replaced.
    let mut old = File::open(mounts[1].join("f"))?;
    fs::write(mounts[0].join("new"), "newer")?;
    fs::rename(mounts[0].join("new"), mounts[0].join("f"))?;
    let mut bytes = Vec::new();
    old.read_to_end(&mut bytes)?;
    ensure!(bytes == expected, "a reader keeps its content");
    drop(old);
    wait::until("the new file", SEEN, || {
        Ok((fs::read(mounts[1].join("f"))? == b"newer").then_some(()))
    })?;
    finish(cluster, &mounts)
}

#[test]
fn appends_of_two_mounts_are_all_there_each_in_one_piece() -> Result<()> {
    let cluster = DevCluster::builder().start()?;
    let mounts = two_mounts(&cluster)?;
    fs::write(mounts[0].join("log"), "")?;
    wait::holds("the log on the other mount", SEEN, || mounts[1].join("log").exists())?;
    // In turns, so that each appends where its kernel did not take the end to be, and reads at once.
    let mut expected = String::new();
    for round in 0..12 {
        let path = mounts[round % 2].join("log");
        let line = format!("round {round} {}\n", "y".repeat(round * 300));
        File::options().append(true).open(&path)?.write_all(line.as_bytes())?;
        expected.push_str(&line);
        let found = fs::read_to_string(&path)?;
        ensure!(found == expected, "round {round}: {} of {} bytes", found.len(), expected.len());
    }
    fs::write(mounts[0].join("log"), "")?;
    let record = |mount: usize, writer: usize, n: usize| {
        format!("<{mount} {writer} {n} {}>", "x".repeat(n * 7919 % 3000))
    };
    std::thread::scope(|scope| {
        let mut writers = Vec::new();
        for (at, mount) in mounts.iter().enumerate() {
            for writer in 0..2 {
                writers.push(scope.spawn(move || -> Result<()> {
                    let path = mount.join("log");
                    for n in 0..30 {
                        // Opened for each record, or kept open and synced.
                        let mut file = File::options().append(true).open(&path)?;
                        file.write_all(record(at, writer, n).as_bytes())?;
                        file.write_all(format!("<more {at} {writer} {n}>").as_bytes())?;
                        file.sync_all()?;
                    }
                    Ok(())
                }));
            }
        }
        writers.into_iter().try_for_each(|writer| writer.join().expect("no writer panics"))
    })?;
    let text = fs::read_to_string(mounts[0].join("log"))?;
    let mut total = 0;
    for at in 0..2 {
        for writer in 0..2 {
            let mut from = 0;
            for n in 0..30 {
                for record in [record(at, writer, n), format!("<more {at} {writer} {n}>")] {
                    let found = text[from..].find(&record);
                    let found = found.ok_or_else(|| anyhow::anyhow!("{record} is missing"))?;
                    from += found + record.len();
                    total += record.len();
                }
            }
        }
    }
    ensure!(text.len() == total, "{} bytes instead of {total}: some twice", text.len());
    ensure!(fs::read_to_string(mounts[1].join("log"))? == text);
    finish(cluster, &mounts)
}

#[test]
fn names_and_attributes_of_one_mount_show_on_the_other() -> Result<()> {
    let cluster = DevCluster::builder().start()?;
    let mounts = two_mounts(&cluster)?;
    let [one, two] = &mounts;
    fs::create_dir(one.join("d"))?;
    fs::write(one.join("d/f"), "content")?;
    wait::holds("the file", SEEN, || two.join("d/f").exists())?;
    fs::set_permissions(one.join("d/f"), fs::Permissions::from_mode(0o600))?;
    wait::holds("the mode", SEEN, || {
        fs::metadata(two.join("d/f")).is_ok_and(|meta| meta.mode() & 0o7777 == 0o600)
    })?;
    rustix::fs::setxattr(one.join("d/f"), "user.a", b"1", rustix::fs::XattrFlags::empty())?;
    wait::holds("the attribute", SEEN, || {
        rustix::fs::getxattr(two.join("d/f"), "user.a", &mut [0u8; 9][..]) == Ok(1)
    })?;
    fs::rename(one.join("d/f"), one.join("g"))?;
    wait::holds("the new name", SEEN, || two.join("g").exists() && !two.join("d/f").exists())?;
    fs::hard_link(two.join("g"), two.join("d/h"))?;
    wait::holds("the second name", SEEN, || {
        fs::metadata(one.join("g")).is_ok_and(|meta| meta.nlink() == 2)
    })?;
    fs::remove_file(one.join("g"))?;
    fs::remove_file(one.join("d/h"))?;
    fs::remove_dir(one.join("d"))?;
    wait::holds("an empty root", SEEN, || fs::read_dir(two).is_ok_and(|dir| dir.count() == 0))?;
    // A name that was looked for in vain is there when it is made elsewhere.
    ensure!(!two.join("later").exists());
    fs::write(one.join("later"), "now")?;
    ensure!(fs::read(two.join("later"))? == b"now", "what is not there is not remembered");
    finish(cluster, &mounts)
}

#[test]
fn privileges_given_on_one_mount_end_when_others_write_on_another() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this test acts as several users: run it as root");
    let cluster = DevCluster::builder().start()?;
    let mounts = two_mounts(&cluster)?;
    let [one, two] = &mounts;
    let mode = |path: PathBuf| fs::metadata(path).map(|meta| meta.mode() & 0o7777);
    for (name, given) in [("user", 0o4777), ("both", 0o6777)] {
        fs::write(one.join(name), "#!/bin/true")?;
        fs::set_permissions(one.join(name), fs::Permissions::from_mode(given & 0o777))?;
        chown(one.join(name), Some(1001), Some(1001))?;
        // Open, and the mode known to the kernel, before the privileges are given.
        let mut file = as_user(1002, 1002, || File::options().write(true).open(one.join(name)))?;
        ensure!(mode(one.join(name))? == given & 0o777);
        fs::set_permissions(two.join(name), fs::Permissions::from_mode(given))?;
        as_user(1002, 1002, || file.write_all(b"#!/bin/evil"))?;
        drop(file);
        ensure!(fs::read(two.join(name))? == b"#!/bin/evil");
        for mount in &mounts {
            wait::holds("the privileges to end", SEEN, || {
                mode(mount.join(name)).is_ok_and(|mode| mode == 0o777)
            })?;
        }
    }
    finish(cluster, &mounts)
}

#[test]
fn whoever_comes_second_opens_what_the_first_has_made() -> Result<()> {
    let cluster = DevCluster::builder().start()?;
    let mounts = two_mounts(&cluster)?;
    // Both make the same names at the same time; neither asked whether it is the first.
    let start = std::sync::Barrier::new(2);
    let make = |mount: &PathBuf| -> Result<()> {
        let one = |n: usize| -> std::io::Result<()> {
            start.wait();
            let path = mount.join(format!("f{n}"));
            File::options().append(true).create(true).open(path)?.write_all(b"x")
        };
        // All of them, also after a failure: the other one waits at the barrier.
        let outcomes: Vec<_> = (0..FILES).map(one).collect();
        outcomes.into_iter().try_for_each(|outcome| outcome.map_err(Into::into))
    };
    let make = &make;
    std::thread::scope(|scope| {
        let makers = mounts.each_ref().map(|mount| scope.spawn(move || make(mount)));
        makers.into_iter().try_for_each(|maker| maker.join().expect("no maker panics"))
    })?;
    for n in 0..FILES {
        let text = fs::read(mounts[0].join(format!("f{n}")))?;
        ensure!(text == b"xx", "f{n}: {text:?}");
    }
    finish(cluster, &mounts)
}
