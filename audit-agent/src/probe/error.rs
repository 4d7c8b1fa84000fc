//! What keeps programs from being loaded, in words that say what to do?

use std::{error::Error, io};

use super::{BtfError, pins::PinError};
use crate::policy::PolicyError;

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "loading kernel programs needs root, or CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH; {0}"
    )]
    NotPermitted(String),
    #[error(transparent)]
    Types(#[from] BtfError),
    #[error("the kernel object does not load: {0}")]
    Load(String),
    #[error("what path calls act on cannot be seen: {0}")]
    NoObjects(String),
    #[error("no hook could be attached; the first reason: {0}")]
    NoHook(String),
    #[error("capture.watch_reads: {0}")]
    Watch(String),
    #[error("capture.pin.directory: {0}")]
    Pin(#[from] PinError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl ProbeError {
    /// What a loader says.
    pub(super) fn of_load(error: &(dyn Error + 'static)) -> Self {
        let mut source = Some(error);
        while let Some(error) = source {
            if let Some(io) = error.downcast_ref::<io::Error>()
                && io.kind() == io::ErrorKind::PermissionDenied
            {
                return Self::NotPermitted(
                    "no capability is missing, so this is a user namespace, or the kernel is locked down"
                        .to_owned(),
                );
            }
            source = error.source();
        }
        Self::Load(chain(error))
    }
}

/// The error with its causes; of a verifier's log only the last lines, which say what it refused.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Some errors say their cause themselves, and that the verifier has said nothing.
        let said = cause.to_string();
        text.truncate(text.trim_end_matches(". Verifier output: ").len());
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    let lines: Vec<_> = text.lines().collect();
    match lines.len() {
        0..=8 => text,
        many => format!("{} ... {}", lines[0], lines[many - 7..].join(" | ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("loading returned {0}. Verifier output: ")]
    struct Loading(#[source] io::Error);

    #[test]
    fn a_cause_is_said_once() {
        let refused = || io::Error::from_raw_os_error(1);
        let said = format!("loading returned {}", refused());
        assert_eq!(chain(&Loading(refused())), said);
    }
}
