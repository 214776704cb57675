//! The binary `atoll`. All of it is in the library beside, so that the testbed can use the same
//! plans of local clusters.

use std::process::ExitCode;

fn main() -> ExitCode {
    atoll::run()
}
