//! What a client says about itself and its connection.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

use super::{Call, Fault, SYNTAX, shown};
use crate::client::{Info, Queue};
use crate::shard::DATABASES;

type Done = Result<(), Fault>;

/// How long a client that said a wrong password is not heard: so long after the first, twice as long after each more.
const MUTED_MIN: Duration = Duration::from_millis(100);
const MUTED_MAX: Duration = Duration::from_secs(10);

pub fn ping(call: &mut Call<'_, '_, '_>) -> Done {
    match call.args {
        [_] => call.reply.status("PONG"),
        [_, text] => call.reply.bulk(text),
        _ => return Err(Fault::Said("ERR wrong number of arguments for 'ping' command")),
    }
    Ok(())
}

pub fn echo(call: &mut Call<'_, '_, '_>) -> Done {
    call.reply.bulk(call.args[1]);
    Ok(())
}

pub fn quit(call: &mut Call<'_, '_, '_>) -> Done {
    call.client.leaving = true;
    call.reply.ok();
    Ok(())
}

pub fn reset(call: &mut Call<'_, '_, '_>) -> Done {
    call.client.reset(call.server.password.is_none());
    call.reply.resp3 = false;
    call.reply.status("RESET");
    Ok(())
}

pub fn select(call: &mut Call<'_, '_, '_>) -> Done {
    let db = crate::resp::number(call.args[1]).ok_or(Fault::Said("ERR invalid DB index"))?;
    if !(0..DATABASES as i64).contains(&db) {
        return Err(Fault::Said("ERR DB index is out of range"));
    }
    call.client.db = db as u8;
    call.client.info.db.store(db as u8, Relaxed);
    call.reply.ok();
    Ok(())
}

pub fn multi(call: &mut Call<'_, '_, '_>) -> Done {
    call.client.queue = Some(Queue::default());
    call.reply.ok();
    Ok(())
}

/// EXEC and DISCARD are dealt with where commands are queued.
pub fn outside_multi(call: &mut Call<'_, '_, '_>) -> Done {
    let name = String::from_utf8_lossy(call.args[0]).to_ascii_uppercase();
    Err(Fault::Told(format!("ERR {name} without MULTI")))
}

fn authenticate(call: &mut Call<'_, '_, '_>, user: &[u8], password: &[u8]) -> Done {
    let Some(wanted) = &call.server.password else {
        return Err(Fault::Said(
            "ERR AUTH <password> called without any password configured for the default user. Are you sure your \
             configuration is correct?",
        ));
    };
    let same: bool = wanted.ct_eq(password).into();
    if !same || user != b"default" {
        let client = &mut *call.client;
        client.failures += 1;
        let muted = MUTED_MIN.saturating_mul(1 << (client.failures - 1).min(16)).min(MUTED_MAX);
        client.muted_until = Some(Instant::now() + muted);
        call.server.counters.wrong_passwords.fetch_add(1, Relaxed);
        return Err(Fault::Said("WRONGPASS invalid username-password pair or user is disabled."));
    }
    call.client.known = true;
    Ok(())
}

pub fn auth(call: &mut Call<'_, '_, '_>) -> Done {
    match call.args {
        [_, password] => authenticate(call, b"default", password)?,
        [_, user, password] => authenticate(call, user, password)?,
        _ => return Err(SYNTAX),
    }
    call.reply.ok();
    Ok(())
}

/// A name has no spaces, so that CLIENT LIST can be read.
fn set_name(info: &Info, name: &[u8]) -> Done {
    if !name.iter().all(u8::is_ascii_graphic) {
        return Err(Fault::Said("ERR Client names cannot contain spaces, newlines or special characters."));
    }
    *info.name() = String::from_utf8_lossy(name).into_owned();
    Ok(())
}

pub fn hello(call: &mut Call<'_, '_, '_>) -> Done {
    let mut resp3 = call.client.resp3;
    let mut rest = &call.args[1..];
    if let [version, after @ ..] = rest {
        resp3 = match crate::resp::number(version) {
            Some(2) => false,
            Some(3) => true,
            Some(_) => return Err(Fault::Said("NOPROTO unsupported protocol version")),
            None => return Err(Fault::Said("ERR Protocol version is not an integer or out of range")),
        };
        rest = after;
    }
    let mut name = None;
    while let [word, after @ ..] = rest {
        match (&word.to_ascii_lowercase()[..], after) {
            (b"auth", [user, password, after @ ..]) => {
                authenticate(call, user, password)?;
                rest = after;
            }
            (b"setname", [text, after @ ..]) => {
                name = Some(*text);
                rest = after;
            }
            _ => return Err(Fault::Told(format!("ERR Syntax error in HELLO option '{}'", shown(word)))),
        }
    }
    if !call.client.known {
        return Err(Fault::Said(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> \
             <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
        ));
    }
    if let Some(name) = name {
        set_name(&call.client.info, name)?;
    }
    call.client.resp3 = resp3;
    let id = call.client.info.id as i64;
    let reply = &mut *call.reply;
    reply.resp3 = resp3;
    reply.map(7);
    reply.bulk(b"server");
    reply.bulk(b"tmem");
    reply.bulk(b"version");
    reply.bulk(env!("CARGO_PKG_VERSION").as_bytes());
    reply.bulk(b"proto");
    reply.integer(if resp3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.integer(id);
    reply.bulk(b"mode");
    reply.bulk(b"standalone");
    reply.bulk(b"role");
    reply.bulk(b"master");
    reply.bulk(b"modules");
    reply.array(0);
    Ok(())
}

pub fn client(call: &mut Call<'_, '_, '_>) -> Done {
    let info = Arc::clone(&call.client.info);
    match (&call.args[1].to_ascii_lowercase()[..], &call.args[2..]) {
        (b"id", []) => call.reply.integer(info.id as i64),
        (b"getname", []) => {
            let name = info.name().clone();
            if name.is_empty() { call.reply.null() } else { call.reply.bulk(name.as_bytes()) }
        }
        (b"setname", [name]) => {
            set_name(&info, name)?;
            call.reply.ok();
        }
        (b"setinfo", [what, text]) => {
            let at = match &what.to_ascii_lowercase()[..] {
                b"lib-name" => 0,
                b"lib-ver" => 1,
                _ => return Err(Fault::Told(format!("ERR Unrecognized option '{}'", shown(what)))),
            };
            if !text.iter().all(u8::is_ascii_graphic) {
                return Err(Fault::Said(
                    "ERR lib-name and lib-ver cannot contain spaces, newlines or special characters.",
                ));
            }
            info.library()[at] = shown(text);
            call.reply.ok();
        }
        (b"info", []) => call.reply.bulk((info.line() + "\n").as_bytes()),
        (b"list", []) => {
            let all: String = call.server.registry.all().iter().map(|info| info.line() + "\n").collect();
            call.reply.bulk(all.as_bytes());
        }
        (b"kill", rest) => return kill(call, rest),
        (what, _) => {
            let what = shown(what);
            return Err(Fault::Told(format!("ERR unknown subcommand or wrong number of arguments for '{what}'")));
        }
    }
    Ok(())
}

/// CLIENT KILL ADDRESS, or CLIENT KILL ID NUMBER, ADDR ADDRESS, SKIPME yes|no.
fn kill(call: &mut Call<'_, '_, '_>, rest: &[&[u8]]) -> Done {
    let me = call.client.info.id;
    let (mut id, mut peer, mut skip_me) = (None, None, true);
    match rest {
        [address] => (peer, skip_me) = (Some(*address), false),
        _ => {
            let (options, odd) = rest.as_chunks();
            if options.is_empty() || !odd.is_empty() {
                return Err(SYNTAX);
            }
            for [word, value] in options {
                match &word.to_ascii_lowercase()[..] {
                    b"id" => {
                        id = Some(
                            crate::resp::number(value).ok_or(Fault::Said("ERR client-id should be greater than 0"))?,
                        )
                    }
                    b"addr" => peer = Some(*value),
                    b"skipme" => skip_me = value.eq_ignore_ascii_case(b"yes"),
                    _ => return Err(SYNTAX),
                }
            }
        }
    }
    let mut killed = 0;
    for info in call.server.registry.all() {
        let meant = id.is_none_or(|id| info.id as i64 == id) && peer.is_none_or(|peer| info.peer.as_bytes() == peer);
        if meant && !(skip_me && info.id == me) {
            killed += 1;
            if info.id == me { call.client.leaving = true } else { info.kill() }
        }
    }
    match (rest, killed) {
        ([_], 0) => return Err(Fault::Said("ERR No such client")),
        ([_], _) => call.reply.ok(),
        _ => call.reply.integer(killed),
    }
    Ok(())
}
