//! Which Sigma rules does an event match?
//!
//! [`RuleSet::load`] reads rule files and compiles them, per log source, into an [`index`] that
//! visits only rules which can match; [`RuleSet::evaluate`] asks it. Every rule is evaluated: the
//! first match hides no other. What could not be compiled or can never fire here is in the
//! [`Report`], with the reason; one broken file stops nothing else.
//!
//! Invariant: but for `load` and `samples`, which read files, the crate does no I/O; evaluation
//! allocates nothing once its [`Scratch`] has grown to the size of the events.

#![forbid(unsafe_code)]

mod compile;
mod encode;
mod expr;
mod field;
mod files;
mod glob;
mod index;
mod logsource;
mod network;
mod pattern;
mod report;
mod ruleset;
pub mod samples;
mod values;

pub use files::Source;
pub use logsource::Bucket;
pub use network::Network;
pub use report::{Broken, Idle, Inert, Report, Why};
pub use ruleset::{RuleIndex, RuleInfo, RuleSet, Scratch};
