//! How many changes of the file system the masters make per second, by the number of clients and of
//! masters, and what a file costs them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use atoll_client::Cluster;
use atoll_proto::namespace::{Caller, NamespaceOp, NamespaceReply};
use atoll_proto::{ByteName, InodeId};
use atoll_testbed::failover::percentile;
use atoll_testbed::metrics::Scrape;
use atoll_testbed::{DevCluster, Node, process};

use crate::Scale;
use crate::table::{Report, Table, figure};

/// Clients at a time, and files that they make together.
const LOADS: [(usize, usize); 3] = [(1, 4_000), (16, 40_000), (64, 100_000)];
/// Files for what one costs.
const FILES: usize = 1_000_000;
/// Clients that make them.
const MAKERS: usize = 64;
/// Files in one directory.
const DIRECTORY: usize = 10_000;
const CALLER: Caller = Caller { uid: 0, gid: 0 };

/// Measures, on a cluster of its own for each number of masters.
pub(crate) async fn measure(
    atoll: &Path,
    scale: Scale,
    files: Option<usize>,
    report: &mut Report,
) -> Result<()> {
    let columns = [
        "masters",
        "clients",
        "files",
        "files/s",
        "p50 ms",
        "p99 ms",
        "syncs per file",
        "CPU-µs per file",
    ];
    let mut table = Table::new("Changes of the file system", &columns);
    for masters in [1, 3] {
        let cluster = start(atoll, masters)?;
        for (clients, files) in LOADS {
            let files = scale.of(files);
            let before = Cost::of(&cluster)?;
            let made = make(&cluster, &format!("load-{clients}"), clients, files).await?;
            let after = Cost::of(&cluster)?;
            let per_file = |total: f64| total / files as f64;
            let ms = |percent| {
                percentile(&made.times, percent).unwrap_or_default().as_secs_f64() * 1000.0
            };
            table.row([
                masters.to_string(),
                clients.to_string(),
                files.to_string(),
                figure(files as f64 / made.elapsed.as_secs_f64()),
                figure(ms(50)),
                figure(ms(99)),
                format!("{:.3}", per_file(after.syncs - before.syncs)),
                figure(per_file((after.cpu - before.cpu) * 1e6)),
            ]);
        }
        cluster.finish()?;
    }
    table.note(
        "Empty files, made exclusively by name, one change each. Every client is a handle of the \
         client library with a session and a connection of its own, within the bench's process. \
         Syncs are those of the logs of all masters together, and so is the CPU time.",
    );
    report.add(table);
    size(atoll, files.unwrap_or_else(|| scale.of(FILES)), report).await
}

/// What many files cost a master on disk, in memory, and at its start.
async fn size(atoll: &Path, files: usize, report: &mut Report) -> Result<()> {
    let columns =
        ["files", "files/s", "bytes per file on disk", "log MiB", "memory MiB", "start s"];
    let mut table = Table::new("What a file costs a master", &columns);
    let cluster = start(atoll, 1)?;
    let master = Node::master(1);
    let data = cluster.ready().data(master).context("a master has data")?.to_owned();
    let empty = state_bytes(&data)?;
    let made = make(&cluster, "many", MAKERS, files).await?;
    let pid = cluster.pid(master).context("the master runs")?;
    let memory = memory_bytes(pid)?;
    // What is only in memory or in the write-ahead log is written into place by a restart.
    cluster.stop_node(master)?;
    let began = Instant::now();
    cluster.start_node(master)?;
    let started = began.elapsed();
    cluster.stop_node(master)?;
    let state = state_bytes(&data)?.saturating_sub(empty);
    let log = bytes_below(&data.join("log"))?;
    cluster.start_node(master)?;
    table.row([
        files.to_string(),
        figure(files as f64 / made.elapsed.as_secs_f64()),
        figure(state as f64 / files as f64),
        figure(log as f64 / f64::from(1 << 20)),
        figure(memory as f64 / f64::from(1 << 20)),
        figure(started.as_secs_f64()),
    ]);
    table.note(
        "One master. On disk: the state database after a restart, without the log and the last \
         snapshot, which shares most files with it. In memory: resident, right after the last file. \
         The start is until `atoll dev start` returns.",
    );
    report.add(table);
    cluster.finish()
}

fn start(atoll: &Path, masters: usize) -> Result<DevCluster> {
    let builder = DevCluster::builder().binary(atoll).masters(masters);
    builder.chunkservers(1).edges(1).shields(0).start()
}

struct Made {
    elapsed: Duration,
    times: Vec<Duration>,
}

/// Makes files by so many clients at once, each in turn in one of the directories.
async fn make(cluster: &DevCluster, place: &str, clients: usize, files: usize) -> Result<Made> {
    let first = cluster.client().await?;
    let mut directories = Vec::new();
    for number in 0..files.div_ceil(DIRECTORY) {
        directories.push(directory(&first, &format!("/{place}/{number}")).await?);
    }
    let mut handles = vec![first];
    while handles.len() < clients {
        handles.push(cluster.client().await?);
    }
    let (next, directories) = (Arc::new(AtomicUsize::new(0)), Arc::new(directories));
    let began = Instant::now();
    let work = handles.into_iter().map(|client| {
        let (next, directories) = (next.clone(), directories.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= files {
                    return anyhow::Ok(times);
                }
                let op = NamespaceOp::Create {
                    parent: directories[number / DIRECTORY],
                    name: ByteName(format!("file-{number:08}.html").into_bytes()),
                    mode: 0o644,
                    caller: CALLER,
                    exclusive: true,
                };
                let asked = Instant::now();
                client.namespace(op).await?;
                times.push(asked.elapsed());
            }
        })
    });
    let mut times = Vec::new();
    for one in work.collect::<Vec<_>>() {
        times.extend(one.await.context("a client panicked")??);
    }
    ensure!(times.len() == files, "{} files were made, not {files}", times.len());
    Ok(Made { elapsed: began.elapsed(), times })
}

async fn directory(client: &Cluster, path: &str) -> Result<InodeId> {
    let path = ByteName(path.as_bytes().to_vec());
    match client.namespace(NamespaceOp::MakeDirs { path, mode: 0o755, caller: CALLER }).await? {
        NamespaceReply::Attr { attr, .. } => Ok(attr.inode),
        other => bail!("making a directory gave {other:?}"),
    }
}

/// What all masters together have used so far.
struct Cost {
    syncs: f64,
    cpu: f64,
}

impl Cost {
    fn of(cluster: &DevCluster) -> Result<Cost> {
        let mut cost = Cost { syncs: 0.0, cpu: 0.0 };
        for master in &cluster.ready().masters {
            let admin = master.admin.context("masters tell where their metrics are")?;
            cost.syncs += Scrape::of(admin)?.sum("atoll_master_log_syncs_total");
            cost.cpu += process::cpu_time(master.pid)?.as_secs_f64();
        }
        Ok(cost)
    }
}

fn memory_bytes(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(number.context("/proc tells the resident size")? * 1024)
}

fn state_bytes(data: &Path) -> Result<u64> {
    let current = std::fs::read_to_string(data.join("state-current"))?;
    bytes_below(&data.join(current.trim()))
}

fn bytes_below(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        // Files come and go under a running process.
        let Ok(meta) = entry?.metadata() else { continue };
        sum += meta.len();
    }
    Ok(sum)
}
