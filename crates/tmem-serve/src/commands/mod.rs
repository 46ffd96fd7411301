//! What clients can ask: one table, and how a command is run.

mod connection;
mod keys;
mod server;
mod strings;

use crate::client::Client;
use crate::reply::Reply;
use crate::server::Shared;
use crate::shard::{Full, Name};
use crate::space::Locked;

/// Which arguments are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    /// None, and nothing is locked.
    None,
    /// The first.
    First,
    /// All.
    All,
    /// Every other one, from the first on.
    Pairs,
    /// It looks at everything.
    Everything,
}

/// A command.
pub struct Command {
    name: &'static str,
    /// Words with its name; at least so many if negative.
    arity: i32,
    keys: Keys,
    writes: bool,
    run: fn(&mut Call<'_, '_, '_>) -> Result<(), Fault>,
}

/// Why a command is refused.
#[derive(Debug)]
pub enum Fault {
    /// In these words.
    Said(&'static str),
    /// The same, made for the occasion.
    Told(String),
    /// There is no room.
    Full,
}

impl From<Full> for Fault {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

impl Fault {
    fn text(&self) -> &str {
        match self {
            Self::Said(text) => text,
            Self::Told(text) => text,
            Self::Full => "OOM command not allowed when used memory > 'maxmemory'.",
        }
    }
}

const SYNTAX: Fault = Fault::Said("ERR syntax error");
const NOT_INTEGER: Fault = Fault::Said("ERR value is not an integer or out of range");

/// A command that is being run.
struct Call<'a, 'l, 'r> {
    args: &'a [&'a [u8]],
    server: &'a Shared,
    client: &'a mut Client,
    locked: &'a mut Locked<'l>,
    reply: &'a mut Reply<'r>,
    /// The first key, if the command has one.
    first: Option<Name>,
}

impl Call<'_, '_, '_> {
    fn name_of(&self, key: &[u8]) -> Name {
        self.server.space.name(self.client.db, key)
    }

    /// The first key.
    fn name(&self) -> Name {
        self.first.unwrap_or_else(|| self.name_of(self.args[1]))
    }

    fn number(&self, at: usize) -> Result<i64, Fault> {
        crate::resp::number(self.args[at]).ok_or(NOT_INTEGER)
    }
}

macro_rules! commands {
    ($($name:literal $arity:literal $keys:ident $writes:ident $run:path;)+) => {
        /// In the order of their names.
        static COMMANDS: &[Command] =
            &[$(Command { name: $name, arity: $arity, keys: Keys::$keys, writes: commands!(@$writes), run: $run }),+];
    };
    (@writes) => { true };
    (@reads) => { false };
}

commands! {
    "append" 3 First writes strings::append;
    "auth" -2 None reads connection::auth;
    "client" -2 None reads connection::client;
    "command" -1 None reads server::command;
    "config" -2 None reads server::config;
    "dbsize" 1 Everything reads keys::dbsize;
    "decr" 2 First writes strings::decr;
    "decrby" 3 First writes strings::decrby;
    "del" -2 All writes keys::del;
    "discard" 1 None reads connection::outside_multi;
    "echo" 2 None reads connection::echo;
    "exec" 1 None reads connection::outside_multi;
    "exists" -2 All reads keys::exists;
    "expire" -3 First writes keys::expire;
    "expireat" -3 First writes keys::expireat;
    "expiretime" 2 First reads keys::expiretime;
    "flushall" -1 Everything writes keys::flushall;
    "flushdb" -1 Everything writes keys::flushdb;
    "get" 2 First reads strings::get;
    "getdel" 2 First writes strings::getdel;
    "getex" -2 First writes strings::getex;
    "getrange" 4 First reads strings::getrange;
    "getset" 3 First writes strings::getset;
    "hello" -1 None reads connection::hello;
    "incr" 2 First writes strings::incr;
    "incrby" 3 First writes strings::incrby;
    "incrbyfloat" 3 First writes strings::incrbyfloat;
    "info" -1 Everything reads server::info;
    "keys" 2 Everything reads keys::keys;
    "memory" -2 Everything reads server::memory;
    "mget" -2 All reads strings::mget;
    "mset" -3 Pairs writes strings::mset;
    "msetnx" -3 Pairs writes strings::msetnx;
    "multi" 1 None reads connection::multi;
    "persist" 2 First writes keys::persist;
    "pexpire" -3 First writes keys::pexpire;
    "pexpireat" -3 First writes keys::pexpireat;
    "pexpiretime" 2 First reads keys::pexpiretime;
    "ping" -1 None reads connection::ping;
    "psetex" 4 First writes strings::psetex;
    "pttl" 2 First reads keys::pttl;
    "quit" -1 None reads connection::quit;
    "randomkey" 1 Everything reads keys::randomkey;
    "reset" 1 None reads connection::reset;
    "scan" -2 Everything reads keys::scan;
    "select" 2 None reads connection::select;
    "set" -3 First writes strings::set;
    "setex" 4 First writes strings::setex;
    "setnx" 3 First writes strings::setnx;
    "setrange" 4 First writes strings::setrange;
    "strlen" 2 First reads strings::strlen;
    "substr" 4 First reads strings::getrange;
    "time" 1 None reads server::time;
    "touch" -2 All reads keys::exists;
    "ttl" 2 First reads keys::ttl;
    "type" 2 First reads keys::kind;
    "unlink" -2 All writes keys::del;
    "wait" 3 None reads server::wait;
}

/// How many names begin with a letter before each, and before the one behind the last.
static LETTERS: [usize; 27] = {
    let (mut letters, mut letter) = ([0; 27], 0);
    while letter < letters.len() {
        let mut at = 0;
        while at < COMMANDS.len() && COMMANDS[at].name.as_bytes()[0] < b'a' + letter as u8 {
            at += 1;
        }
        letters[letter] = at;
        letter += 1;
    }
    letters
};

/// The longest name.
const NAME_BYTES_MAX: usize = 12;

impl Command {
    fn find(name: &[u8]) -> Option<&'static Command> {
        let mut lower = [0; NAME_BYTES_MAX];
        let lower = lower.get_mut(..name.len())?;
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        let letter = usize::from(lower.first()?.checked_sub(b'a')?);
        let (start, end) = (*LETTERS.get(letter)?, *LETTERS.get(letter + 1)?);
        COMMANDS[start..end].iter().find(|command| command.name.as_bytes() == lower)
    }

    fn takes(&self, words: usize) -> bool {
        if self.arity < 0 { words >= self.arity.unsigned_abs() as usize } else { words == self.arity as usize }
    }

    fn key_args<'a>(&self, args: &'a [&'a [u8]]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (count, step) = match self.keys {
            Keys::None | Keys::Everything => (0, 1),
            Keys::First => (1, 1),
            Keys::All => (usize::MAX, 1),
            Keys::Pairs => (usize::MAX, 2),
        };
        args[1..].iter().copied().step_by(step).take(count)
    }
}

/// Says a text of a client back, as far as it can be said.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(128)])
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn find(args: &[&[u8]]) -> Result<&'static Command, Fault> {
    let Some(command) = Command::find(args[0]) else {
        let beginning: String = args[1..].iter().take(20).map(|arg| format!("'{}' ", shown(arg))).collect();
        let name = shown(args[0]);
        return Err(Fault::Told(format!("ERR unknown command '{name}', with args beginning with: {beginning}")));
    };
    if command.name == "exec" && !command.takes(args.len()) {
        return Err(Fault::Said(
            "EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command",
        ));
    }
    if !command.takes(args.len()) {
        return Err(Fault::Told(format!("ERR wrong number of arguments for '{}' command", command.name)));
    }
    Ok(command)
}

/// Runs a command, or keeps it for EXEC. There is at least one argument; `now` is in milliseconds since 1970.
pub fn run(server: &Shared, client: &mut Client, args: &[&[u8]], out: &mut Vec<u8>, now: u64) {
    let mut reply = Reply { out, resp3: client.resp3 };
    let start = reply.out.len();
    let done = find(args).and_then(|command| {
        if !client.known && !matches!(command.name, "auth" | "hello" | "quit" | "reset") {
            return Err(Fault::Said("NOAUTH Authentication required."));
        }
        match (&mut client.queue, command.name) {
            (Some(_), "exec") => exec(server, client, &mut reply, now),
            (Some(_), "discard") => {
                (client.queue, client.spoilt) = (None, false);
                reply.ok();
                Ok(())
            }
            (Some(_), "multi") => {
                // It does not spoil the transaction, as it does not in Redis.
                reply.error("ERR MULTI calls can not be nested");
                Ok(())
            }
            (Some(queue), name) if !matches!(name, "quit" | "reset") => {
                queue.push(args);
                reply.status("QUEUED");
                Ok(())
            }
            _ => {
                // Nearly all commands have one key.
                let first = (command.keys == Keys::First).then(|| server.space.name(client.db, args[1]));
                let mut locked = match first {
                    Some(name) => server.space.lock(name, now),
                    None => lock(server, client.db, &[(command, args)], now),
                };
                let mut call = Call { args, server, client, locked: &mut locked, reply: &mut reply, first };
                (command.run)(&mut call)
            }
        }
    });
    if let Err(fault) = done {
        client.spoilt |= client.queue.is_some();
        if args[0].eq_ignore_ascii_case(b"exec") {
            // An EXEC that is refused ends the transaction all the same.
            (client.queue, client.spoilt) = (None, false);
        }
        reply.out.truncate(start);
        reply.error(fault.text());
    }
}

/// Locks what commands need.
fn lock<'a>(server: &'a Shared, db: u8, commands: &[(&Command, &[&[u8]])], now: u64) -> Locked<'a> {
    if commands.iter().any(|(command, _)| command.keys == Keys::Everything) {
        return server.space.lock_all();
    }
    let keys = commands.iter().flat_map(|(command, args)| command.key_args(args));
    server.space.lock_many(keys.map(|key| server.space.name(db, key)), now)
}

/// Does all that was queued, with nobody in between.
fn exec(server: &Shared, client: &mut Client, reply: &mut Reply<'_>, now: u64) -> Result<(), Fault> {
    let queue = client.queue.take().unwrap_or_default().commands;
    if std::mem::take(&mut client.spoilt) {
        return Err(Fault::Said("EXECABORT Transaction discarded because of previous errors."));
    }
    let words: Vec<Vec<&[u8]>> = queue.iter().map(|args| args.iter().map(Vec::as_slice).collect()).collect();
    let commands =
        words.iter().map(|args| find(args).map(|command| (command, &args[..]))).collect::<Result<Vec<_>, _>>()?;
    // SELECT among them would change which keys the others mean: then everything is locked.
    let mut locked = if commands.iter().any(|(command, _)| matches!(command.name, "select")) {
        server.space.lock_all()
    } else {
        lock(server, client.db, &commands, now)
    };
    reply.array(commands.len());
    for (command, args) in commands {
        let start = reply.out.len();
        let mut call =
            Call { args, server, client: &mut *client, locked: &mut locked, reply: &mut *reply, first: None };
        if let Err(fault) = (command.run)(&mut call) {
            reply.out.truncate(start);
            reply.error(fault.text());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_names_are_found() {
        assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
        assert!(COMMANDS.iter().all(|command| command.name.len() <= NAME_BYTES_MAX));
        assert!(Command::find(b"GeT").is_some_and(|command| command.name == "get"));
        assert!(COMMANDS.iter().all(|command| {
            Command::find(command.name.as_bytes()).is_some_and(|found| std::ptr::eq(found, command))
        }));
        for name in [&b""[..], b"gets", b"a-name-that-is-long", b"\xff", b"z", b"zz", b"{", b"`"] {
            assert!(Command::find(name).is_none());
        }
        let args: Vec<&[u8]> = vec![b"mset", b"a", b"1", b"b", b"2"];
        assert_eq!(Command::find(b"mset").unwrap().key_args(&args).collect::<Vec<_>>(), [b"a", b"b"]);
    }
}
