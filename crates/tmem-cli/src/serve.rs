//! `tmem serve`: lends RAM until a signal comes.

use std::os::fd::AsFd;

use tmem_net::Address;
use tmem_serve::{Options, Policy, Server};

use crate::flags::{ServeArgs, ServePolicy};
use crate::service;

/// Does what `tmem serve` says.
///
/// # Errors
///
/// When the server cannot start or go on.
pub fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let listen = service::listen(args.listen.as_ref())?;
    // Before there is a socket, so that no signal can leave one behind.
    let stop = service::until_signalled()?;
    let mut server = Server::bind(Options {
        ram_bytes: args.ram.bytes()?,
        codec: args.codec.into(),
        policy: args.policy.into(),
        listen,
        password_file: args.password_file.clone(),
        tls_certificates: args.tls_certificates.clone(),
        open_to_all: args.open_to_all,
        metrics: args.metrics,
    })?;
    let address = server.address();
    if args.listen.is_some() {
        service::announce([uri(&address, args.tls_certificates.is_some())].into_iter())?;
    }
    service::tell(&format!("READY=1\nSTATUS=Serving at {address}"));
    let served = server.run(stop.as_fd());
    service::tell("STOPPING=1");
    Ok(served?)
}

/// The address as clients take it.
fn uri(address: &Address, tls: bool) -> String {
    match address {
        Address::Unix(path) => format!("unix://{}", path.display()),
        Address::Tcp(address) if tls => format!("rediss://{address}"),
        Address::Tcp(address) => format!("redis://{address}"),
    }
}

impl From<ServePolicy> for Policy {
    fn from(policy: ServePolicy) -> Self {
        match policy {
            ServePolicy::Noeviction => Self::NoEviction,
            ServePolicy::AllkeysLru => Self::AllKeysLru,
        }
    }
}
