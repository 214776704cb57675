//! `atoll stat`: the attributes of files in the cluster.

use atoll_proto::namespace::{Attr, FileKind};
use clap::Args;
use serde::Serialize;

use super::ls::{EntryObject, PathParser, letter};
use crate::cluster_path::{ClusterPath, open, read_link, resolve};
use crate::connect::Context;
use crate::report::Failure;
use crate::text;

/// Show what the cluster knows about files
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll stat /photos/sea.jpg
  atoll stat /photos --json")]
pub(crate) struct StatArgs {
    /// Absolute paths in the cluster
    #[arg(value_name = "PATH", required = true, value_parser = PathParser)]
    paths: Vec<ClusterPath>,
}

#[derive(Serialize)]
struct StatObject {
    path: String,
    #[serde(flatten)]
    entry: EntryObject,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunks: Option<usize>,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: StatArgs) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    for path in &args.paths {
        let attr = resolve(&cluster, path).await?;
        let mut stat = StatObject {
            path: path.to_string(),
            entry: EntryObject::new(path.name().unwrap_or(b"/"), &attr),
            version: attr.version,
            target: None,
            content: None,
            chunks: None,
        };
        match attr.kind {
            FileKind::Symlink => {
                let target = read_link(&cluster, path, attr.inode).await?;
                stat.target = Some(text::name(&target));
            }
            FileKind::File => {
                let (_, content) = open(&cluster, path, attr.inode).await?;
                stat.content = Some(content.id().to_string());
                stat.chunks = Some(cluster.extents(&content).await?.len());
            }
            FileKind::Directory | FileKind::Special(_) => {}
        }
        if context.out.json() {
            context.out.object(&stat)?;
        } else {
            show(context, &attr, &stat)?;
        }
    }
    Ok(())
}

fn show(context: &Context, attr: &Attr, stat: &StatObject) -> Result<(), Failure> {
    let out = &context.out;
    let arrow = stat.target.as_ref().map(|target| format!(" -> {target}")).unwrap_or_default();
    out.line(format_args!("path      {}{arrow}", stat.path))?;
    out.line(format_args!("mode      {}", text::mode(letter(attr.kind), attr.mode)))?;
    out.line(format_args!("size      {} bytes", attr.size))?;
    out.line(format_args!("owner     {}:{}", attr.uid, attr.gid))?;
    out.line(format_args!("links     {}", attr.nlink))?;
    out.line(format_args!("modified  {} UTC", text::utc(attr.mtime_ns.div_euclid(1_000_000))))?;
    out.line(format_args!("changed   {} UTC", text::utc(attr.ctime_ns.div_euclid(1_000_000))))?;
    out.line(format_args!("inode     {} at version {}", attr.inode, attr.version))?;
    if let (Some(content), Some(chunks)) = (&stat.content, stat.chunks) {
        out.line(format_args!("content   {content} in {}", text::count(chunks as u64, "chunk")))?;
    }
    Ok(())
}
