//! The library in processes of its own: this test's executable, started again.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::control::Line;
use super::*;
use crate::process::Running;

const SECOND: i64 = 1_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_line_goes_on_from_where_it_was_at_every_rate() {
    let mut line = Line::TRUE;
    let mut before = 0;
    let mut now = 40_000 * SECOND + 7;
    for ppm in [4900, -4900, 0, 900_000, -999_000, -999_999_999, 1, 4900] {
        line = line.at_rate(now, ppm);
        for step in [0, 1, 999, 1_000_001, 3 * SECOND, 0] {
            now += step;
            let shown = line.shown(now);
            assert!(shown >= before, "{line:?} at {now}");
            // Who waits until then wakes neither before nor much later.
            let wakes = line.kernel(shown);
            assert!(wakes <= now && line.shown(wakes) >= shown, "{line:?} at {now}: {wakes}");
            before = shown;
        }
    }
    let at = Line::TRUE.at_rate(SECOND, -4900);
    assert_eq!(at.shown(1001 * SECOND), SECOND + 1000 * (SECOND - SECOND / 10_000 * 49));
    assert_eq!(at.moved(SECOND, 5).shown(SECOND), SECOND + 5);
    assert_eq!(at.shown(0), SECOND, "it stands before it begins");
    assert_eq!(at.kernel(i64::MAX), i64::MAX);
    at.at_rate(i64::MAX, 4900).shown(i64::MAX);
}

/// A test of this executable that is not run by itself, with the library.
fn child(name: &str, file: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
    command.args(["--exact", &name, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("LD_PRELOAD", find_library().unwrap()).env(control::VARIABLE, file);
    command.stdin(Stdio::null());
    command
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

#[test]
fn a_process_sees_the_clocks_and_the_disk_that_it_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("machine");
    let machine = NodeShim::create(&file).unwrap();
    machine.set_wall(-7200);
    machine.skip_boot_time(Duration::from_secs(5000));
    machine.slow_syncs(Duration::from_millis(60));
    let outcome = process::run(child("sees", &file), PATIENCE).unwrap().ok().unwrap();
    let told = outcome.text();
    let line = told.lines().find(|line| line.starts_with("sees: ")).unwrap();
    let seen: Vec<i64> = line.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
    let [boot, monotonic, wall_secs] = seen[..] else { panic!("{told}") };
    let near = |ns: i64, expected: i64| (ns - expected).abs() < 120 * SECOND;
    assert!(near(boot, kernel_ns(BOOT) + 5000 * SECOND), "{told}");
    assert!(near(monotonic, kernel_ns(MONOTONIC)), "{told}");
    assert!(near(wall_secs * SECOND, (wall().as_secs() as i64 - 7200) * SECOND), "{told}");
    assert_eq!(machine.syncs(), 2);
    assert_ne!(machine.control.reader(), 0);
}

#[test]
#[ignore = "the process of the test above"]
fn sees() {
    let (boot, monotonic) = (kernel_ns(BOOT), kernel_ns(MONOTONIC));
    println!("\nsees: {boot} {monotonic} {}", wall().as_secs());
    let file = tempfile::tempfile().unwrap();
    let begun = Instant::now();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(120), "{:?}", begun.elapsed());
}

#[test]
fn no_clock_goes_back_and_no_wait_is_lost_while_rates_change() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("machine");
    let machine = NodeShim::create(&file).unwrap();
    machine.run_at(-500_000);
    let mut running = Running::start(child("watches", &file)).unwrap();
    wait::holds("it has begun", PATIENCE, || machine.control.reader() == running.pid()).unwrap();
    let begun = Instant::now();
    for ppm in [900_000, -900_000, 4900, -4900, 0].into_iter().cycle() {
        machine.run_at(ppm);
        if running.ended().unwrap() || begun.elapsed() > PATIENCE {
            break;
        }
        std::thread::yield_now();
    }
    running.finish(PATIENCE).unwrap().ok().unwrap();
}

/// Threads that look at the clocks, and one whose waits must end: they may be short, as a wait that is
/// under way when a clock changes ends when it would have.
#[test]
#[ignore = "the process of the test above"]
fn watches() {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (mut boot, mut monotonic) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    let (later_boot, later) = (kernel_ns(BOOT), kernel_ns(MONOTONIC));
                    assert!(later_boot >= boot && later >= monotonic);
                    (boot, monotonic) = (later_boot, later);
                }
            });
        }
        let (lock, condition) = (Mutex::new(()), Condvar::new());
        for _ in 0..100 {
            let mut guard = lock.lock().unwrap();
            let mut over = false;
            while !over {
                let (back, ended) =
                    condition.wait_timeout(guard, Duration::from_millis(3)).unwrap();
                (guard, over) = (back, ended.timed_out());
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn waits_end_by_the_clock_that_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("machine");
    let machine = NodeShim::create(&file).unwrap();
    // Behind the kernel's, where it would not wait at all.
    machine.fall_asleep();
    std::thread::sleep(Duration::from_millis(500));
    machine.wake();
    process::run(child("waits", &file), PATIENCE).unwrap().ok().unwrap();
    // Far ahead of it, where it would wait for minutes.
    machine.run_at(1_000_000_000);
    std::thread::sleep(Duration::from_millis(150));
    machine.run_at(-500_000);
    process::run(child("waits", &file), PATIENCE).unwrap().ok().unwrap();
}

#[test]
#[ignore = "the process of the test above"]
fn waits() {
    let (lock, condition) = (Mutex::new(()), Condvar::new());
    let length = Duration::from_millis(100);
    loop {
        let begun = Instant::now();
        let (_guard, ended) = condition.wait_timeout(lock.lock().unwrap(), length).unwrap();
        if ended.timed_out() {
            assert!(begun.elapsed() >= length, "{:?}", begun.elapsed());
            break;
        }
    }
}

#[test]
fn what_is_no_control_file_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("machine");
    std::fs::write(&file, vec![7; control::FILE_BYTES]).unwrap();
    let outcome = process::run(child("waits", &file), PATIENCE).unwrap();
    assert!(outcome.code.is_none() && outcome.stderr.contains("another version"), "{outcome}");
    // A folder without a file of its name changes nothing.
    let outcome = process::run(child("waits", folder.path()), PATIENCE).unwrap();
    outcome.ok().unwrap();
}

#[test]
fn a_machine_that_slept_has_lost_no_time_but_by_the_clock_that_counts_sleep() {
    let folder = tempfile::tempdir().unwrap();
    let machine = NodeShim::create(&folder.path().join("machine")).unwrap();
    machine.run_at(4900);
    let shown = |machine: &NodeShim| {
        machine.control.with(|odd| {
            (odd.boot.shown(kernel_ns(BOOT)), odd.monotonic.shown(kernel_ns(MONOTONIC)))
        })
    };
    machine.fall_asleep();
    let asleep = machine.asleep().unwrap();
    let (boot, _) = shown(&machine);
    std::thread::sleep(Duration::from_millis(50));
    machine.wake();
    let (boot_then, monotonic) = shown(&machine);
    assert!(boot_then - boot >= 50_000_000);
    assert!(monotonic >= asleep && monotonic - asleep < boot_then - boot, "{monotonic} {asleep}");
    machine.wake();
    assert!(shown(&machine).1 >= monotonic, "who does not sleep does not wake");
}
