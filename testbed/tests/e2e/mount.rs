//! The mount: what people do with a directory works, and lasts.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_testbed::{DevCluster, Outcome, Tree, process, seed, wait};

use super::{text, word};

/// Runs a script with `$1`, `$2`… as given; it must succeed.
fn sh(script: &str, arguments: &[&Path]) -> Result<Outcome> {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "sh"]).args(arguments);
    process::run(command, Duration::from_secs(120))?.ok()
}

#[test]
fn everyday_programs_work_on_the_mount() -> Result<()> {
    let seed = seed::or(13);
    let cluster = DevCluster::builder().edges(1).mounted().seed(seed).start()?;
    let mount = cluster.mount();
    let tree = Tree::generate(seed, 150);
    let source = cluster.work().join("tree");
    tree.write(&source)?;

    sh("cp -r \"$1\" \"$2/copied\" && diff -r \"$1\" \"$2/copied\"", &[&source, &mount])?;
    tree.ensure_equals(&Tree::read(&mount.join("copied"))?, "cp -r")?;
    sh("mv \"$1/copied\" \"$1/moved\" && test ! -e \"$1/copied\"", &[&mount])?;
    tree.ensure_equals(&Tree::read(&mount.join("moved"))?, "mv")?;
    sh(
        "tar -C \"$1\" -cf - . | (mkdir \"$2/untarred\" && tar -C \"$2/untarred\" -xf -) && \
        diff -r \"$1\" \"$2/untarred\"",
        &[&source, &mount],
    )?;
    sh("rsync -a \"$1/\" \"$2/synced/\" && diff -r \"$1\" \"$2/synced\"", &[&source, &mount])?;
    let again = sh("rsync -ai \"$1/\" \"$2/synced/\"", &[&source, &mount])?;
    ensure!(again.text().is_empty(), "rsync finds differences: {again}");
    sh("rm -r \"$1/moved\" && test ! -e \"$1/moved\"", &[&mount])?;

    git(&cluster)?;
    editors(&mount)?;
    offsets(&mount)?;
    directories(&mount)?;
    both_ways(&cluster)?;
    deploys_are_readable(&cluster, &source, &tree)?;
    cluster.ensure_all_run()?;
    cluster.finish()
}

fn git(cluster: &DevCluster) -> Result<()> {
    let script = "
        export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q \"$1\"; cd \"$1\"
        for i in $(seq 40); do mkdir -p d$((i % 5)); echo \"file $i\" > d$((i % 5))/f$i; done
        git add .; git commit -qm first
        git clone -q --no-hardlinks \"$1\" \"$2/clone\"
        cd \"$2/clone\"; test -z \"$(git status --porcelain)\"
        echo more >> d1/f1; git commit -qam second; git fsck --strict
        test \"$(git log --oneline | wc -l)\" = 2
        git gc -q; git fsck --strict";
    sh(script, &[&cluster.work().join("repository"), &cluster.mount()]).map(drop)
}

/// Write a new file, sync it, rename it over the old one: how editors save.
fn editors(mount: &Path) -> Result<()> {
    let (file, new) = (mount.join("edited.txt"), mount.join(".edited.txt.swp"));
    for round in 0..20 {
        let content = format!("round {round}\n").repeat(round * 50 + 1);
        let mut out = File::create(&new)?;
        out.write_all(content.as_bytes())?;
        out.sync_all()?;
        drop(out);
        fs::rename(&new, &file)?;
        ensure!(fs::read_to_string(&file)? == content, "round {round}");
        ensure!(!new.exists(), "the new file has two names");
    }
    Ok(())
}

/// Writes in the middle, appends, truncates; a reference in memory agrees.
fn offsets(mount: &Path) -> Result<()> {
    let path = mount.join("offsets.bin");
    let mut expected = vec![0u8; 3 << 20];
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    file.set_len(expected.len() as u64)?;
    for (number, at) in [0usize, 1, 4095, 1 << 19, (1 << 20) - 7, (2 << 20) + 3].iter().enumerate()
    {
        let content = vec![number as u8 + 1; 5000];
        file.write_all_at(&content, *at as u64)?;
        expected[*at..*at + 5000].copy_from_slice(&content);
    }
    file.sync_all()?;
    drop(file);
    ensure!(fs::read(&path)? == expected, "after writes in the middle");
    let mut file = File::options().append(true).open(&path)?;
    file.write_all(b"appended")?;
    drop(file);
    expected.extend_from_slice(b"appended");
    ensure!(fs::read(&path)? == expected, "after an append");
    let file = File::options().write(true).open(&path)?;
    file.set_len(1_500_000)?;
    file.set_len(1_600_000)?;
    drop(file);
    expected.truncate(1_500_000);
    expected.resize(1_600_000, 0);
    ensure!(fs::read(&path)? == expected, "after truncation");
    let mut file = File::open(&path)?;
    file.seek(SeekFrom::End(-10))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    ensure!(tail == [0; 10], "{tail:?}");
    Ok(())
}

fn directories(mount: &Path) -> Result<()> {
    let script = "
        cd \"$1\"; mkdir -p many/deep/er; cd many
        for i in $(seq 300); do : > \"file $i\"; done
        test \"$(ls | wc -l)\" = 301
        ln -s 'file 1' link; test \"$(readlink link)\" = 'file 1'
        chmod 640 'file 2'; test \"$(stat -c %a 'file 2')\" = 640
        touch -d '2001-02-03 04:05:06 UTC' 'file 3'
        test \"$(stat -c %Y 'file 3')\" = 981173106
        ! rmdir deep 2>/dev/null; ! mkdir deep 2>/dev/null; ! cat absent 2>/dev/null
        mv deep/er deep/renamed; test -d deep/renamed
        exec 3> open; rm open; echo still >&3; exec 3>&-
        test ! -e open
        cd ..; rm -r many; test ! -e many";
    sh(script, &[mount]).map(drop)
}

/// What one way in stores, the other finds.
fn both_ways(cluster: &DevCluster) -> Result<()> {
    let mount = cluster.mount();
    fs::create_dir(mount.join("shared"))?;
    fs::write(mount.join("shared/by-mount.txt"), "written by the mount")?;
    let found = cluster.atoll(&["cat", "/shared/by-mount.txt"])?.ok()?;
    ensure!(found.text() == "written by the mount", "{found}");
    let listed = cluster.atoll(&["ls", "/shared"])?.ok()?;
    ensure!(listed.text().contains("by-mount.txt"), "{listed}");

    let local = cluster.work().join("by-cli.txt");
    for round in 0..3 {
        let content = format!("written by the command line {round}");
        fs::write(&local, &content)?;
        cluster.atoll(&["upload", word(&local), "/shared/by-cli.txt"])?.ok()?;
        let path = mount.join("shared/by-cli.txt");
        wait::until("seen through the mount", Duration::from_secs(10), || {
            Ok((fs::read_to_string(&path)? == content).then_some(()))
        })?;
    }
    cluster.atoll(&["rm", "-r", "/shared"])?.ok()?;
    let path = mount.join("shared");
    wait::holds("gone from the mount", Duration::from_secs(10), || !path.exists())
}

fn deploys_are_readable(cluster: &DevCluster, source: &Path, tree: &Tree) -> Result<()> {
    let done = cluster.deploy(source, "shown")?;
    let deploy = cluster.mount().join(".sites/shown").join(text(&done, "deploy"));
    wait::holds("the deploy under /.sites", Duration::from_secs(10), || deploy.is_dir())?;
    sh("diff -r \"$1\" \"$2\"", &[source, &deploy])?;
    tree.ensure_equals(&Tree::read(&deploy)?, "/.sites")?;
    let error = fs::write(deploy.join("new"), "x").unwrap_err();
    ensure!(error.raw_os_error() == Some(libc::EROFS), "{error}");
    Ok(())
}

#[test]
fn what_was_synced_through_the_mount_survives_kill_9() -> Result<()> {
    let seed = seed::or(14);
    let cluster = DevCluster::builder().edges(1).mounted().seed(seed).start()?;
    let tree = Tree::generate(seed, 60);
    let kept = cluster.mount().join("kept");
    tree.write(&kept)?; // every file is closed, so every one is durable
    let mut file = File::create(cluster.mount().join("synced.txt"))?;
    file.write_all(b"synced")?;
    file.sync_all()?;
    cluster.kill9_dev()?;
    drop(file);
    cluster.start_dev()?;
    cluster.wait_healthy()?;
    ensure!(fs::read(cluster.mount().join("synced.txt"))? == b"synced", "the synced file");
    tree.ensure_equals(&Tree::read(&kept)?, "after kill -9")?;
    cluster.finish()
}
