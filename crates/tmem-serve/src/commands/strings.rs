//! Values.

use super::keys::time_of;
use super::{Call, Fault, NOT_INTEGER, SYNTAX};
use crate::reply::Reply;
use crate::resp::{BULK_BYTES_MAX, number};
use crate::shard::{Expiry, Name};

type Done = Result<(), Fault>;

impl Call<'_, '_, '_> {
    /// Answers with a value, or with nothing. What would be answered with more values than one may have is refused.
    fn answer(&mut self, name: Name) -> Result<bool, Fault> {
        if self.reply.out.len() > self.server.value_bytes_max() {
            return Err(Fault::Full);
        }
        let (shard, ground) = self.locked.of(name);
        let resp3 = self.reply.resp3;
        let found = shard.read(ground, name, self.reply.out, |bytes, out| {
            Reply { out, resp3 }.bulk_head(bytes);
            0..bytes
        });
        shard.hits += u64::from(found);
        shard.misses += u64::from(!found);
        if found {
            self.reply.out.extend_from_slice(b"\r\n");
        } else {
            self.reply.null();
        }
        Ok(found)
    }

    fn value(&mut self, name: Name) -> Option<Vec<u8>> {
        let (shard, ground) = self.locked.of(name);
        let mut value = Vec::new();
        shard.read(ground, name, &mut value, |bytes, _| 0..bytes).then_some(value)
    }

    fn store(&mut self, name: Name, key: &[u8], value: &[u8], expiry: Expiry) -> Done {
        let (shard, ground) = self.locked.of(name);
        Ok(shard.write(ground, name, key, value, expiry)?)
    }

    fn exists(&mut self, name: Name) -> bool {
        let (shard, ground) = self.locked.of(name);
        shard.length(ground, name).is_some()
    }
}

pub fn get(call: &mut Call<'_, '_, '_>) -> Done {
    call.answer(call.name()).map(drop)
}

/// What stands behind the value of SET, or the key of GETEX.
#[derive(Default)]
struct Options {
    expiry: Option<Expiry>,
    /// Only if the key is there, or only if it is not.
    exists: Option<bool>,
    get: bool,
}

/// Options may be said again, but no two that exclude each other; the last counts.
fn options(call: &Call<'_, '_, '_>, from: usize, command: &'static str) -> Result<Options, Fault> {
    let mut options = Options::default();
    let mut expiry: Option<(Vec<u8>, usize)> = None;
    let mut at = from;
    while at < call.args.len() {
        let word = call.args[at].to_ascii_lowercase();
        at += 1;
        let may_expire = expiry.as_ref().is_none_or(|(before, _)| *before == word);
        match (&word[..], command) {
            (b"nx", "set") if options.exists != Some(true) => options.exists = Some(false),
            (b"xx", "set") if options.exists != Some(false) => options.exists = Some(true),
            (b"get", "set") => options.get = true,
            (b"keepttl", "set") | (b"persist", "getex") if may_expire => expiry = Some((word, 0)),
            (b"ex" | b"px" | b"exat" | b"pxat", _) if may_expire && at < call.args.len() => {
                expiry = Some((word, at));
                at += 1;
            }
            _ => return Err(SYNTAX),
        }
    }
    options.expiry = match expiry {
        None => None,
        Some((word, _)) if word == b"keepttl" => Some(Expiry::Keep),
        Some((word, _)) if word == b"persist" => Some(Expiry::At(0)),
        Some((word, at)) => {
            let number = call.number(at)?;
            let since = if word.ends_with(b"at") { 0 } else { call.locked.now() };
            let time = time_of(number, word[0] == b'e', since).filter(|_| number > 0);
            let wrong = || Fault::Told(format!("ERR invalid expire time in '{command}' command"));
            Some(Expiry::At(time.ok_or_else(wrong)?))
        }
    };
    Ok(options)
}

pub fn set(call: &mut Call<'_, '_, '_>) -> Done {
    let Options { expiry, exists, get } = options(call, 3, "set")?;
    let (name, key, value) = (call.name(), call.args[1], call.args[2]);
    let start = call.reply.out.len();
    if get {
        call.answer(name)?;
    }
    if exists.is_some_and(|wanted| call.exists(name) != wanted) {
        if !get {
            call.reply.null();
        }
        return Ok(());
    }
    call.store(name, key, value, expiry.unwrap_or(Expiry::At(0)))?;
    if !get {
        call.reply.out.truncate(start);
        call.reply.ok();
    }
    Ok(())
}

fn set_for(call: &mut Call<'_, '_, '_>, seconds: bool, command: &str) -> Done {
    let number = call.number(2)?;
    let at = time_of(number, seconds, call.locked.now()).filter(|_| number > 0);
    let at = at.ok_or_else(|| Fault::Told(format!("ERR invalid expire time in '{command}' command")))?;
    call.store(call.name(), call.args[1], call.args[3], Expiry::At(at))?;
    call.reply.ok();
    Ok(())
}

pub fn setex(call: &mut Call<'_, '_, '_>) -> Done {
    set_for(call, true, "setex")
}

pub fn psetex(call: &mut Call<'_, '_, '_>) -> Done {
    set_for(call, false, "psetex")
}

pub fn setnx(call: &mut Call<'_, '_, '_>) -> Done {
    let name = call.name();
    let new = !call.exists(name);
    if new {
        call.store(name, call.args[1], call.args[2], Expiry::At(0))?;
    }
    call.reply.integer(new.into());
    Ok(())
}

pub fn getset(call: &mut Call<'_, '_, '_>) -> Done {
    let name = call.name();
    call.answer(name)?;
    call.store(name, call.args[1], call.args[2], Expiry::At(0))
}

pub fn getex(call: &mut Call<'_, '_, '_>) -> Done {
    let options = options(call, 2, "getex")?;
    let name = call.name();
    if call.answer(name)?
        && let Some(Expiry::At(at)) = options.expiry
    {
        let (shard, ground) = call.locked.of(name);
        shard.set_expiry(ground, name, at)?;
    }
    Ok(())
}

pub fn getdel(call: &mut Call<'_, '_, '_>) -> Done {
    let name = call.name();
    if call.answer(name)? {
        let (shard, ground) = call.locked.of(name);
        shard.remove(ground, name);
    }
    Ok(())
}

pub fn getrange(call: &mut Call<'_, '_, '_>) -> Done {
    let (start, end) = (call.number(2)?, call.number(3)?);
    let name = call.name();
    let (shard, ground) = call.locked.of(name);
    let resp3 = call.reply.resp3;
    let found = shard.read(ground, name, call.reply.out, |bytes, out| {
        let range = range_of(start, end, bytes);
        Reply { out, resp3 }.bulk_head(range.len());
        range
    });
    if found {
        call.reply.out.extend_from_slice(b"\r\n")
    } else {
        call.reply.bulk(b"")
    }
    Ok(())
}

/// Bytes from `start` to `end`, that one included; what is negative counts from behind.
fn range_of(start: i64, end: i64, bytes: usize) -> std::ops::Range<usize> {
    let bytes = bytes as i64;
    let from_front = |at: i64| if at < 0 { (bytes.saturating_add(at)).max(0) } else { at };
    if start < 0 && end < 0 && start > end {
        return 0..0;
    }
    let (start, end) = (from_front(start), from_front(end).min(bytes - 1));
    if start > end { 0..0 } else { start as usize..end as usize + 1 }
}

pub fn strlen(call: &mut Call<'_, '_, '_>) -> Done {
    let name = call.name();
    let (shard, ground) = call.locked.of(name);
    let length = shard.length(ground, name).unwrap_or(0);
    call.reply.integer(length as i64);
    Ok(())
}

pub fn mget(call: &mut Call<'_, '_, '_>) -> Done {
    call.reply.array(call.args.len() - 1);
    for key in &call.args[1..] {
        call.answer(call.name_of(key))?;
    }
    Ok(())
}

fn pairs<'a>(call: &Call<'a, '_, '_>, command: &str) -> Result<&'a [[&'a [u8]; 2]], Fault> {
    let (pairs, rest) = call.args[1..].as_chunks();
    if !rest.is_empty() {
        return Err(Fault::Told(format!("ERR wrong number of arguments for '{command}' command")));
    }
    Ok(pairs)
}

pub fn mset(call: &mut Call<'_, '_, '_>) -> Done {
    for [key, value] in pairs(call, "mset")? {
        call.store(call.name_of(key), key, value, Expiry::At(0))?;
    }
    call.reply.ok();
    Ok(())
}

pub fn msetnx(call: &mut Call<'_, '_, '_>) -> Done {
    let pairs = pairs(call, "msetnx")?;
    if pairs.iter().any(|[key, _]| call.exists(call.name_of(key))) {
        call.reply.integer(0);
        return Ok(());
    }
    for [key, value] in pairs {
        call.store(call.name_of(key), key, value, Expiry::At(0))?;
    }
    call.reply.integer(1);
    Ok(())
}

fn add(call: &mut Call<'_, '_, '_>, by: Option<i64>) -> Done {
    let name = call.name();
    let before = match call.value(name) {
        Some(value) => number(&value).ok_or(NOT_INTEGER)?,
        None => 0,
    };
    let after = by.and_then(|by| before.checked_add(by));
    let after = after.ok_or(Fault::Said("ERR increment or decrement would overflow"))?;
    call.store(name, call.args[1], after.to_string().as_bytes(), Expiry::Keep)?;
    call.reply.integer(after);
    Ok(())
}

pub fn incr(call: &mut Call<'_, '_, '_>) -> Done {
    add(call, Some(1))
}

pub fn decr(call: &mut Call<'_, '_, '_>) -> Done {
    add(call, Some(-1))
}

pub fn incrby(call: &mut Call<'_, '_, '_>) -> Done {
    let by = call.number(2)?;
    add(call, Some(by))
}

pub fn decrby(call: &mut Call<'_, '_, '_>) -> Done {
    let by = call.number(2)?;
    add(call, by.checked_neg())
}

fn float(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    let plain = !text.is_empty() && !text.contains(char::is_whitespace) && !text.to_ascii_lowercase().contains('n');
    text.parse().ok().filter(|_| plain)
}

pub fn incrbyfloat(call: &mut Call<'_, '_, '_>) -> Done {
    const NOT_FLOAT: Fault = Fault::Said("ERR value is not a valid float");
    let name = call.name();
    let by = float(call.args[2]).ok_or(NOT_FLOAT)?;
    let before = match call.value(name) {
        Some(value) => float(&value).ok_or(NOT_FLOAT)?,
        None => 0.0,
    };
    let after = before + by;
    if !after.is_finite() {
        return Err(Fault::Said("ERR increment would produce NaN or Infinity"));
    }
    let text = after.to_string();
    call.store(name, call.args[1], text.as_bytes(), Expiry::Keep)?;
    call.reply.bulk(text.as_bytes());
    Ok(())
}

const TOO_LONG: Fault = Fault::Said("ERR string exceeds maximum allowed size (proto-max-bulk-len)");

pub fn append(call: &mut Call<'_, '_, '_>) -> Done {
    let name = call.name();
    let mut value = call.value(name).unwrap_or_default();
    if value.len() + call.args[2].len() > BULK_BYTES_MAX {
        return Err(TOO_LONG);
    }
    if value.len() + call.args[2].len() > call.server.value_bytes_max() {
        return Err(Fault::Full);
    }
    value.extend_from_slice(call.args[2]);
    call.store(name, call.args[1], &value, Expiry::Keep)?;
    call.reply.integer(value.len() as i64);
    Ok(())
}

pub fn setrange(call: &mut Call<'_, '_, '_>) -> Done {
    let (name, part) = (call.name(), call.args[3]);
    let offset = usize::try_from(call.number(2)?).map_err(|_| Fault::Said("ERR offset is out of range"))?;
    if part.is_empty() {
        return strlen(call);
    }
    let end = offset.checked_add(part.len()).filter(|end| *end <= BULK_BYTES_MAX).ok_or(TOO_LONG)?;
    if end > call.server.value_bytes_max() {
        return Err(Fault::Full);
    }
    let mut value = call.value(name).unwrap_or_default();
    value.resize(value.len().max(end), 0);
    value[offset..end].copy_from_slice(part);
    call.store(name, call.args[1], &value, Expiry::Keep)?;
    call.reply.integer(value.len() as i64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_count_from_both_ends() {
        for (start, end, wanted) in [
            (0, -1, 0..5),
            (0, 100, 0..5),
            (-3, -1, 2..5),
            (-100, 1, 0..2),
            (3, 1, 0..0),
            (-1, -3, 0..0),
            (5, 9, 0..0),
            (i64::MIN, i64::MAX, 0..5),
        ] {
            assert_eq!(range_of(start, end, 5), wanted, "{start} {end}");
        }
        assert_eq!(range_of(0, -1, 0), 0..0);
    }
}
