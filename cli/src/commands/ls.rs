//! `atoll ls`: what is in a directory of the cluster's file system.

use std::os::unix::ffi::OsStrExt;

use atoll_proto::ByteName;
use atoll_proto::namespace::{Attr, DirEntry, FileKind, Special};
use clap::Args;
use serde::Serialize;

use crate::cluster_path::{ClusterPath, read_dir, read_link, resolve_following};
use crate::connect::Context;
use crate::report::Failure;
use crate::{table, text};

/// List a directory of the cluster's file system
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll ls /
  atoll ls -l /photos
  atoll ls /photos --json")]
pub(crate) struct LsArgs {
    /// Absolute path in the cluster
    #[arg(value_name = "PATH", default_value = "/", value_parser = PathParser)]
    path: ClusterPath,
    /// Mode, owner, size and time too
    #[arg(short, long)]
    long: bool,
}

/// Reads cluster paths from the command line; they need not be UTF-8.
#[derive(Debug, Clone)]
pub(crate) struct PathParser;

impl clap::builder::TypedValueParser for PathParser {
    type Value = ClusterPath;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<ClusterPath, clap::Error> {
        ClusterPath::parse(value).map_err(|error| {
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{error}\n"))
                .with_cmd(command)
        })
    }
}

/// One entry, for programs.
#[derive(Serialize)]
pub(crate) struct EntryObject {
    pub(crate) name: String,
    /// The name's bytes, when they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name_hex: Option<String>,
    pub(crate) kind: &'static str,
    /// The number of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<u32>,
    pub(crate) inode: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    pub(crate) size: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
}

#[derive(Serialize)]
struct ListObject {
    path: String,
    entries: Vec<EntryObject>,
}

impl EntryObject {
    pub(crate) fn new(name: &[u8], attr: &Attr) -> Self {
        let not_text = std::str::from_utf8(name).is_err();
        Self {
            name: String::from_utf8_lossy(name).into_owned(),
            name_hex: not_text.then(|| atoll_proto::ids::hex(name)),
            kind: word(attr.kind),
            device: match attr.kind {
                FileKind::Special(Special::CharDevice(device) | Special::BlockDevice(device)) => {
                    Some(device)
                }
                _ => None,
            },
            inode: attr.inode.0,
            mode: attr.permissions(),
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            size: attr.size,
            mtime_ns: attr.mtime_ns,
            ctime_ns: attr.ctime_ns,
        }
    }
}

/// Does it.
pub(crate) async fn run(context: &Context, args: LsArgs) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    let (path, attr) = resolve_following(&cluster, &args.path).await?;
    let entries = match attr.kind {
        FileKind::Directory => read_dir(&cluster, &path, attr.inode).await?,
        _ => vec![DirEntry { name: ByteName(args.path.name().unwrap_or(b"/").to_vec()), attr }],
    };
    if context.out.json() {
        let entries =
            entries.iter().map(|entry| EntryObject::new(entry.name.as_bytes(), &entry.attr));
        let path = args.path.to_string();
        return context.out.object(&ListObject { path, entries: entries.collect() });
    }
    if args.long {
        return long(context, &cluster, &path, entries).await;
    }
    for entry in entries {
        let name = entry.name.as_bytes();
        // Raw for programs, harmless for terminals, as ls(1) does.
        if context.out.is_terminal() {
            context.out.line(text::name(name))?;
        } else {
            context.out.bytes(name)?;
            context.out.bytes(b"\n")?;
        }
    }
    Ok(())
}

async fn long(
    context: &Context,
    cluster: &atoll_client::Cluster,
    path: &ClusterPath,
    entries: Vec<DirEntry>,
) -> Result<(), Failure> {
    let mut rows = Vec::with_capacity(entries.len());
    for entry in entries {
        let attr = &entry.attr;
        let mut name = text::name(entry.name.as_bytes());
        if attr.kind == FileKind::Symlink {
            let target = read_link(cluster, path, attr.inode).await?;
            let target = std::ffi::OsStr::from_bytes(&target);
            name = format!("{name} -> {}", text::name(target.as_bytes()));
        }
        rows.push(vec![
            text::mode(letter(attr.kind), attr.mode),
            attr.nlink.to_string(),
            attr.uid.to_string(),
            attr.gid.to_string(),
            attr.size.to_string(),
            text::utc(attr.mtime_ns.div_euclid(1_000_000)),
            name,
        ]);
    }
    if rows.is_empty() {
        return Ok(());
    }
    let heading = ["mode", ">links", ">uid", ">gid", ">size", "modified (UTC)", "name"];
    context.out.line(table::render(&heading, &rows))
}

/// The letter `ls -l` uses.
pub(crate) fn letter(kind: FileKind) -> char {
    match kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Special(Special::Fifo) => 'p',
        FileKind::Special(Special::Socket) => 's',
        FileKind::Special(Special::CharDevice(_)) => 'c',
        FileKind::Special(Special::BlockDevice(_)) => 'b',
    }
}

/// The word for programs.
fn word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Special(Special::Fifo) => "fifo",
        FileKind::Special(Special::Socket) => "socket",
        FileKind::Special(Special::CharDevice(_)) => "chardevice",
        FileKind::Special(Special::BlockDevice(_)) => "blockdevice",
    }
}
