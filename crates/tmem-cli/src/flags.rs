//! The one table of flags: parser, help, completions and man pages all come from here.

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::remote::{RemoteArgs, RemoteCommand};
use crate::size::RamSize;

/// Memory beyond RAM for unmodified Linux programs.
///
/// Pages that do not fit into the budget are compressed in RAM and come back when the program touches them: no swap
/// device, no kernel module, no change to the program.
#[derive(Debug, Parser)]
#[command(name = "tmem", version, max_term_width = 100, after_long_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  tmem doctor                              can this machine and this user do it?
  tmem estimate --pid 4711                 would it pay for this program?
  tmem run --ram 512M -- python3 job.py    run a program in 512 MiB
  tmem attach 4711 --ram 1G                squeeze a program that already runs
  tmem top                                 watch what runs under tmem
  tmem disk --size 8G --ram 2G --listen unix:/run/tmem.sock
                                           a compressed RAM disk, over NBD
  tmem serve --ram 4G --listen 127.0.0.1:6379
                                           a compressed cache for any Redis client
  tmem detach 4711                         bring everything back, leave it alone";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command, and whatever it starts, in a given amount of RAM.
    #[command(after_long_help = RUN_NOTES)]
    Run(RunArgs),
    /// Squeeze a program that is already running into a given amount of RAM.
    #[command(after_long_help = ATTACH_NOTES)]
    Attach(AttachArgs),
    /// Bring every page of a managed program back and leave it as it was.
    #[command(after_long_help = DETACH_NOTES)]
    Detach(DetachArgs),
    /// Watch what runs under tmem: what is resident, stored and spilled, faults and how long they take.
    #[command(after_long_help = TOP_NOTES)]
    Top(TopArgs),
    /// Say whether this machine and this user can run tmem, and how to grant what is missing.
    #[command(after_long_help = DOCTOR_NOTES)]
    Doctor(DoctorArgs),
    /// Say what the memory of a process, or what files hold, would take with each codec and allocator.
    #[command(after_long_help = ESTIMATE_NOTES)]
    Estimate(EstimateArgs),
    /// Serve compressed RAM disks to virtual machines, kernels and programs, over NBD.
    #[command(after_long_help = DISK_NOTES)]
    Disk(DiskArgs),
    /// Lend RAM to others, or be a compressed cache, on the Redis protocol.
    #[command(after_long_help = SERVE_NOTES)]
    Serve(ServeArgs),
    /// Remote memory: what to do about a machine that lends RAM.
    #[command(subcommand)]
    Remote(RemoteCommand),
    /// Print completions for a shell.
    #[command(after_long_help = "Example:\n  tmem completions bash > ~/.local/share/bash-completion/completions/tmem")]
    Completions {
        /// The shell to print completions for.
        shell: Shell,
    },
    /// Print the manual page, or write one page per subcommand.
    #[command(after_long_help = "Examples:\n  tmem man | man -l -\n  tmem man /usr/local/share/man/man1")]
    Man {
        /// Directory to write tmem.1, tmem-run.1, ... to; without it, tmem.1 goes to standard output.
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

const RUN_NOTES: &str = "\
Everything from the first word that is not a flag belongs to the command, as with env: \
`tmem run --ram 1G ls -l` needs no `--`.

Exit status: that of the command; if a signal ended the command, tmem dies by the same signal. \
125 if tmem itself cannot go on, 126 if the command cannot be executed, 127 if it is not found.

Examples:
  tmem run --ram 512M -- python3 job.py
  tmem run --ram 50% --progress sort -S 4G big.txt -o sorted.txt
  tmem run --ram 1.5G --stats stats.json --on-full kill -- ./simulate --steps 1000
  tmem run --ram 1G --spill /mnt/nvme:20G -- ./unpack-photos
  tmem run --ram 1G --spill /mnt/ssd --spill-writes 20G -- ./nightly-build
  tmem run --ram 1G --spill off --on-full kill -- ./never-on-disk
  tmem run --ram 1G --remote redis://10.0.0.2,10.0.0.3 --remote-password-file ~/.tmem -- ./wide-join
  tmem run --ram 2G --metrics 127.0.0.1:9464 -- ./server";

const ATTACH_NOTES: &str = "\
tmem stays in the foreground until the program ends (exit status 0). Ctrl-C, SIGTERM or `tmem detach PID` bring every \
page back first and leave the program as it was. If tmem is killed with SIGKILL, the program is killed too: its \
pages are gone, and it must never see wrong ones.

Example:
  tmem attach $(pgrep -n redis-server) --ram 1G --progress";

const DETACH_NOTES: &str = "\
The pages need room: the program grows to its full size again. `tmem detach` returns when all of them are back.

Example:
  tmem detach 4711";

const TOP_NOTES: &str = "\
One line for each `tmem run` and `tmem attach`, and below it its processes; then one for each `tmem disk`, and below it its disks. RESIDENT: memory of the programs (of the whole tree, and of \
each process). STORED: pages that are not there now. PACKED: what these take in RAM. SPILLED: what they take on disk. RATIO: stored to packed and \
spilled. FAULT/s, REFLT/s (for pages that had been in use all the time), WRITE/s and READ/s (spill file): since the last look; with --once, within \
0.2 s. P50, P90, P99: time to serve a fault, since the start. IN USE: RAM that a server of disks takes. HIT %: blocks that a cache found in RAM. \
READS/s, WRITES/s: commands of clients; READ/s, WRITE/s: bytes of them.

Only tmem of the same user in the same network namespace is shown; root sees that of all users. q, Esc and Ctrl-C end it, arrows and Page keys scroll. \
With NO_COLOR set there are no colours. docs/stats.md and docs/disk.md describe the fields of --json.

Exit status: 0, also if nothing runs; 125 if there is no terminal.

Examples:
  tmem top
  tmem top --interval 0.5
  tmem top --once
  tmem top --once --json | jq '.supervisors[] | {command, resident_bytes, faults: .rates.faults}'
  tmem top --once --json | jq '.disks[] | {address, used_bytes, exports: [.exports[] | {name, stored_bytes}]}'";

const DOCTOR_NOTES: &str = "\
Exit status: 0 if `tmem run` can work here, 1 if something it needs is missing.

Examples:
  tmem doctor
  tmem doctor --json | jq '.[] | select(.state == \"missing\")'";

const ESTIMATE_NOTES: &str = "\
Pages are put into real stores, and what these hold is counted, with all they need besides. The process is not stopped or \
changed. By default up to 64 MiB are read, in clusters of 64 neighbouring pages chosen at random, and the margin of error is \
stated: 95 of 100 such samples are no further off. Without tmem's privileges a process of your own can be read where the kernel lets \
you trace it.

Exit status: 0, or 125 if there is nothing to estimate.

Examples:
  tmem estimate --pid $(pgrep -n redis-server)
  tmem estimate --all heap.dump
  tmem estimate --pid 4711 --json | jq '.rows[] | select(.default) | .ratio'";

const DISK_NOTES: &str = "\
The disk is as large as you say and takes RAM for what is written to it, compressed; what is zero or trimmed takes none. Its contents are \
gone when the server ends, unless --image keeps them. When the RAM is full, writes that need more fail at once with \"no space\"; everything that was accepted stays \
readable, and can be overwritten and trimmed.

It runs in the foreground, and prints a line with the address of each disk when it is ready. Ctrl-C and SIGTERM end it: requests that have \
arrived are answered, and the socket is removed. Who may connect to unix:PATH is said by the permissions of the directory and by the umask. Without \
--tls-certificates, HOST:PORT has no password and no encryption: whoever reaches it can read and write the disk.

As a service: a socket that systemd listens at is taken over (then nothing is printed), and with Type=notify it is told when the disks can be had (docs/disk.md has the \
units). Or try it with systemd-socket-activate.

Exit status: 0 after Ctrl-C or SIGTERM; 125 if it cannot start or go on.

Examples:
  tmem disk --size 8G --ram 2G --listen unix:/run/tmem.sock
  tmem disk --size 8G --ram 25% --listen 127.0.0.1:10809 --name scratch
  tmem disk --export a=4G --export b=512M --ram 1G --listen unix:/run/tmem.sock
  tmem disk --backing /dev/sdb --ram 2G --listen unix:/run/tmem.sock
  tmem disk --size 8G --ram 2G --image /var/lib/tmem/scratch --listen unix:/run/tmem.sock
  tmem disk --size 64G --ram 2G --spill /mnt/nvme:20G --listen unix:/run/tmem.sock
  tmem disk --size 8G --ram 2G --listen 0.0.0.0:10809 --tls-certificates /etc/tmem/pki
  tmem disk --size 8G --ram 2G --listen unix:/run/tmem.sock --metrics 127.0.0.1:9465
  systemd-socket-activate -l /run/tmem.sock tmem disk --size 8G --ram 2G
  tmem disk stats unix:/run/tmem.sock
  nbdinfo 'nbd+unix:///?socket=/run/tmem.sock'
  nbdcopy image.raw 'nbd+unix:///?socket=/run/tmem.sock'
  qemu-system-x86_64 -drive file='nbd+unix:///?socket=/run/tmem.sock',format=raw,if=virtio,discard=unmap ...
  tmem disk --size 8G --ram 2G --listen unix:/run/tmem.sock --for-swap
  nbd-client -swap -unix /run/tmem.sock /dev/nbd0 && mkswap /dev/nbd0 && swapon /dev/nbd0";

const DISK_STATS_NOTES: &str = "\
Exit status: 0, or 125 if no tmem disk answers there.

Examples:
  tmem disk stats unix:/run/tmem.sock
  tmem disk stats 127.0.0.1:10809 --json | jq '.exports[] | {name, stored_bytes, packed_bytes}'";

const DISK_RESET_NOTES: &str = "\
The disk reads as zeroes then, and its room is free. Clients that are connected, to whichever disk of the server, are a reason to refuse.

Exit status: 0, or 125 if it was not done.

Examples:
  tmem disk reset unix:/run/tmem.sock
  tmem disk reset unix:/run/tmem.sock --name scratch --force";

const SERVE_NOTES: &str = "\
Any client of Redis can use it, for strings: GET, SET and their kin, expiry, counters, SCAN, MULTI. Values are packed in RAM; --ram is a limit for all of \
it, tmem included. docs/serve.md lists the commands. Nothing outlives the server.

It runs in the foreground, and prints its address when it is ready. Ctrl-C and SIGTERM end it. As a service: a socket that systemd listens at is taken over, \
and with Type=notify it is told when clients may come.

Exit status: 0 after Ctrl-C or SIGTERM; 125 if it cannot start or go on.

Examples:
  tmem serve --ram 4G --listen 127.0.0.1:6379
  tmem serve --ram 4G --listen 127.0.0.1:6379 --policy allkeys-lru
  tmem serve --ram 50% --listen 0.0.0.0:6379 --password-file /etc/tmem/password
  tmem serve --ram 4G --listen 0.0.0.0:6379 --tls-certificates /etc/tmem/server
  tmem serve --ram 1G --listen unix:/run/tmem-serve.sock --metrics 127.0.0.1:9466
  redis-cli -p 6379 set greeting hello
  redis-cli -p 6379 info memory";

/// Flags of `tmem serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// RAM for all of it, tmem itself included: 512M, 1.5G, 800MiB, or 50% of what there is.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub ram: RamSize,
    /// Where to listen: a socket in the file system, or an address and a port; port 0 takes a free one.
    ///
    /// An address that other machines can reach takes --password-file or --tls-certificates, or --open-to-all. To be left out when a service manager hands over a
    /// socket (LISTEN_FDS, as systemd does).
    #[arg(long, value_name = "unix:PATH|HOST:PORT")]
    pub listen: Option<tmem_net::Address>,
    /// What becomes of values when RAM is full: noeviction refuses new ones, allkeys-lru drops those that were not used lately.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub policy: ServePolicy,
    /// A file whose first line clients have to say (AUTH).
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub password_file: Option<PathBuf>,
    /// Talk TLS, and to nobody without a certificate: a directory with ca-cert.pem, server-cert.pem and server-key.pem.
    ///
    /// A client has to show a certificate that the authority in ca-cert.pem has signed: redis-cli with --tls, --cacert, --cert and --key.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tls_certificates: Option<PathBuf>,
    /// Let in whoever reaches the address, from other machines, too, without a password.
    #[arg(long, conflicts_with_all = ["password_file", "tls_certificates"])]
    pub open_to_all: bool,
    /// What packs values when they are written: zstd takes less RAM, lz4 less time.
    ///
    /// Cold values are packed again, with zstd and together with their neighbours, either way.
    #[arg(long, value_name = "CODEC", value_enum, default_value_t = Codec::Lz4)]
    pub codec: Codec,
    /// Serve figures for Prometheus at http://ADDR:PORT/metrics; port 0 takes a free one, which tmem top shows.
    ///
    /// There is no password and no encryption: whoever reaches the address can read the figures. docs/serve.md describes the metrics.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    pub metrics: Option<SocketAddr>,
}

/// `--policy`, in the words of Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ServePolicy {
    /// New values are refused.
    #[default]
    Noeviction,
    /// Values that were not used lately are dropped.
    AllkeysLru,
}

/// Flags of `tmem disk`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct DiskArgs {
    /// What else to do than to serve.
    #[command(subcommand)]
    pub command: Option<DiskCommand>,
    #[command(flatten)]
    pub serve: Option<DiskServeArgs>,
    /// Remote memory.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// What there is to do about disks that are being served.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Show what a running server holds, takes and has done.
    #[command(after_long_help = DISK_STATS_NOTES)]
    Stats(DiskStatsArgs),
    /// Drop everything that is stored on a disk, at once.
    #[command(after_long_help = DISK_RESET_NOTES)]
    Reset(DiskResetArgs),
}

/// Flags of `tmem disk` without a subcommand.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("disks").required(true).multiple(true))]
pub struct DiskServeArgs {
    /// Size of the disk: 512M, 8G, 1T. It may be larger than all RAM.
    ///
    /// K, M, G, T are powers of 1024, with or without "iB"; a bare number is bytes.
    #[arg(long, value_name = "SIZE", group = "disks", value_parser = disk_size)]
    pub size: Option<u64>,
    /// Serve a file or a block device, and keep in RAM, compressed, what is used of it: a cache.
    ///
    /// Reads fill it, writes go through, and are safe when a flush is answered; what has no room is dropped and read again. The disk has the
    /// size of FILE. Nobody else may write to it meanwhile: it is locked with flock(2).
    #[arg(long, value_name = "FILE|DEVICE", group = "disks", conflicts_with_all = ["size", "for_swap"], value_hint = ValueHint::FilePath)]
    pub backing: Option<PathBuf>,
    /// RAM for all of it, tmem itself included: 512M, 1.5G, 800MiB, or 50% of what there is.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub ram: RamSize,
    /// Where to listen: a socket in the file system, or an address and a port; port 0 takes a free one.
    ///
    /// The socket of a server that is dead is replaced, that of one that runs is not. To be left out when a service manager hands over a
    /// socket (LISTEN_FDS, as systemd does).
    #[arg(long, value_name = "unix:PATH|HOST:PORT")]
    pub listen: Option<tmem_net::Address>,
    /// Talk TLS, and to nobody without a certificate: a directory with ca-cert.pem, server-cert.pem and server-key.pem.
    ///
    /// The names are those of nbdkit and QEMU. A client has to show a certificate that the authority in ca-cert.pem has signed: nbdinfo and
    /// nbdcopy with --tls-certificates or ?tls-certificates= in the address, QEMU with a tls-creds-x509 object.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tls_certificates: Option<PathBuf>,
    /// Keep the disks in a file while no server runs: they come from it at the start, if it is there, and are saved to it at the end.
    ///
    /// Blocks are saved packed as they are. The file is replaced as a whole, when Ctrl-C or SIGTERM ends the server; what has become of the
    /// disks since it was saved is lost if the server dies otherwise. It is not encrypted; only its owner can read it.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub image: Option<PathBuf>,
    /// What clients call the disk of --size or --backing. The first disk can be had by the empty name, too.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub name: String,
    /// Another disk, by its name: as in --export scratch=4G. May be given several times.
    #[arg(long = "export", value_name = "NAME=SIZE", group = "disks", value_parser = disk)]
    pub exports: Vec<(String, u64)>,
    /// Clients cannot write.
    #[arg(long)]
    pub read_only: bool,
    /// For a disk that this machine swaps to: tmem is never swapped out, killed for lack of memory, or kept waiting for swap itself.
    ///
    /// That takes root, or CAP_IPC_LOCK and CAP_SYS_RESOURCE; where one of them is missing tmem does not start. RAM is taken as it is needed,
    /// so let --ram be what the machine can spare. A virtual machine's own swap needs none of this: there the host has the memory.
    #[arg(long, conflicts_with_all = ["spill", "spill_plain", "spill_faults", "remote"])]
    pub for_swap: bool,
    /// What packs blocks when they are written: zstd takes less RAM, lz4 less time.
    ///
    /// Cold blocks are packed again, with zstd and together with their neighbours, either way.
    #[arg(long, value_name = "CODEC", value_enum, default_value_t)]
    pub codec: Codec,
    /// Where packed blocks go that RAM has no room for: off, auto, a directory, or a file with or without a size.
    ///
    /// As with `tmem run`: auto is a temporary file without a name on a real disk, in $TMPDIR, /var/tmp, the working directory or /tmp; DIR
    /// is the same there; FILE must not exist or be empty, and is removed at the end; :SIZE is how large it may grow, without it half of
    /// what is free. When it is full, too, writes that need more fail at once.
    #[arg(long, value_name = "off|auto|DIR|FILE[:SIZE]", default_value = "off", value_hint = ValueHint::AnyPath)]
    pub spill: OsString,
    /// Serve figures for Prometheus at http://ADDR:PORT/metrics; port 0 takes a free one, which tmem top shows.
    ///
    /// There is no password and no encryption: whoever reaches the address can read the figures and the names of disks. docs/disk.md
    /// describes the metrics.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    pub metrics: Option<SocketAddr>,
    /// Do not encrypt what is spilled. Otherwise only this tmem can read it, with a key that is nowhere but in its memory.
    #[arg(long)]
    pub spill_plain: bool,
    /// Have faults happen to the spill file, to try what becomes of clients; `tmem run --help` names them all.
    #[arg(long, value_name = "FAULTS", value_parser = crate::faults::parse)]
    pub spill_faults: Option<tmem_run::SpillFaults>,
}

/// `--codec`, in the words of the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Codec {
    /// Zstandard at level -1.
    #[default]
    Zstd,
    /// LZ4.
    Lz4,
}

impl From<Codec> for tmem::CodecKind {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::Zstd => Self::Zstd { level: -1 },
            Codec::Lz4 => Self::Lz4,
        }
    }
}

/// Flags of `tmem disk stats`.
#[derive(Args, Debug)]
pub struct DiskStatsArgs {
    /// Where the server listens.
    #[arg(value_name = "unix:PATH|HOST:PORT")]
    pub address: tmem_net::Address,
    /// Ask with TLS: a directory with ca-cert.pem, client-cert.pem and client-key.pem.
    ///
    /// The certificate of the server has to be one for HOST, or for localhost with unix:PATH.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tls_certificates: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `tmem disk reset`.
#[derive(Args, Debug)]
pub struct DiskResetArgs {
    /// Where the server listens.
    #[arg(value_name = "unix:PATH|HOST:PORT")]
    pub address: tmem_net::Address,
    /// Which disk; without a name the first one.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub name: String,
    /// Also while clients are connected: they will read zeroes.
    #[arg(long)]
    pub force: bool,
    /// Ask with TLS, as with `tmem disk stats`.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tls_certificates: Option<PathBuf>,
}

fn disk_size(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(RamSize::Bytes(bytes)) => Ok(bytes),
        _ => Err(format!("'{text}' is not a size: write for example 512M, 8G or 1T")),
    }
}

fn disk(text: &str) -> Result<(String, u64), String> {
    let (name, size) =
        text.rsplit_once('=').ok_or_else(|| format!("'{text}' has no '=': write for example scratch=4G"))?;
    Ok((name.to_owned(), disk_size(size)?))
}

/// Flags of `tmem run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub budget: BudgetArgs,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

/// Flags of `tmem attach`.
#[derive(Args, Debug)]
pub struct AttachArgs {
    #[command(flatten)]
    pub budget: BudgetArgs,
    /// Process to manage; what it starts from now on is managed with it.
    #[arg(value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: u32,
}

/// Flags of `tmem detach`.
#[derive(Args, Debug)]
pub struct DetachArgs {
    /// Process to leave alone from now on: the one given to `attach`, or any process of a managed tree.
    #[arg(value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: u32,
}

/// Flags of `tmem top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// Print one table and end.
    #[arg(long)]
    pub once: bool,
    /// With --once: print one JSON object instead of a table.
    #[arg(long, requires = "once")]
    pub json: bool,
    /// Seconds between two looks, from 0.1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds, conflicts_with = "once")]
    pub interval: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write a number of seconds from 0.1 to 3600".to_owned())
}

/// Flags of `tmem doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print a JSON array of checks (name, state, finding, fix) instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `tmem estimate`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("source").required(true).multiple(false))]
pub struct EstimateArgs {
    /// Process whose memory is read, while it runs.
    #[arg(long, value_name = "PID", group = "source", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: Option<u32>,
    /// Files whose bytes are taken as pages of 4096 bytes, in order.
    #[arg(value_name = "FILE", group = "source", num_args = 1.., value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// Read every page, once for each codec and allocator: no margin of error, but it takes longer, and as much RAM as the result.
    #[arg(long)]
    pub all: bool,
    /// Which pages the sample has: another number gives another sample, the same number the same.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What `run` and `attach` share.
#[derive(Args, Debug)]
pub struct BudgetArgs {
    /// RAM for the whole process tree and tmem itself: 512M, 1.5G, 800MiB, or 50% of what there is.
    ///
    /// K, M, G, T are powers of 1024, with or without "iB"; a bare number is bytes. A percentage is taken of the
    /// machine's RAM, or of the container's limit if that is less.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub ram: RamSize,
    /// What to do when what is stored cannot be made smaller any more.
    #[arg(long, value_name = "ACTION", value_enum, default_value_t)]
    pub on_full: OnFull,
    /// Where packed pages go that RAM has no room for: auto, off, a directory, or a file with or without a size.
    ///
    /// auto: a temporary file without a name on a real disk, in $TMPDIR, /var/tmp, the working directory or /tmp. It takes no room
    /// before it is needed and is gone with tmem, however that ends. If none of them is on a disk, as with off. DIR: the same
    /// there, as in `--spill /mnt/nvme`. FILE: a file of that name, as in `--spill /mnt/nvme/spill:20G`; it must not exist or be empty, and is
    /// removed at the end. :SIZE, behind a directory too, is how large it may grow; without it, half of what is free. A
    /// file called auto or off is ./auto or ./off.
    #[arg(long, value_name = "auto|off|DIR|FILE[:SIZE]", default_value = "auto", value_hint = ValueHint::AnyPath)]
    pub spill: OsString,
    /// Do not encrypt what is spilled. Otherwise only this tmem can read it, with a key that is nowhere but in its memory.
    #[arg(long)]
    pub spill_plain: bool,
    /// Bytes that may be written to the spill file in a day, for flash that wears out: as in 20G.
    ///
    /// Units are those of --ram. At the start an hour's share may be written, and six hours' share can be saved up while little is
    /// written, and at least 96 MiB in either case. What cleaning the file moves counts. When the budget is used up, what does not fit stays in RAM, a
    /// message says so once, and --on-full decides about the rest, as with a full disk, until there is more to be written.
    /// Example: `--spill /mnt/ssd --spill-writes 20G`.
    #[arg(long, value_name = "SIZE", value_parser = bytes_per_day)]
    pub spill_writes: Option<u64>,
    /// Have faults happen to the spill file, to try what becomes of the program: as in write=1/100,corrupt=7.
    ///
    /// A list of FAULT=WHEN. WHEN is 1/100 (one operation in a hundred, at random), 7 (the seventh only) or 7+ (the seventh and all after it);
    /// each fault counts the operations that it can happen to. write: a write fails. torn: it stops half-way and fails. lost: it stops
    /// half-way and claims success. corrupt-write: a bit is written wrong. read: a read fails. corrupt: a bit is read wrong. discard: space is
    /// not given back. delay, delay-write, delay-read: an operation takes longer, as in delay=50ms@1/100. full=64M: no room behind that.
    /// seed=7: other random numbers. A failing write costs no page. A read that fails is tried up to three times more, within 0.1 s. If that does not help, or if it finds
    /// something else than was written, as with corrupt, the program ends with a message, never with a wrong byte. Example: `--spill-faults write=1/100,torn=1/500,delay=50ms@1/100,full=64M,seed=7`.
    #[arg(long, value_name = "FAULTS", value_parser = crate::faults::parse)]
    pub spill_faults: Option<tmem_run::SpillFaults>,
    /// Remote memory.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Serve live figures over HTTP at this address, in Prometheus' text format: GET /metrics.
    ///
    /// As in 127.0.0.1:9464 or localhost:9464; port 0 takes a free one, which `tmem top --once --json` shows. There is no
    /// password and no encryption: whoever reaches the address can read the figures and the names of processes. docs/stats.md describes the metrics.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    pub metrics: Option<SocketAddr>,
    /// Write one JSON object with figures at the end: to FILE, or to standard output for '-'.
    ///
    /// docs/stats.md describes the fields. With '-' it follows the command's own output, as its last line.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub stats: Option<PathBuf>,
    /// Show a live line on standard error, if that is a terminal.
    #[arg(long)]
    pub progress: bool,
}

fn bytes_per_day(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(RamSize::Bytes(bytes)) => Ok(bytes),
        _ => Err(format!("'{text}' is not a number of bytes per day: write for example 20G or 512M")),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let what = "write an address and a port, for example 127.0.0.1:9464";
    // A number alone would be asked of the name service.
    if !text.contains(':') || text.starts_with(':') {
        return Err(what.to_owned());
    }
    let found = text.to_socket_addrs().map_err(|e| format!("{e}: {what}"))?.next();
    found.ok_or_else(|| what.to_owned())
}

/// `--on-full`, in the words of the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnFull {
    /// Let the program grow over the budget, and say so once.
    #[default]
    Grow,
    /// Stop the program, as SIGSTOP does; after SIGCONT it may grow.
    Stop,
    /// Kill the program.
    Kill,
}

impl From<OnFull> for tmem_run::OnFull {
    fn from(on_full: OnFull) -> Self {
        match on_full {
            OnFull::Grow => Self::Grow,
            OnFull::Stop => Self::Stop,
            OnFull::Kill => Self::Kill,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run_args(words: &[&str]) -> RunArgs {
        match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Run(args)) => args,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn the_table_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_first_positional_starts_the_command() {
        let args = run_args(&["tmem", "run", "--ram", "1G", "ls", "-l", "--ram", "2G", "--", "x"]);
        assert_eq!(args.command, ["ls", "-l", "--ram", "2G", "--", "x"]);
        assert_eq!(args.budget.ram, RamSize::Bytes(1 << 30));
        assert_eq!(args.budget.on_full, OnFull::Grow);
    }

    #[test]
    fn two_dashes_start_the_command() {
        let args = run_args(&["tmem", "run", "--ram=1G", "--stats", "-", "--", "-odd", "--help", "--", "y"]);
        assert_eq!(args.command, ["-odd", "--help", "--", "y"]);
        assert_eq!(args.budget.stats.as_deref(), Some("-".as_ref()));
    }

    #[test]
    fn bad_usage_is_refused() {
        for words in [
            &["tmem", "run", "ls"][..],
            &["tmem", "run", "--ram", "1G"],
            &["tmem", "run", "--ram", "1G", "--"],
            &["tmem", "run", "--ram", "lots", "ls"],
            &["tmem", "run", "--ram", "-1G", "ls"],
            &["tmem", "run", "--ram", "1G", "--bogus", "ls"],
            &["tmem", "attach", "--ram", "1G"],
            &["tmem", "attach", "--ram", "1G", "0"],
            &["tmem", "attach", "--ram", "1G", "-1"],
            &["tmem", "attach", "--ram", "1G", "4294967295"],
            &["tmem", "detach", "me"],
            &["tmem", "top", "--json"],
            &["tmem", "top", "--once", "--interval", "1"],
            &["tmem", "top", "--interval", "0"],
            &["tmem", "top", "--interval", "nan"],
            &["tmem", "run", "--ram", "1G", "--spill-writes", "0", "ls"],
            &["tmem", "run", "--ram", "1G", "--spill-writes", "10%", "ls"],
            &["tmem", "run", "--ram", "1G", "--spill-writes", "much", "ls"],
            &["tmem", "run", "--ram", "1G", "--spill-writes", "-1G", "ls"],
            &["tmem", "disk", "--ram", "1G", "--listen", "unix:/x"],
            &["tmem", "disk", "--size", "1G", "--listen", "unix:/x"],
            &["tmem", "disk", "--size", "50%", "--ram", "1G", "--listen", "unix:/x"],
            &["tmem", "disk", "--size", "1G", "--ram", "1G", "--listen", "/x"],
            &["tmem", "disk", "--export", "1G", "--ram", "1G", "--listen", "unix:/x"],
            &["tmem", "disk", "stats"],
            &["tmem", "run", "--ram", "1G", "--metrics", "9464", "ls"],
            &["tmem", "run", "--ram", "1G", "--metrics", ":9464", "ls"],
            &["tmem", "run", "--ram", "1G", "--metrics", "127.0.0.1:x", "ls"],
        ] {
            Cli::try_parse_from(words).expect_err(&words.join(" "));
        }
    }
}
