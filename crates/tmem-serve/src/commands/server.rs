//! What the server says about itself.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{COMMANDS, Call, Command, Fault, Keys, SYNTAX, shown};
use crate::glob;
use crate::resp::BULK_BYTES_MAX;
use crate::shard::DATABASES;

type Done = Result<(), Fault>;

pub fn time(call: &mut Call<'_, '_, '_>) -> Done {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    call.reply.array(2);
    call.reply.bulk(since.as_secs().to_string().as_bytes());
    call.reply.bulk(since.subsec_micros().to_string().as_bytes());
    Ok(())
}

/// There are no replicas: nobody has to be waited for.
pub fn wait(call: &mut Call<'_, '_, '_>) -> Done {
    call.number(1)?;
    call.number(2)?;
    call.reply.integer(0);
    Ok(())
}

impl Command {
    fn tell(&self, call: &mut Call<'_, '_, '_>) {
        let (first, last, step) = match self.keys {
            Keys::None | Keys::Everything => (0, 0, 0),
            Keys::First => (1, 1, 1),
            Keys::All => (1, -1, 1),
            Keys::Pairs => (1, -1, 2),
        };
        let reply = &mut *call.reply;
        reply.array(6);
        reply.bulk(self.name.as_bytes());
        reply.integer(self.arity.into());
        reply.array(1);
        reply.status(if self.writes { "write" } else { "readonly" });
        [first, last, step].into_iter().for_each(|number| reply.integer(number));
    }
}

pub fn command(call: &mut Call<'_, '_, '_>) -> Done {
    match &call.args[1..] {
        [] => {
            call.reply.array(COMMANDS.len());
            COMMANDS.iter().for_each(|command| command.tell(call));
        }
        [word] if word.eq_ignore_ascii_case(b"count") => call.reply.integer(COMMANDS.len() as i64),
        [word, names @ ..] if word.eq_ignore_ascii_case(b"info") => {
            call.reply.array(names.len());
            for name in names {
                match Command::find(name) {
                    Some(command) => command.tell(call),
                    None => call.reply.null(),
                }
            }
        }
        // There is a manual for that.
        [word, ..] if word.eq_ignore_ascii_case(b"docs") => call.reply.map(0),
        [word, ..] => return Err(Fault::Told(format!("ERR unknown subcommand '{}'", shown(word)))),
    }
    Ok(())
}

pub fn config(call: &mut Call<'_, '_, '_>) -> Done {
    let space = &call.server.space;
    match (&call.args[1].to_ascii_lowercase()[..], &call.args[2..]) {
        (b"get", patterns @ [_, ..]) => {
            let all = [
                ("appendonly", "no".to_owned()),
                ("databases", DATABASES.to_string()),
                ("maxmemory", space.ram_bytes().to_string()),
                ("maxmemory-policy", call.server.policy().to_owned()),
                ("proto-max-bulk-len", BULK_BYTES_MAX.to_string()),
                ("save", String::new()),
                ("timeout", "0".to_owned()),
            ];
            let matches = |name: &str| {
                patterns.iter().any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
            };
            let found: Vec<_> = all.iter().filter(|(name, _)| matches(name)).collect();
            call.reply.map(found.len());
            for (name, value) in found {
                call.reply.bulk(name.as_bytes());
                call.reply.bulk(value.as_bytes());
            }
        }
        (b"set", [name, value]) if name.eq_ignore_ascii_case(b"maxmemory") => {
            let bytes = crate::resp::number(value).and_then(|bytes| u64::try_from(bytes).ok());
            let bytes = bytes.ok_or(Fault::Said("ERR CONFIG SET failed - argument must be a memory value in bytes"))?;
            let why = "ERR CONFIG SET failed - it is less than 16 MiB, or than what cannot be dropped";
            space.set_ram_bytes(bytes).map_err(|_| Fault::Said(why))?;
            call.reply.ok();
        }
        (b"set", [name, ..]) => {
            let name = shown(name);
            return Err(Fault::Told(format!("ERR Unknown option or it cannot be changed while tmem runs: '{name}'")));
        }
        (b"resetstat", []) => call.reply.ok(),
        _ => return Err(SYNTAX),
    }
    Ok(())
}

/// What a key takes: an entry of the table and its part of packed pages, on average.
pub fn memory(call: &mut Call<'_, '_, '_>) -> Done {
    match (&call.args[1].to_ascii_lowercase()[..], &call.args[2..]) {
        (b"usage", [key, ..]) => {
            let name = call.name_of(key);
            let stats = call.server.space.store().stats();
            let ratio = stats.memory_bytes as f64 / stats.original_bytes.max(1) as f64;
            let (shard, ground) = call.locked.of(name);
            match shard.length(ground, name) {
                Some(bytes) => {
                    let packed = (bytes + key.len()) as f64 * ratio.min(1.0);
                    call.reply.integer(packed as i64 + 64);
                }
                None => call.reply.null(),
            }
            Ok(())
        }
        _ => Err(SYNTAX),
    }
}

pub fn info(call: &mut Call<'_, '_, '_>) -> Done {
    let figures = call.server.figures_with(call.locked);
    let wanted = |section: &str| {
        let asked = &call.args[1..];
        let names = |word: &&[u8]| {
            word.eq_ignore_ascii_case(section.as_bytes())
                || [&b"all"[..], b"default", b"everything"].iter().any(|all| word.eq_ignore_ascii_case(all))
        };
        asked.is_empty() || asked.iter().any(names)
    };
    let mut text = String::new();
    let mut section = |name: &str, lines: String| {
        if wanted(&name.to_ascii_lowercase()) {
            text += &format!("# {name}\r\n{lines}\r\n");
        }
    };
    section(
        "Server",
        format!(
            "redis_version:7.0.0\r\nredis_mode:standalone\r\ntmem_version:{}\r\nprocess_id:{}\r\nuptime_in_seconds:{:.0}\r\n",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            figures.seconds
        ),
    );
    section("Clients", format!("connected_clients:{}\r\n", figures.connections));
    section(
        "Memory",
        format!(
            "used_memory:{}\r\nused_memory_dataset:{}\r\nmaxmemory:{}\r\nmaxmemory_policy:{}\r\ntmem_stored_bytes:{}\r\n\
             tmem_packed_bytes:{}\r\ntmem_unpacked_bytes:{}\r\ntmem_table_bytes:{}\r\ntmem_ratio:{:.2}\r\n",
            figures.used_bytes,
            figures.store_bytes,
            figures.ram_bytes,
            call.server.policy(),
            figures.stored_bytes,
            figures.packed_bytes,
            figures.unpacked_bytes,
            figures.table_bytes,
            figures.ratio
        ),
    );
    section(
        "Stats",
        format!(
            "total_connections_received:{}\r\ntotal_commands_processed:{}\r\nkeyspace_hits:{}\r\nkeyspace_misses:{}\r\n\
             expired_keys:{}\r\nevicted_keys:{}\r\nrejected_connections:{}\r\n",
            figures.connections_total,
            figures.commands,
            figures.hits,
            figures.misses,
            figures.expired,
            figures.evicted,
            figures.connections_refused
        ),
    );
    section("Replication", "role:master\r\nconnected_slaves:0\r\n".to_owned());
    section("Cluster", "cluster_enabled:0\r\n".to_owned());
    let mut keys = String::new();
    for db in 0..DATABASES as u8 {
        let mut sum = (0, 0);
        call.locked.each(|shard, _| {
            let (keys, expiring) = shard.keys(db);
            sum = (sum.0 + keys, sum.1 + expiring);
        });
        if sum.0 > 0 {
            keys += &format!("db{db}:keys={},expires={},avg_ttl=0\r\n", sum.0, sum.1);
        }
    }
    section("Keyspace", keys);
    call.reply.bulk(text.as_bytes());
    Ok(())
}
