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

/// The command that runs the calling test again.
pub fn command_to_repeat(seed: u64) -> String {
    let current = std::thread::current();
    let test = current.name().unwrap_or("?");
    // Building the tests does not build the binary that they start.
    format!(
        "cargo build --release --workspace --bins && \
         {VARIABLE}={seed} cargo nextest run --release --workspace -E 'test(={test})'"
    )
}
