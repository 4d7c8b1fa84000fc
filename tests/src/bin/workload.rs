//! Performs known actions and says what the record must have of them: `workload GROUP DIRECTORY`.

use std::path::Path;

use anyhow::{Result, bail};
use audit_tests::workload::{GROUPS, Workload, exec_from_thread, line};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [group, directory] = arguments.as_slice() else {
        bail!("workload GROUP DIRECTORY; groups: {}", GROUPS.join(", "));
    };
    if group == "exec-from-thread" {
        return exec_from_thread();
    }
    for expectation in Workload::perform(group, Path::new(directory))? {
        println!("{}", line(&expectation));
    }
    Ok(())
}
