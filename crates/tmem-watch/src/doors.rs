//! Where requests come in: the control socket, and an address for Prometheus.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;

use crate::{Error, names, protocol};

/// What a stranger is told.
const STRANGER: &str = "it belongs to another user";

/// Where requests come in.
pub struct Doors {
    control: UnixListener,
    metrics: Option<TcpListener>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Control,
    Metrics,
}

/// Who came in.
pub(crate) enum Visitor {
    /// One who may ask, and does not make us wait.
    Welcome(File),
    /// One who was told that he may not.
    Stranger,
}

impl Doors {
    /// Opens the doors of this process, which from then on is known as one of a kind.
    ///
    /// # Errors
    /// When a name or address cannot be had.
    pub fn open(kind: &str, metrics: Option<SocketAddr>) -> Result<Doors, Error> {
        let control = names::listen(kind)?;
        let open = |address| TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
        let refuse = |address, e: io::Error| match e.kind() {
            ErrorKind::AddrInUse => Error(format!("--metrics {address}: the address is in use: name another port")),
            ErrorKind::AddrNotAvailable => Error(format!("--metrics {address}: this machine has no such address")),
            _ => Error(format!("--metrics {address}: {e}")),
        };
        let metrics = metrics.map(|address| open(address).map_err(|e| refuse(address, e))).transpose()?;
        Ok(Doors { control, metrics })
    }

    /// Where metrics are served.
    pub fn metrics_address(&self) -> Option<String> {
        let address = self.metrics.as_ref()?.local_addr().ok()?;
        Some(address.to_string())
    }

    pub(crate) fn descriptors(&self) -> impl Iterator<Item = (Door, BorrowedFd<'_>)> {
        let metrics = self.metrics.as_ref().map(|listener| (Door::Metrics, listener.as_fd()));
        [(Door::Control, self.control.as_fd())].into_iter().chain(metrics)
    }

    /// Lets the next visitor in.
    pub(crate) fn admit(&self, door: Door) -> io::Result<Visitor> {
        match (door, &self.metrics) {
            (Door::Metrics, Some(listener)) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Visitor::Welcome(std::os::fd::OwnedFd::from(stream).into()))
            }
            (Door::Metrics, None) => Err(ErrorKind::WouldBlock.into()),
            (Door::Control, _) => {
                let (mut stream, _) = self.control.accept()?;
                stream.set_nonblocking(true)?;
                if !names::peer_may_ask(&stream) {
                    // So short a line fits the buffer of a new socket.
                    return stream.write_all(&protocol::refusal(STRANGER)).map(|()| Visitor::Stranger);
                }
                Ok(Visitor::Welcome(std::os::fd::OwnedFd::from(stream).into()))
            }
        }
    }
}
