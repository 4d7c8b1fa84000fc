//! How long does a test wait here? `HOSTAUDIT_TEST_SLOWNESS=N` multiplies every deadline, for a
//! machine on which the same work takes longer, as in a guest without hardware support.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

const VARIABLE: &str = "HOSTAUDIT_TEST_SLOWNESS";
/// More than any emulator needs; beyond it a hanging test would look like a slow one.
const MAX_SLOWNESS: u32 = 100;

pub fn stretched(timeout: Duration) -> Result<Duration> {
    match std::env::var(VARIABLE) {
        Ok(text) => Ok(timeout * slowness(&text)?),
        Err(_) => Ok(timeout),
    }
}

fn slowness(text: &str) -> Result<u32> {
    let number = text
        .parse()
        .with_context(|| format!("{VARIABLE}={text}: not a whole number"))?;
    ensure!(
        (1..=MAX_SLOWNESS).contains(&number),
        "{VARIABLE}={text}: not between 1 and {MAX_SLOWNESS}"
    );
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowness_is_a_factor_within_bounds() {
        assert_eq!(slowness("4").unwrap(), 4);
        for wrong in ["0", "101", "fast", ""] {
            assert!(slowness(wrong).is_err(), "{wrong:?}");
        }
    }
}
