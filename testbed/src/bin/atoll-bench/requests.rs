//! Requests per second and the edge's CPU time per request, for files in its memory.
//!
//! The load comes from this process, on the same cores: requests per second are the pair's,
//! CPU-µs per request are the edge's alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::tree::random;
use atoll_testbed::{DevCluster, Node, Tree, process, seed};

use crate::Scale;
use crate::table::{Report, Table, figure};

const SITE: &str = "load";
const CONNECTIONS: usize = 64;
const SIZES: [(&str, usize); 2] = [("1 KiB", 1 << 10), ("100 KiB", 100 << 10)];

/// Measures.
pub(crate) async fn measure(cluster: &DevCluster, scale: Scale, report: &mut Report) -> Result<()> {
    let mut rng = seed::rng(2);
    let mut tree = Tree::default();
    for (number, (_, size)) in SIZES.iter().enumerate() {
        tree.put(&format!("{number}.bin"), random(&mut rng, *size));
    }
    let source = cluster.work().join(SITE);
    tree.write(&source)?;
    cluster.deploy(&source, SITE)?;

    let title = format!("Requests for cached files, {CONNECTIONS} connections");
    let heading = ["workload", "requests/s", "edge CPU-µs per request", "MiB/s"];
    let mut table = Table::new(&title, &heading);
    let node = Node::edge(1);
    let ready = cluster.ready();
    let addr = ready.edge(node).context("there is an edge")?.https;
    let pid = cluster.pid(node).context("the edge runs")?;
    for (number, (name, size)) in SIZES.iter().enumerate() {
        for version in Version::ALL {
            let load = Load { cluster, addr, version, path: format!("/{number}.bin"), size: *size };
            let seconds = if scale.quick { 1 } else { 6 };
            let measured = load.run(pid, Duration::from_secs(seconds)).await?;
            let per_second = measured.requests as f64 / measured.elapsed.as_secs_f64();
            let cpu_us = measured.cpu.as_secs_f64() * 1e6 / measured.requests as f64;
            let mib = per_second * *size as f64 / f64::from(1 << 20);
            table.row([
                format!("{version:?}, {name}"),
                figure(per_second),
                figure(cpu_us),
                figure(mib),
            ]);
        }
    }
    table.note("The load is made on the same cores by this program's own clients (hyper, h3).");
    report.add(table);
    Ok(())
}

struct Measured {
    requests: u64,
    elapsed: Duration,
    cpu: Duration,
}

struct Load<'a> {
    cluster: &'a DevCluster,
    addr: SocketAddr,
    version: Version,
    path: String,
    size: usize,
}

impl Load<'_> {
    async fn run(&self, pid: u32, duration: Duration) -> Result<Measured> {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let mut visitors = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = self.cluster.visit(self.version, self.addr, SITE).await?;
            let warm = connection.get(&self.path).await?;
            ensure!(warm.status == 200 && warm.body.len() == self.size, "{warm:?}");
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            let (path, size) = (self.path.clone(), self.size);
            visitors.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = connection.get(&path).await?;
                    ensure!(answer.status == 200 && answer.body.len() == size, "{answer:?}");
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        tokio::time::sleep(duration / 4).await; // until the load is even
        let (begin, from) = (Instant::now(), count.load(Ordering::Relaxed));
        let cpu_from = process::cpu_time(pid)?;
        tokio::time::sleep(duration).await; // how long is measured
        let (elapsed, to) = (begin.elapsed(), count.load(Ordering::Relaxed));
        let cpu = process::cpu_time(pid)?.saturating_sub(cpu_from);
        stop.store(true, Ordering::Relaxed);
        for visitor in visitors {
            visitor.await??;
        }
        ensure!(to > from, "not one request was answered");
        Ok(Measured { requests: to - from, elapsed, cpu })
    }
}
