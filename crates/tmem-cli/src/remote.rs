//! `--remote`: which machines lend RAM. `tmem remote`: what to do about one of them.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueHint};
use tmem_remote::Peers;

/// How often `tmem remote drain` looks what is left.
const LOOK: Duration = Duration::from_millis(500);

/// What `run`, `attach` and `disk` say of remote memory.
#[derive(Args, Clone, Debug)]
pub struct RemoteArgs {
    /// Other machines whose RAM packed pages go to before they go to a disk: as in redis://10.0.0.2:6379,10.0.0.3.
    ///
    /// Each is a `tmem serve`, a Redis or a Valkey server with maxmemory-policy noeviction; redis-cluster:// is a whole cluster. rediss:// and
    /// rediss-cluster:// use TLS; unix:PATH is a socket of this machine. USER:PASSWORD@ may stand before a host, but other users of this
    /// machine can read that: better is --remote-password-file. What is sent is encrypted with a key that is nowhere but in the memory of
    /// this tmem. When the peers are full, the rest goes where --spill says. Example: `--remote redis://10.0.0.2 --remote-password-file ~/.tmem`.
    #[arg(long, value_name = "URL[,HOST...]")]
    pub remote: Option<Peers>,
    /// How many peers have to have each page: while one of them has it, no page is lost. 2 if there are two, else 1.
    ///
    /// A page leaves this machine when so many have confirmed that they have it. What a peer had that is gone is copied again from the others.
    /// Of a cluster it is how many of its nodes: the primary and its replicas. Example: `--remote redis://a,b,c --copies 3`.
    #[arg(long, value_name = "N", requires = "remote")]
    pub copies: Option<usize>,
    /// The password of the peers: the first line of this file.
    #[arg(long, value_name = "FILE", requires = "remote", value_hint = ValueHint::FilePath)]
    pub remote_password_file: Option<PathBuf>,
    /// With rediss://: a directory with ca-cert.pem, and client-cert.pem and client-key.pem if the peers ask for them.
    ///
    /// Without it, peers have to have certificates of an authority that the system trusts.
    #[arg(long, value_name = "DIR", requires = "remote", value_hint = ValueHint::DirPath)]
    pub remote_certificates: Option<PathBuf>,
}

impl RemoteArgs {
    /// The peers, if there are any.
    ///
    /// # Errors
    ///
    /// When the file with the password cannot be read, or has none.
    pub fn peers(&self) -> anyhow::Result<Option<Peers>> {
        let Some(mut peers) = self.remote.clone() else { return Ok(None) };
        if let Some(copies) = self.copies {
            peers = peers.copies(copies);
        }
        let (password, certificates) = (self.remote_password_file.as_deref(), self.remote_certificates.as_deref());
        with_access(peers, password, certificates).map(Some)
    }
}

/// Peers with what they are to be shown.
fn with_access(mut peers: Peers, password: Option<&Path>, certificates: Option<&Path>) -> anyhow::Result<Peers> {
    if let Some(file) = password {
        let password = tmem_net::password(file)?;
        peers = peers.password(std::str::from_utf8(&password).with_context(|| format!("{}: no text", file.display()))?);
    }
    if let Some(folder) = certificates {
        peers = peers.certificates(folder);
    }
    Ok(peers)
}

/// What there is to do about a machine that lends RAM.
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Have everybody take elsewhere what lies on a peer, so that it can be switched off.
    #[command(after_long_help = DRAIN_NOTES)]
    Drain(DrainArgs),
}

const DRAIN_NOTES: &str = "\
All that use the peer with --remote, on whatever machine, give it nothing more and have others of their peers take what is there. Who has no \
other peer to spare moves it to its spill file, or home as far as there is room; with neither it stays there: end that program first, or start it \
with more peers. The peer stays drained until --undo, or until its \
server starts anew. Ctrl-C ends only the waiting.

Exit status: 0 when nothing is left there; 125 if the peer cannot be reached.

Examples:
  tmem remote drain redis://10.0.0.2
  tmem remote drain redis://10.0.0.2 --no-wait
  tmem remote drain redis://10.0.0.2 --undo";

/// Flags of `tmem remote drain`.
#[derive(Args, Debug)]
pub struct DrainArgs {
    /// The peer, as in redis://10.0.0.2:6379: see --remote of `tmem run`.
    #[arg(value_name = "URL")]
    pub peer: Peers,
    /// Let it be given pages again.
    #[arg(long)]
    pub undo: bool,
    /// Do not wait until nothing is left there.
    #[arg(long)]
    pub no_wait: bool,
    /// The password of the peer: the first line of this file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub password_file: Option<PathBuf>,
    /// With rediss://: a directory with ca-cert.pem, and client-cert.pem and client-key.pem if the peer asks for them.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub certificates: Option<PathBuf>,
}

/// Does what `tmem remote` says.
///
/// # Errors
///
/// When the peer cannot be reached.
pub fn remote(command: &RemoteCommand) -> anyhow::Result<()> {
    let RemoteCommand::Drain(args) = command;
    let peer = with_access(args.peer.clone(), args.password_file.as_deref(), args.certificates.as_deref())?;
    tmem_remote::drain(&peer, args.undo)?;
    if args.undo || args.no_wait {
        return Ok(());
    }
    let live = io::stderr().is_terminal();
    loop {
        let left = tmem_remote::values_left(&peer)?;
        if live {
            // With standard error closed there is nobody to tell.
            let _ = write!(
                io::stderr(),
                "\r\x1b[K{left} values of up to 60 KiB are left{}",
                if left == 0 { "\n" } else { "" }
            );
        }
        if left == 0 {
            return Ok(());
        }
        thread::sleep(LOOK);
    }
}
