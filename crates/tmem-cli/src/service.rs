//! What servers have in common: where they listen, how they end, and what a service manager and they tell each other: a socket that
//! listens already (`LISTEN_FDS`), and when clients may come (`NOTIFY_SOCKET`). See sd_listen_fds(3) and sd_notify(3).

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};

use anyhow::{Context, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use tmem_net::{Address, Listen};

/// The first descriptor that is handed over.
const LISTEN_FDS_START: RawFd = 3;

/// Where a server is to listen: where it was told to, or at the socket that was handed over.
///
/// # Errors
///
/// When there is neither, or both.
pub fn listen(told: Option<&Address>) -> anyhow::Result<Listen> {
    match (told, handed_over()?) {
        (Some(address), None) => Ok(Listen::At(address.clone())),
        (None, Some(socket)) => Ok(Listen::Inherited(socket)),
        (Some(_), Some(_)) => bail!("a socket was handed over (LISTEN_FDS): leave out --listen"),
        (None, None) => bail!("say where to listen: --listen unix:PATH, or --listen HOST:PORT"),
    }
}

/// What can be read once a signal has come that asks to end.
///
/// # Errors
///
/// When signals cannot be waited for.
pub fn until_signalled() -> anyhow::Result<UnixStream> {
    let (stop, signalled) = UnixStream::pair().context("cannot make a pipe for signals")?;
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        pipe::register(signal, signalled.try_clone()?).context("cannot wait for signals")?;
    }
    Ok(stop)
}

/// Says where a server can be reached, which whoever hands over a socket knows; whoever does not read it is served all the same.
///
/// # Errors
///
/// When standard output cannot be written.
pub fn announce(addresses: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let text: String = addresses.map(|address| address + "\n").collect();
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("cannot write to standard output"),
        _ => Ok(()),
    }
}

/// Tells the service manager; clients are served all the same if it does not hear.
pub fn tell(state: &str) {
    if let Err(e) = notify(state) {
        eprintln!("tmem: {e:#}");
    }
}

/// The socket that whoever started us made for us, if there is one. To be asked once, before anything else is opened.
///
/// # Errors
///
/// When there are several, or there is none where one was promised.
fn handed_over() -> anyhow::Result<Option<OwnedFd>> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => {
            // SAFETY: a call that asks for a flag, by number.
            if unsafe { libc::fcntl(LISTEN_FDS_START, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                bail!("LISTEN_FDS promises a socket, but descriptor 3 is not open");
            }
            // SAFETY: it is open, and the environment says that it is for this process, which has no other use for the number.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(LISTEN_FDS_START) }))
        }
        Some(sockets) => bail!("{sockets} sockets were handed over (LISTEN_FDS): one is all that tmem can use"),
    }
}

/// Tells whoever waits for it how we are. Nobody waits if there is no `NOTIFY_SOCKET`.
///
/// # Errors
///
/// When it cannot be told.
fn notify(state: &str) -> anyhow::Result<()> {
    env::var_os("NOTIFY_SOCKET")
        .map_or(Ok(()), |name| notify_at(&name, state))
        .context("cannot tell the service manager")
}

fn notify_at(name: &OsStr, state: &str) -> io::Result<()> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_names_are_told() {
        let dir = std::env::temp_dir().join(format!("tmem-notify-{}", std::process::id()));
        let path = UnixDatagram::bind(&dir).unwrap();
        let name = format!("tmem-notify-{}", std::process::id());
        let hidden = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut told = [0; 16];
        for (name, socket) in [(dir.as_os_str(), path), (format!("@{name}").as_ref(), hidden)] {
            notify_at(name, "READY=1").unwrap();
            let bytes = socket.recv(&mut told).unwrap();
            assert_eq!(&told[..bytes], b"READY=1");
        }
        std::fs::remove_file(&dir).unwrap();
        notify_at(dir.as_os_str(), "READY=1").unwrap_err();
    }
}
