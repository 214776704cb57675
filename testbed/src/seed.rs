//! One seed per test, and how to run it again with the same.

use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// The variable that overrides every seed.
pub const VARIABLE: &str = "ATOLL_SEED";

/// The seed given in the environment, or else this one: the same on every run, so that the gate
/// is green or red by what changed.
pub fn or(default: u64) -> u64 {
    std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A generator of this seed.
pub fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// The command that runs this program's test, or this run of the bench, again.
///
/// May be called from any thread: a cluster is often dropped on one of a runtime's own.
pub fn command_to_repeat(seed: u64) -> String {
    let arguments: Vec<String> = std::env::args().collect();
    let runner = std::env::var("NEXTEST_TEST_NAME").ok();
    let current = std::thread::current();
    match test_name(runner.as_deref(), &arguments, current.name()) {
        // Building the tests does not build the binary that they start.
        Some(test) => format!(
            "cargo build --release --workspace --bins && \
             {VARIABLE}={seed} cargo nextest run --release --workspace -E 'test(={test})'"
        ),
        None => command_line(&arguments, seed),
    }
}

/// The test that runs: as the runner names it, as the command line names the only one, or as the
/// test harness names its threads.
fn test_name(runner: Option<&str>, arguments: &[String], thread: Option<&str>) -> Option<String> {
    if let Some(name) = runner {
        return Some(name.to_owned());
    }
    if arguments.iter().any(|word| word == "--exact") {
        let name = arguments.iter().skip(1).find(|word| !word.starts_with('-'));
        return name.cloned();
    }
    // The names of tests are paths; other threads are named by libraries and by the bench.
    thread.filter(|name| name.contains("::")).map(str::to_owned)
}

/// This program as it was started, with its seed.
fn command_line(arguments: &[String], seed: u64) -> String {
    let mut words = arguments.to_vec();
    if !arguments.iter().any(|word| word.starts_with("--seed")) {
        words.extend(["--seed".to_owned(), seed.to_string()]);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_test_is_named_whatever_thread_asks() {
        let worker = Some("tokio-rt-worker");
        let named = |runner, line: &str, thread| test_name(runner, &words(line), thread);
        let name = Some("race::one_wins".to_owned());
        assert_eq!(named(Some("race::one_wins"), "e2e", worker), name);
        assert_eq!(named(None, "e2e --exact race::one_wins --nocapture", worker), name);
        assert_eq!(named(None, "e2e race", Some("race::one_wins")), name);
        assert_eq!(named(None, "atoll-bench soak", worker), None);
        assert!(command_to_repeat(7).contains("a_test_is_named"), "{}", command_to_repeat(7));
    }

    #[test]
    fn a_bench_is_repeated_by_its_command_line() {
        let line = |text: &str| command_line(&words(text), 5);
        assert_eq!(line("atoll-bench soak"), "atoll-bench soak --seed 5");
        assert_eq!(line("atoll-bench soak --seed 5 -v"), "atoll-bench soak --seed 5 -v");
        assert_eq!(line("atoll-bench soak --seed=5"), "atoll-bench soak --seed=5");
    }
}
