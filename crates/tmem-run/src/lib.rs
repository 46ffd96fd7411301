//! Supervisor and injected agent: run an unmodified program tree in less RAM than it needs.
//!
//! `lib.rs` holds the public face; see ARCHITECTURE.md for the life of a page and of a fault.

mod options;
mod report;

pub use options::{OnFull, Options};
pub use report::{FaultTimes, Report};
