//! Processes of tmem that can be seen from outside while they run: `tmem top` over a socket of each, Prometheus over `--metrics`.
//!
//! What there is to say is declared once, with [`figures!`]: the names in JSON, the metrics and the tables in docs/ come from that.
//! [`Doors`] are where requests come in, [`serve`] answers them in a thread of its own, [`ask_all`] is the other side.

mod client;
mod doors;
pub mod figures;
mod http;
pub mod names;
mod protocol;
mod server;
#[doc(hidden)]
pub mod testing;

pub use client::{Answer, Answers, ask_all};
pub use doors::Doors;
pub use figures::{Described, Figure, describe, metrics};
pub use protocol::{VERSION, harmless, understand};
pub use server::{Counters, Source, THREAD, serve, start};

/// Why a process cannot be seen.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);
