//! Alerts appended to a file, one JSON object a line; opened for each alert, so that rotating the
//! file needs no signal.

use std::{fs::File, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use audit_proto::v1::Alert;

use super::{Sink, SinkError};
use crate::alerts::to_json;

pub struct JsonLines {
    path: PathBuf,
}

impl JsonLines {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Sink for JsonLines {
    fn deliver(&mut self, alert: &Alert) -> Result<(), SinkError> {
        let line = format!("{}\n", to_json(alert));
        File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)
            .and_then(|mut file| {
                file.write_all(line.as_bytes())
                    .and_then(|()| file.sync_data())
            })
            .map_err(|error| SinkError::Retry(format!("{}: {error}", self.path.display())))
    }
}
