//! Keys, whatever their values.

use super::{Call, Fault, SYNTAX};
use crate::glob;

type Done = Result<(), Fault>;

/// A time in milliseconds since 1970, from a number of seconds or milliseconds since another one. `None` if Redis has no such time;
/// those that only we have not, in 36 million years, are the last that we have.
pub fn time_of(number: i64, seconds: bool, since: u64) -> Option<u64> {
    const TIME_MAX: i64 = (1 << 60) - 1;
    let ms = if seconds { number.checked_mul(1000)? } else { number };
    let at = ms.checked_add(since as i64)?;
    Some(at.clamp(1, TIME_MAX) as u64)
}

pub fn del(call: &mut Call<'_, '_, '_>) -> Done {
    let mut removed = 0;
    for key in &call.args[1..] {
        let name = call.name_of(key);
        let (shard, ground) = call.locked.of(name);
        // What has expired, or was dropped, is not there.
        if shard.length(ground, name).is_some() {
            removed += i64::from(shard.remove(ground, name));
        }
    }
    call.reply.integer(removed);
    Ok(())
}

pub fn exists(call: &mut Call<'_, '_, '_>) -> Done {
    let mut found = 0;
    for key in &call.args[1..] {
        let name = call.name_of(key);
        let (shard, ground) = call.locked.of(name);
        found += i64::from(shard.length(ground, name).is_some());
    }
    call.reply.integer(found);
    Ok(())
}

pub fn kind(call: &mut Call<'_, '_, '_>) -> Done {
    let name = call.name();
    let (shard, ground) = call.locked.of(name);
    let kind = if shard.length(ground, name).is_some() { "string" } else { "none" };
    call.reply.status(kind);
    Ok(())
}

fn expire_at(call: &mut Call<'_, '_, '_>, seconds: bool, relative: bool) -> Done {
    let number = call.number(2)?;
    let since = if relative { call.locked.now() } else { 0 };
    let wrong = || {
        let command = String::from_utf8_lossy(call.args[0]).to_ascii_lowercase();
        Fault::Told(format!("ERR invalid expire time in '{command}' command"))
    };
    let at = time_of(number, seconds, since).ok_or_else(wrong)?;
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for word in &call.args[3..] {
        match &word.to_ascii_lowercase()[..] {
            b"nx" => nx = true,
            b"xx" => xx = true,
            b"gt" => gt = true,
            b"lt" => lt = true,
            _ => return Err(Fault::Told(format!("ERR Unsupported option {}", super::shown(word)))),
        }
    }
    if nx && (xx || gt || lt) {
        return Err(Fault::Said("ERR NX and XX, GT or LT options at the same time are not compatible"));
    }
    if gt && lt {
        return Err(Fault::Said("ERR GT and LT options at the same time are not compatible"));
    }
    let (name, now) = (call.name(), call.locked.now());
    let (shard, ground) = call.locked.of(name);
    let before = shard.length(ground, name).and_then(|_| shard.expiry(ground, name));
    // What never expires counts as the latest time.
    let allowed = before.is_some_and(|before| {
        let expires = before != 0;
        let refused = (nx && expires) || (xx && !expires);
        let wrong_way = (gt && (!expires || at <= before)) || (lt && expires && at >= before);
        !refused && !wrong_way
    });
    if allowed {
        if at <= now {
            shard.remove(ground, name);
        } else {
            shard.set_expiry(ground, name, at)?;
        }
    }
    call.reply.integer(allowed.into());
    Ok(())
}

pub fn expire(call: &mut Call<'_, '_, '_>) -> Done {
    expire_at(call, true, true)
}

pub fn pexpire(call: &mut Call<'_, '_, '_>) -> Done {
    expire_at(call, false, true)
}

pub fn expireat(call: &mut Call<'_, '_, '_>) -> Done {
    expire_at(call, true, false)
}

pub fn pexpireat(call: &mut Call<'_, '_, '_>) -> Done {
    expire_at(call, false, false)
}

/// Answers with a time: -2 if there is no such key, -1 if it does not expire.
fn tell_time(call: &mut Call<'_, '_, '_>, of: impl FnOnce(u64, u64) -> u64) -> Done {
    let (name, now) = (call.name(), call.locked.now());
    let (shard, ground) = call.locked.of(name);
    let at = shard.length(ground, name).and_then(|_| shard.expiry(ground, name));
    call.reply.integer(match at {
        None => -2,
        Some(0) => -1,
        Some(at) => of(at, now) as i64,
    });
    Ok(())
}

pub fn ttl(call: &mut Call<'_, '_, '_>) -> Done {
    tell_time(call, |at, now| (at.saturating_sub(now) + 500) / 1000)
}

pub fn pttl(call: &mut Call<'_, '_, '_>) -> Done {
    tell_time(call, |at, now| at.saturating_sub(now))
}

pub fn expiretime(call: &mut Call<'_, '_, '_>) -> Done {
    tell_time(call, |at, _| at / 1000)
}

pub fn pexpiretime(call: &mut Call<'_, '_, '_>) -> Done {
    tell_time(call, |at, _| at)
}

pub fn persist(call: &mut Call<'_, '_, '_>) -> Done {
    let name = call.name();
    let (shard, ground) = call.locked.of(name);
    let expires = shard.expiry(ground, name).is_some_and(|at| at != 0);
    let persists = expires && shard.set_expiry(ground, name, 0)?;
    call.reply.integer(persists.into());
    Ok(())
}

pub fn dbsize(call: &mut Call<'_, '_, '_>) -> Done {
    let (mut count, db) = (0, call.client.db);
    call.locked.each(|shard, _| count += i64::from(shard.keys(db).0));
    call.reply.integer(count);
    Ok(())
}

/// ASYNC and SYNC are the same here.
fn flush(call: &mut Call<'_, '_, '_>, db: Option<u8>) -> Done {
    match call.args[1..] {
        [] => {}
        [how] if how.eq_ignore_ascii_case(b"async") || how.eq_ignore_ascii_case(b"sync") => {}
        _ => return Err(SYNTAX),
    }
    call.locked.each(|shard, ground| shard.flush(ground, db));
    call.reply.ok();
    Ok(())
}

pub fn flushdb(call: &mut Call<'_, '_, '_>) -> Done {
    flush(call, Some(call.client.db))
}

pub fn flushall(call: &mut Call<'_, '_, '_>) -> Done {
    flush(call, None)
}

pub fn keys(call: &mut Call<'_, '_, '_>) -> Done {
    let mut found = Vec::new();
    let (pattern, db) = (call.args[1], call.client.db);
    call.locked.scan(db, 0, usize::MAX, |key| {
        if glob::matches(pattern, &key) {
            found.push(key);
        }
    });
    call.reply.array(found.len());
    found.iter().for_each(|key| call.reply.bulk(key));
    Ok(())
}

pub fn scan(call: &mut Call<'_, '_, '_>) -> Done {
    let cursor = std::str::from_utf8(call.args[1]).ok().and_then(|text| text.parse::<u64>().ok());
    let cursor = cursor.ok_or(Fault::Said("ERR invalid cursor"))?;
    let (mut pattern, mut count, mut strings) = (None, 10, true);
    let (options, rest) = call.args[2..].as_chunks();
    if !rest.is_empty() {
        return Err(SYNTAX);
    }
    for [word, value] in options {
        match &word.to_ascii_lowercase()[..] {
            b"match" => pattern = Some(*value),
            b"count" => {
                let number = crate::resp::number(value).ok_or(super::NOT_INTEGER)?;
                count = usize::try_from(number).ok().filter(|count| *count > 0).ok_or(SYNTAX)?;
            }
            b"type" => strings = value.eq_ignore_ascii_case(b"string"),
            _ => return Err(SYNTAX),
        }
    }
    let mut found = Vec::new();
    let next = call.locked.scan(call.client.db, cursor, count, |key| {
        if strings && pattern.is_none_or(|pattern| glob::matches(pattern, &key)) {
            found.push(key);
        }
    });
    call.reply.array(2);
    call.reply.bulk(next.to_string().as_bytes());
    call.reply.array(found.len());
    found.iter().for_each(|key| call.reply.bulk(key));
    Ok(())
}

pub fn randomkey(call: &mut Call<'_, '_, '_>) -> Done {
    match call.locked.any(call.client.db) {
        Some(key) => call.reply.bulk(&key),
        None => call.reply.null(),
    }
    Ok(())
}
