//! What must an operator act on now? Each part of the collector states and withdraws its own.
//!
//! Invariant: one line per name, so the list is bounded by the number of parts that can fail.

use std::{collections::BTreeMap, sync::Mutex};

#[derive(Debug, Default)]
pub struct Problems(Mutex<BTreeMap<String, String>>);

impl Problems {
    /// States a problem; logged when it is new.
    pub fn set(&self, name: &str, message: impl Into<String>) {
        let message = message.into();
        let mut map = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if map.get(name) != Some(&message) {
            tracing::error!(problem = name, "{message}");
            map.insert(name.to_owned(), message);
        }
    }

    pub fn clear(&self, name: &str) {
        let mut map = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if map.remove(name).is_some() {
            tracing::info!(problem = name, "problem is over");
        }
    }

    pub fn list(&self) -> Vec<String> {
        let map = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        map.iter()
            .map(|(name, message)| format!("{name}: {message}"))
            .collect()
    }
}
