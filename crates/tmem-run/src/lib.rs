//! Supervisor and injected agent: run an unmodified program tree in less RAM than it needs.
//!
//! [`run`] starts a command, [`attach`] joins a running process, [`detach`] leaves it as it was, and
//! [`doctor::examine`] says whether this machine and this user can do it. [`inspect`] looks at a process without touching it. See ARCHITECTURE.md for the life of a
//! page and of a fault.

mod agent;
mod arch;
mod choose;
mod control;
mod counters;
pub mod doctor;
mod error;
mod event;
mod evict;
mod fault;
mod fingerprint;
mod guard;
pub mod inspect;
mod keeper;
mod leave;
mod options;
mod pages;
mod proc;
mod ptrace;
mod queue;
mod recall;
mod report;
mod shared;
mod signals;
mod space;
mod spill;
mod start;
mod streams;
mod supervisor;
mod swapcache;
mod sys;
mod tag;
#[doc(hidden)]
pub mod testing;
mod throttle;
mod tree;
mod upkeep;
mod watch;
mod watched;
mod workers;
mod write_budget;
mod zeros;

pub use control::{Detached, detach};
pub use error::Error;
pub use options::{OnFull, Options, Spill, SpillFaults};
pub use report::{FaultTimes, Now, ProcessFigures, Refused, Report, Snapshot, SpillFigures};
pub use spill::StoreSpill;
pub use start::{attach, run};
pub use supervisor::{Ending, Outcome};
pub use watch::{KIND, Rates};
