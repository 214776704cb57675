//! The mount: one large file written and read, many small ones made.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use atoll_testbed::DevCluster;
use atoll_testbed::seed;
use atoll_testbed::tree::random;

use crate::Scale;
use crate::table::{Report, Table, figure, median};

const MIB: usize = 1 << 20;

/// Measures.
pub(crate) fn measure(cluster: &DevCluster, scale: Scale, report: &mut Report) -> Result<()> {
    let mut table = Table::new("The mount", &["workload", "per second", "unit"]);
    let mount = cluster.mount();
    let size_mib = scale.of(512).max(64);
    let mut add = |name: String, value: f64, unit: &str| {
        table.row([name, figure(value), unit.to_owned()]);
    };
    let mut written = Vec::new();
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let path = mount.join(format!("large-{round}.bin"));
        written.push(write(&path, size_mib)?);
        let dropped = fs::write("/proc/sys/vm/drop_caches", "3").is_ok();
        let first = read(&path, size_mib)?;
        if dropped {
            cold.push(first);
        }
        warm.push(read(&path, size_mib)?);
        fs::remove_file(&path)?;
    }
    add(
        format!("sequential write of {size_mib} MiB with fsync, median of 3"),
        median(written),
        "MiB",
    );
    if !cold.is_empty() {
        add("sequential read, kernel cache empty".to_owned(), median(cold), "MiB");
    }
    add("sequential read again".to_owned(), median(warm), "MiB");
    for threads in [1, 4] {
        let count = scale.of(2000);
        let value = create(&mount.join(format!("small-{threads}")), threads, count)?;
        let name = format!("create + write 4 KiB + close, {threads} thread(s), {count} files");
        add(name, value, "files");
    }
    report.add(table);
    Ok(())
}

fn write(path: &Path, size_mib: usize) -> Result<f64> {
    // Other bytes in every block: nothing may be found to be there already.
    let block = random(&mut seed::rng(size_mib as u64), 2 * MIB);
    let start = Instant::now();
    let mut file = File::create(path)?;
    for number in 0..size_mib {
        file.write_all(&(start.elapsed().as_nanos() as u64 ^ number as u64).to_le_bytes())?;
        let shift = number % MIB;
        file.write_all(&block[shift..shift + MIB - 8])?;
    }
    file.sync_all()?;
    drop(file);
    Ok(size_mib as f64 / start.elapsed().as_secs_f64())
}

fn read(path: &Path, size_mib: usize) -> Result<f64> {
    let start = Instant::now();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; MIB];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => total += length,
        }
    }
    ensure!(total == size_mib * MIB, "{total} bytes read of {size_mib} MiB");
    Ok(size_mib as f64 / start.elapsed().as_secs_f64())
}

fn create(folder: &Path, threads: usize, count: usize) -> Result<f64> {
    fs::create_dir(folder)?;
    let start = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let folder = folder.join(thread.to_string());
            std::thread::spawn(move || -> Result<()> {
                fs::create_dir(&folder)?;
                let mut content = random(&mut seed::rng(thread as u64), 4096).to_vec();
                for number in 0..count / threads {
                    content[..8].copy_from_slice(&(number as u64).to_le_bytes());
                    fs::write(folder.join(format!("f{number}")), &content)?;
                }
                Ok(())
            })
        })
        .collect();
    for worker in workers {
        worker.join().map_err(|_| anyhow!("a writer panicked"))??;
    }
    Ok((count / threads * threads) as f64 / start.elapsed().as_secs_f64())
}
