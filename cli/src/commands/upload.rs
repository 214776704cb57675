//! `atoll upload`: local files into the cluster's file system, without a mount.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_client::{ChunkWriter, Cluster, DeployProgress, UploadedFile, upload_file};
use atoll_proto::namespace::{FileKind, NamespaceOp, SetAttr};
use atoll_proto::{ByteName, InodeId};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::ls::PathParser;
use super::mkdir::caller;
use crate::cluster_path::{ClusterPath, is_directory, resolve, resolve_maybe};
use crate::connect::Context;
use crate::progress::Progress;
use crate::report::Failure;
use crate::scan::{mtime_ns, special};
use crate::text;

/// Files under way at a time.
const PARALLEL: usize = 16;

/// Copy local files and directories into the cluster's file system. Run it again after an
/// interruption: what is there does not travel twice
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll upload notes.txt /notes.txt
  atoll upload ./photos /
  atoll upload ./public/. /sites/blog
  atoll upload a.jpg b.jpg /photos/
  atoll upload --reupload ./photos /

As with cp -r: into DST if that is a directory, else as DST. Modes, times and symbolic links are
kept.")]
pub(crate) struct UploadArgs {
    /// Local files and directories
    #[arg(value_name = "SRC", required = true)]
    sources: Vec<PathBuf>,
    /// Absolute path in the cluster
    #[arg(value_name = "DST", value_parser = PathParser)]
    target: ClusterPath,
    /// Send every chunk, also those the cluster says it has: mends what `atoll fsck` calls lost
    #[arg(long)]
    reupload: bool,
}

/// The final object.
#[derive(Debug, Default, Serialize)]
struct DoneObject {
    event: &'static str,
    files: u64,
    directories: u64,
    symlinks: u64,
    bytes: u64,
    bytes_uploaded: u64,
    elapsed_ms: u64,
}

/// What is to be made in the cluster.
#[derive(Debug, Default)]
struct Plan {
    /// Parents before children.
    directories: Vec<(ClusterPath, Metadata)>,
    files: Vec<(PathBuf, ClusterPath, Metadata)>,
    links: Vec<(ClusterPath, Vec<u8>)>,
    bytes: u64,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: UploadArgs) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    for source in &args.sources {
        fs::symlink_metadata(source).map_err(Failure::file("read", source))?;
    }
    let cluster = context.cluster().await?;
    let into = is_directory(&cluster, &args.target).await?;
    if !into && args.sources.len() > 1 && !args.target.slash {
        return Err(Failure::Failed(format!(
            "{}: is not a directory, and several files are to go there",
            args.target
        )));
    }
    let mut plan = Plan::default();
    for source in &args.sources {
        plan.add_source(source, &args.target, into)?;
    }
    let done = carry_out(context, &cluster, plan, args.reupload).await?;
    let done = DoneObject {
        elapsed_ms: super::published::millis(started.elapsed()),
        event: "done",
        ..done
    };
    if context.out.json() {
        return context.out.object(&done);
    }
    context.out.note(format_args!(
        "uploaded {} ({}), of which {} had to travel, in {}",
        text::count(done.files, "file"),
        text::bytes(done.bytes),
        text::bytes(done.bytes_uploaded),
        text::duration_ms(done.elapsed_ms),
    ));
    Ok(())
}

impl Plan {
    /// One source of the command line, placed as cp(1) would.
    fn add_source(
        &mut self,
        source: &Path,
        target: &ClusterPath,
        into: bool,
    ) -> Result<(), Failure> {
        let typed = source.as_os_str().as_bytes();
        let contents = typed == b"." || typed.ends_with(b"/.") || typed.ends_with(b"/./");
        // A link named on the command line is meant as what it points at.
        let meta = fs::metadata(source).map_err(Failure::file("read", source))?;
        let name = match source.file_name() {
            Some(name) if !contents => name.to_owned(),
            _ => {
                let real = fs::canonicalize(source).map_err(Failure::file("read", source))?;
                real.file_name().unwrap_or(OsStr::new("")).to_owned()
            }
        };
        let inside = into || (target.slash && !meta.is_dir());
        let to = if contents || !inside { target.clone() } else { target.join(name.as_bytes()) };
        let to = to.without_slash();
        if to.is_root() && !meta.is_dir() {
            return Err(Failure::Failed("/: is a directory".to_owned()));
        }
        self.add(source, to, meta)
    }

    fn add(&mut self, disk: &Path, to: ClusterPath, meta: Metadata) -> Result<(), Failure> {
        if let Some(kind) = special(&meta) {
            let shown = text::name(disk.as_os_str().as_bytes());
            return Err(Failure::Failed(format!("{shown}: is a {kind}; nothing was uploaded")));
        }
        if meta.file_type().is_symlink() {
            let target = fs::read_link(disk).map_err(Failure::file("read", disk))?;
            self.links.push((to, target.as_os_str().as_bytes().to_vec()));
            return Ok(());
        }
        if meta.is_file() {
            nix::unistd::eaccess(disk, nix::unistd::AccessFlags::R_OK)
                .map_err(|error| Failure::file("read", disk)(error.into()))?;
            self.bytes += meta.len();
            self.files.push((disk.to_owned(), to, meta));
            return Ok(());
        }
        self.directories.push((to.clone(), meta));
        for entry in fs::read_dir(disk).map_err(Failure::file("read", disk))? {
            let entry = entry.map_err(Failure::file("read", disk))?;
            let path = entry.path();
            let meta = entry.metadata().map_err(Failure::file("read", &path))?;
            self.add(&path, to.join(entry.file_name().as_bytes()), meta)?;
        }
        Ok(())
    }
}

async fn carry_out(
    context: &Context,
    cluster: &Cluster,
    plan: Plan,
    reupload: bool,
) -> Result<DoneObject, Failure> {
    for (path, meta) in plan.directories.iter().filter(|(path, _)| !path.is_root()) {
        let mode = meta.permissions().mode() & 0o7777;
        let op = NamespaceOp::MakeDirs { path: path.bytes(), mode, caller: caller() };
        cluster.namespace(op).await.map_err(Failure::at(path))?;
    }
    let mut done = DoneObject {
        directories: plan.directories.len() as u64,
        symlinks: plan.links.len() as u64,
        files: plan.files.len() as u64,
        ..DoneObject::default()
    };
    let progress = Progress::new(&context.out);
    progress.phase("upload");
    progress.expect(plan.bytes);
    let progress = Arc::new(progress);
    let writer = cluster.writer();
    let mut uploads = futures_util::stream::iter(plan.files)
        .map(|(disk, to, meta)| upload_one(cluster, &writer, &progress, (disk, to, meta), reupload))
        .buffer_unordered(PARALLEL);
    let result: Result<(), Failure> = async {
        while let Some(file) = uploads.try_next().await? {
            done.bytes += file.bytes;
            done.bytes_uploaded += file.bytes_uploaded;
        }
        Ok(())
    }
    .await;
    progress.clear();
    result?;
    for (path, target) in plan.links {
        make_link(cluster, &path, ByteName(target)).await?;
    }
    // Last, because making entries changes it. Children before parents for the same reason.
    for (path, meta) in plan.directories.iter().rev().filter(|(path, _)| !path.is_root()) {
        let inode = resolve(cluster, path).await?.inode;
        let set = SetAttr {
            mode: Some(meta.permissions().mode() & 0o7777),
            mtime_ns: Some(mtime_ns(meta)),
            ..SetAttr::default()
        };
        cluster.namespace(NamespaceOp::SetAttr { inode, set }).await.map_err(Failure::at(path))?;
    }
    Ok(done)
}

async fn upload_one(
    cluster: &Cluster,
    writer: &ChunkWriter,
    progress: &Progress,
    (disk, to, meta): (PathBuf, ClusterPath, Metadata),
    reupload: bool,
) -> Result<UploadedFile, Failure> {
    let mode = meta.permissions().mode() & 0o7777;
    let sent = |bytes| progress.sent(bytes);
    let (dst, mtime_ns) = (to.bytes(), mtime_ns(&meta));
    let uploading =
        upload_file(cluster, writer, &disk, dst, mode, caller(), mtime_ns, reupload, &sent);
    let shown = text::name(disk.as_os_str().as_bytes());
    uploading.await.map_err(Failure::at(format_args!("{shown} to {to}")))
}

/// Makes a symbolic link, in the place of another one or of a file.
pub(crate) async fn make_link(
    cluster: &Cluster,
    path: &ClusterPath,
    target: ByteName,
) -> Result<(), Failure> {
    put_in_place(cluster, path, |parent, name| NamespaceOp::Symlink {
        parent,
        name,
        target,
        caller: caller(),
    })
    .await
}

/// Makes something under a path, in the place of another one or of a file.
pub(crate) async fn put_in_place(
    cluster: &Cluster,
    path: &ClusterPath,
    make: impl FnOnce(InodeId, ByteName) -> NamespaceOp,
) -> Result<(), Failure> {
    let Some(name) = path.name() else {
        return Err(Failure::Failed("/: is a directory".to_owned()));
    };
    let above = path.parent();
    let op = NamespaceOp::MakeDirs { path: above.bytes(), mode: 0o755, caller: caller() };
    if !above.is_root() {
        cluster.namespace(op).await.map_err(Failure::at(&above))?;
    }
    let parent = resolve(cluster, &above).await?.inode;
    let name = ByteName(name.to_vec());
    if let Some(there) = resolve_maybe(cluster, path).await?
        && there.kind != FileKind::Directory
    {
        let op = NamespaceOp::Unlink { parent, name: name.clone() };
        cluster.namespace(op).await.map_err(Failure::at(path))?;
    }
    cluster.namespace(make(parent, name)).await.map_err(Failure::at(path))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn planned(source: &str, target: &str, into: bool) -> Vec<String> {
        let mut plan = Plan::default();
        plan.add_source(Path::new(source), &ClusterPath::parse(OsStr::new(target)).unwrap(), into)
            .unwrap();
        let mut all: Vec<String> =
            plan.directories.iter().map(|(to, _)| format!("{to}/")).collect();
        all.extend(plan.files.iter().map(|(_, to, _)| to.to_string()));
        all.extend(plan.links.iter().map(|(to, _)| format!("{to}@")));
        all.sort();
        all
    }

    #[test]
    fn places_are_those_of_cp_r() {
        let dir = tempfile::tempdir().unwrap();
        let src = dir.path().join("src");
        fs::create_dir(&src).unwrap();
        fs::write(src.join("f"), "x").unwrap();
        std::os::unix::fs::symlink("f", src.join("l")).unwrap();
        let src = src.to_str().unwrap();
        let whole = ["/d/src/", "/d/src/f", "/d/src/l@"];
        assert_eq!(planned(src, "/d", true), whole);
        assert_eq!(planned(&format!("{src}/"), "/d/", true), whole);
        assert_eq!(planned(src, "/d", false), ["/d/", "/d/f", "/d/l@"]);
        assert_eq!(planned(&format!("{src}/."), "/d", true), ["/d/", "/d/f", "/d/l@"]);
        assert_eq!(planned(&format!("{src}/f"), "/d/", false), ["/d/f"]);
        assert_eq!(planned(&format!("{src}/f"), "/d", false), ["/d"]);
        assert_eq!(planned(&format!("{src}/f"), "/", true), ["/f"]);
    }
}
