//! `bench`: measures the system on this host. Usually started by `cargo xtask bench NAME`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match audit_tests::bench::main() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
