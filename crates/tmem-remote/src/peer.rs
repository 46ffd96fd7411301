//! One peer: connections to it, whether it can be asked, and what it was asked and answered so far.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use redis::cluster::{ClusterClient, ClusterConnection};
use redis::{
    Client, ConnectionInfo, ConnectionLike, ErrorKind, Pipeline, RedisResult, ServerErrorKind, TlsCertificates, Value,
};

use crate::sync::Mutex;
use crate::{Error, lock};

/// How long a peer may take to accept a connection, and be silent while an answer is due.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the replicas of a cluster may take to confirm a write.
const REPLICAS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a peer that failed is left alone; twice as long after each failure that follows.
const REST_MIN: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(3);
/// How long a peer that is full is not given anything.
const FULL_REST: Duration = Duration::from_secs(10);
/// A peer that does not answer for so long is taken for dead: what it had is copied elsewhere.
const DEAD_AFTER: Duration = Duration::from_secs(5);
/// Values that are removed later, because they cannot be now. More than that go when their time is over.
const LATE_MAX: usize = 4096;
/// A key that stands on a peer while it is to be drained, for all owners to see.
const DRAIN_KEY: &str = "tmem:drain";
/// What a full peer may grow by for that key.
const DRAIN_ROOM: u64 = 64 << 20;
/// Connections that nobody uses at the moment and that stay.
const IDLE_MAX: usize = 8;

/// Why a peer did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It has no room.
    Full,
    /// It is away, or says that it cannot now.
    Away(String),
    /// It says no.
    Refused(String),
}

impl Failure {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Full => "it is full",
            Self::Away(why) | Self::Refused(why) => why,
        }
    }
}

enum Server {
    One(Client),
    Cluster(ClusterClient),
    #[cfg(all(test, loom))]
    Model(std::sync::Arc<crate::model::Server>),
}

enum Link {
    One(redis::Connection),
    Cluster(Box<ClusterConnection>),
}

/// A connection on which commands were sent; none, if they are still to be.
struct Sent(Option<redis::Connection>);

/// Values on their way.
pub(crate) struct Storing {
    sent: Sent,
    packed: Vec<u8>,
    values: usize,
}

#[derive(Default)]
struct Health {
    rest: Duration,
    rests_until: Option<Instant>,
    failing_since: Option<Instant>,
    full_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Counters {
    values: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
    damaged: AtomicU64,
    lost: AtomicU64,
    refused_full: AtomicU64,
}

/// What is to be expected of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Up,
    Full,
    Draining,
    /// It may be back soon.
    Away,
    Dead,
}

/// Figures of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerFigures {
    /// Its address.
    pub name: String,
    /// `up`, `full`, `away` (it does not answer), `dead` (not for long) or `draining`.
    pub state: &'static str,
    /// Values that lie there; in a cluster, with their replicas.
    pub values: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Values that were not what was written.
    pub damaged: u64,
    /// Values that were not there any more.
    pub lost: u64,
    /// Values that it had no room for.
    pub refused_full: u64,
}

pub(crate) struct Peer {
    name: String,
    server: Server,
    /// Replicas that have to confirm a write.
    replicas: usize,
    idle: Mutex<Vec<Link>>,
    /// What is still to be removed, by its region.
    late: Mutex<Vec<(u64, String)>>,
    health: Mutex<Health>,
    draining: AtomicBool,
    counters: Counters,
}

impl Peer {
    /// A server.
    pub(crate) fn one(node: ConnectionInfo, tls: Option<&TlsCertificates>) -> Result<Self, Error> {
        let name = node.addr().to_string();
        let client = match tls {
            Some(certificates) if !matches!(node.addr(), redis::ConnectionAddr::Unix(_)) => {
                Client::build_with_tls(node, certificates.clone())
            }
            _ => Client::open(node),
        };
        let client = client.map_err(|e| Error(format!("{name}: {e}")))?;
        Ok(Self::new(name, Server::One(client)))
    }

    /// A whole cluster, to be found at any of these nodes.
    pub(crate) fn cluster(nodes: Vec<ConnectionInfo>, tls: Option<&TlsCertificates>) -> Result<Self, Error> {
        let name = format!("cluster at {}", nodes[0].addr());
        let mut builder = ClusterClient::builder(nodes)
            .retries(3)
            .min_retry_wait(20)
            .max_retry_wait(300)
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(ANSWER_TIMEOUT);
        if let Some(certificates) = tls {
            builder = builder.certs(certificates.clone());
        }
        let client = builder.build().map_err(|e| Error(format!("{name}: {e}")))?;
        Ok(Self::new(name, Server::Cluster(client)))
    }

    #[cfg(all(test, loom))]
    pub(crate) fn model(name: &str, server: std::sync::Arc<crate::model::Server>) -> Self {
        Self::new(name.to_owned(), Server::Model(server))
    }

    fn new(name: String, server: Server) -> Self {
        Self {
            name,
            server,
            replicas: 0,
            idle: Mutex::new(Vec::new()),
            late: Mutex::new(Vec::new()),
            health: Mutex::new(Health::default()),
            draining: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    /// Has a write wait until so many replicas of the cluster have it.
    pub(crate) fn with_replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A failure of it, for the user.
    pub(crate) fn error(&self, failure: &Failure) -> Error {
        Error(format!("{}: {}", self.name, failure.text()))
    }

    fn connect(&self) -> Result<Link, Failure> {
        let away = |error: redis::RedisError| match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => Failure::Refused(error.to_string()),
            _ if error.code().is_some_and(|code| matches!(code, "NOAUTH" | "WRONGPASS" | "NOPERM")) => {
                Failure::Refused(error.to_string())
            }
            _ => Failure::Away(error.to_string()),
        };
        match &self.server {
            Server::One(client) => {
                let link = client.get_connection_with_timeout(CONNECT_TIMEOUT).map_err(away)?;
                let timeout = Some(ANSWER_TIMEOUT);
                link.set_read_timeout(timeout).and_then(|()| link.set_write_timeout(timeout)).map_err(away)?;
                Ok(Link::One(link))
            }
            Server::Cluster(client) => Ok(Link::Cluster(Box::new(client.get_connection().map_err(away)?))),
            #[cfg(all(test, loom))]
            Server::Model(_) => unreachable!("it is asked without a connection"),
        }
    }

    /// Sends commands whose keys lie in one slot and answers what it says to each. None of them may be wrong to repeat.
    fn ask(&self, commands: &Pipeline) -> Result<Vec<Value>, Failure> {
        let packed = commands.get_packed_pipeline();
        let sent = self.send(&packed);
        self.hear(sent, &packed, commands.len())
    }

    /// Sends commands on a connection that is there already, so that others can be asked while it answers.
    fn send(&self, packed: &[u8]) -> Sent {
        if matches!(self.server, Server::Cluster(_)) {
            return Sent(None);
        }
        let Some(Link::One(mut link)) = lock(&self.idle).pop() else { return Sent(None) };
        Sent(link.send_packed_command(packed).is_ok().then_some(link))
    }

    /// What it says to commands, which are sent now if they were not.
    fn hear(&self, sent: Sent, packed: &[u8], count: usize) -> Result<Vec<Value>, Failure> {
        let heard = self.try_hear(sent, packed, count);
        let mut health = lock(&self.health);
        match &heard {
            Ok(_) => {
                let full_until = health.full_until;
                *health = Health { full_until, ..Health::default() };
            }
            Err(Failure::Full) => health.full_until = Some(Instant::now() + FULL_REST),
            Err(Failure::Away(_) | Failure::Refused(_)) => {
                self.counters.failures.fetch_add(1, Relaxed);
                health.rest = (2 * health.rest).clamp(REST_MIN, REST_MAX);
                health.rests_until = Some(Instant::now() + health.rest);
                health.failing_since.get_or_insert_with(Instant::now);
            }
        }
        heard
    }

    fn try_hear(&self, sent: Sent, packed: &[u8], count: usize) -> Result<Vec<Value>, Failure> {
        #[cfg(all(test, loom))]
        if let Server::Model(server) = &self.server {
            return server.ask(packed);
        }
        let mut sent = sent.0;
        loop {
            let (answers, link, was_kept) = match sent.take() {
                Some(mut link) => (receive(&mut link, count), Link::One(link), true),
                None => {
                    let kept = lock(&self.idle).pop();
                    let was_kept = kept.is_some();
                    let mut link = kept.map_or_else(|| self.connect(), Ok)?;
                    let answers = match &mut link {
                        Link::One(link) => link.send_packed_command(packed).and_then(|()| receive(link, count)),
                        Link::Cluster(link) => link.req_packed_commands(packed, 0, count),
                    };
                    (answers, link, was_kept)
                }
            };
            match self.judge(answers, count, link) {
                // What was connected earlier may have been closed meanwhile, and a cluster may have changed. Who is silent would
                // be so on another connection.
                Err((Failure::Away(_), false)) if was_kept => lock(&self.idle).clear(),
                judged => return judged.map_err(|(why, _)| why),
            }
        }
    }

    /// Keeps the connection if the answers are whole. Otherwise says why not, and whether it was silence.
    fn judge(&self, answers: RedisResult<Vec<Value>>, count: usize, link: Link) -> Result<Vec<Value>, (Failure, bool)> {
        let answers = answers.map_err(|error| (Failure::Away(error.to_string()), error.is_timeout()))?;
        match failure_in(&answers) {
            Some(why) => Err((why, false)),
            None if answers.len() != count => {
                Err((Failure::Away("it gave another number of answers".to_owned()), false))
            }
            None => {
                self.keep(link);
                Ok(answers)
            }
        }
    }

    /// Keeps a connection for who asks next.
    fn keep(&self, link: Link) {
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_MAX {
            idle.push(link);
        }
    }

    /// Stores values, each with its key, to live for a time.
    pub(crate) fn store(&self, values: &[(String, &[u8])], ttl: Duration) -> Result<(), Failure> {
        let storing = self.begin_store(values, ttl);
        self.end_store(storing)
    }

    /// Sends values to be stored, so that others can be sent them as well before they are waited for.
    pub(crate) fn begin_store(&self, values: &[(String, &[u8])], ttl: Duration) -> Storing {
        let mut commands = Pipeline::with_capacity(values.len() + 1);
        for (key, bytes) in values {
            commands.cmd("SET").arg(key).arg(*bytes).arg("EX").arg(ttl.as_secs());
        }
        if self.replicas > 0 {
            commands.cmd("WAIT").arg(self.replicas).arg(REPLICAS_TIMEOUT.as_millis() as u64);
        }
        let packed = commands.get_packed_pipeline();
        Storing { sent: self.send(&packed), packed, values: values.len() }
    }

    /// Waits until it says that it has what was sent.
    pub(crate) fn end_store(&self, storing: Storing) -> Result<(), Failure> {
        let Storing { sent, packed, values } = storing;
        let count = values + usize::from(self.replicas > 0);
        let answers = self.hear(sent, &packed, count).inspect_err(|why| {
            if matches!(why, Failure::Full) {
                self.counters.refused_full.fetch_add(values as u64, Relaxed);
            }
        })?;
        if !answers[..values].iter().all(|answer| matches!(answer, Value::Okay)) {
            return Err(Failure::Away("it did not say that it stored a value".to_owned()));
        }
        match answers.get(values) {
            Some(Value::Int(replicas)) if (*replicas as usize) < self.replicas => {
                Err(Failure::Away(format!("{replicas} replicas have it, {} should", self.replicas)))
            }
            _ => Ok(()),
        }
    }

    /// Reads parts of values, each by its key: what is there of them.
    pub(crate) fn load(&self, parts: &[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>, Failure> {
        let mut commands = Pipeline::with_capacity(parts.len());
        for (key, bytes) in parts {
            commands.cmd("GETRANGE").arg(key).arg(bytes.start).arg(bytes.end - 1);
        }
        let found = |answer| if let Value::BulkString(bytes) = answer { bytes } else { Vec::new() };
        Ok(self.ask(&commands)?.into_iter().map(found).collect())
    }

    /// Removes values of one region, now or later.
    pub(crate) fn remove(&self, region: u64, keys: Vec<String>) {
        if !self.may_be_asked() || self.try_remove(&keys).is_err() {
            self.remove_later(region, keys);
        }
    }

    /// Removes values when it is looked after the next time: it may have them, and cannot be asked now.
    pub(crate) fn remove_later(&self, region: u64, keys: Vec<String>) {
        let mut late = lock(&self.late);
        let room = LATE_MAX - late.len();
        late.extend(keys.into_iter().take(room).map(|key| (region, key)));
    }

    /// Removes what was to be removed later. Says whether nothing of that is left.
    pub(crate) fn remove_late(&self) -> bool {
        let late = std::mem::take(&mut *lock(&self.late));
        let mut done = true;
        for same in late.chunk_by(|(one, _), (next, _)| one == next) {
            let keys: Vec<String> = same.iter().map(|(_, key)| key.clone()).collect();
            if !done || self.try_remove(&keys).is_err() {
                done = false;
                self.remove_later(same[0].0, keys);
            }
        }
        done
    }

    fn try_remove(&self, keys: &[String]) -> Result<(), Failure> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("UNLINK").arg(keys);
        self.ask(&commands).map(drop)
    }

    /// Has values of one region live on for a time; says which of them are there.
    pub(crate) fn renew(&self, keys: &[String], ttl: Duration) -> Result<Vec<bool>, Failure> {
        let mut commands = Pipeline::with_capacity(keys.len());
        for key in keys {
            commands.cmd("EXPIRE").arg(key).arg(ttl.as_secs());
        }
        Ok(self.ask(&commands)?.iter().map(|answer| *answer == Value::Int(1)).collect())
    }

    /// Whether the mark that was left there is there still: if not, it was emptied. Notes whether it is to be drained.
    pub(crate) fn beat(&self, mark: &str, ttl: Duration) -> Result<bool, Failure> {
        let mut commands = Pipeline::with_capacity(2);
        commands.cmd("EXPIRE").arg(mark).arg(ttl.as_secs());
        // A cluster's nodes are drained by the cluster.
        if !matches!(self.server, Server::Cluster(_)) {
            commands.cmd("EXISTS").arg(DRAIN_KEY);
        }
        let answers = self.ask(&commands)?;
        self.draining.store(answers.get(1) == Some(&Value::Int(1)), Relaxed);
        Ok(answers.first() == Some(&Value::Int(1)))
    }

    /// Leaves the mark there.
    pub(crate) fn leave_mark(&self, mark: &str, ttl: Duration) -> Result<(), Failure> {
        self.store(&[(mark.to_owned(), b"")], ttl)
    }

    /// Asks once, on a connection of its own, and all primaries of a cluster. Has no part in its health.
    fn ask_all(&self, command: &redis::Cmd) -> Result<Value, Failure> {
        let mut link = self.connect()?;
        let answer = match &mut link {
            Link::One(link) => link.req_command(command),
            Link::Cluster(link) => link.req_command(command),
        };
        let answer = answer.map_err(|error| Failure::Away(error.to_string()))?;
        match failure_in(std::slice::from_ref(&answer)) {
            Some(why) => Err(why),
            None => {
                self.keep(link);
                Ok(answer)
            }
        }
    }

    /// What it says of itself, as text; every primary of a cluster for itself.
    pub(crate) fn info(&self, section: &str) -> Result<Vec<String>, Failure> {
        let text = |answer| match answer {
            Value::BulkString(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            Value::VerbatimString { text, .. } => Ok(text),
            _ => Err(Failure::Refused("it does not answer INFO with a text".to_owned())),
        };
        match self.ask_all(redis::cmd("INFO").arg(section))? {
            Value::Map(all) => all.into_iter().map(|(_, answer)| text(answer)).collect(),
            answer => Ok(vec![text(answer)?]),
        }
    }

    /// How many replicas each part of a cluster has, at least.
    pub(crate) fn replicas(&self) -> Result<usize, Failure> {
        let none = || Failure::Refused("it does not say which nodes it has: is it a cluster?".to_owned());
        let Value::Array(parts) = self.ask_all(redis::cmd("CLUSTER").arg("SLOTS"))? else { return Err(none()) };
        // First slot, last slot, the primary, and then its replicas.
        let replicas = |part: &Value| if let Value::Array(part) = part { part.len().checked_sub(3) } else { None };
        parts.iter().map(replicas).min().flatten().ok_or_else(none)
    }

    /// Whether it can be asked: it has not failed a moment ago.
    pub(crate) fn may_be_asked(&self) -> bool {
        lock(&self.health).rests_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Whether it failed the last time.
    pub(crate) fn is_failing(&self) -> bool {
        lock(&self.health).failing_since.is_some()
    }

    /// Whether it has failed for so long that what it has is taken for lost.
    pub(crate) fn is_dead(&self) -> bool {
        lock(&self.health).failing_since.is_some_and(|since| since.elapsed() > DEAD_AFTER)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Has every owner of what lies there take it elsewhere, or no longer.
    pub(crate) fn order_drain(&self, drains: bool) -> Result<(), Failure> {
        if !drains {
            return self.ask_all(redis::cmd("DEL").arg(DRAIN_KEY)).map(drop);
        }
        let set = || self.ask_all(redis::cmd("SET").arg(DRAIN_KEY).arg(1)).map(drop);
        match set() {
            Err(Failure::Full) => {}
            other => return other,
        }
        // It has no room for these few bytes, so it is given some for a moment.
        let limit = self.ask_all(redis::cmd("CONFIG").arg("GET").arg("maxmemory"))?;
        let Value::Array(pair) = limit else { return Err(Failure::Full) };
        let Some(Value::BulkString(bytes)) = pair.get(1) else { return Err(Failure::Full) };
        let bytes: u64 = String::from_utf8_lossy(bytes).parse().map_err(|_| Failure::Full)?;
        let set_limit = |bytes: u64| self.ask_all(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes));
        set_limit(bytes + DRAIN_ROOM)?;
        let done = set();
        set_limit(bytes)?;
        done
    }

    /// How many values of any owner lie there.
    pub(crate) fn values_of_all(&self) -> Result<u64, Failure> {
        let (mut count, mut cursor) = (0, b"0".to_vec());
        loop {
            let mut commands = Pipeline::with_capacity(1);
            commands.cmd("SCAN").arg(&cursor).arg("MATCH").arg("tmem:{*}?*").arg("COUNT").arg(1000);
            let Some(Value::Array(parts)) = self.ask(&commands)?.pop() else { return Err(not_understood()) };
            let [Value::BulkString(next), Value::Array(keys)] = parts.as_slice() else { return Err(not_understood()) };
            count += keys.len() as u64;
            if next == b"0" {
                return Ok(count);
            }
            cursor.clone_from(next);
        }
    }

    /// Whether it said a short while ago that it has no room.
    pub(crate) fn is_full(&self) -> bool {
        lock(&self.health).full_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether it may be given values.
    pub(crate) fn takes_values(&self) -> bool {
        self.may_be_asked() && !self.is_full() && !self.is_draining()
    }

    /// Bytes that lie there.
    pub(crate) fn bytes(&self) -> u64 {
        self.counters.bytes.load(Relaxed)
    }

    /// A value lies there from now on.
    pub(crate) fn count_in(&self, bytes: u64) {
        self.counters.values.fetch_add(1, Relaxed);
        self.counters.bytes.fetch_add(bytes, Relaxed);
    }

    /// A value lies there no more.
    pub(crate) fn count_out(&self, bytes: u64) {
        self.counters.values.fetch_sub(1, Relaxed);
        self.counters.bytes.fetch_sub(bytes, Relaxed);
    }

    pub(crate) fn count_lost(&self) {
        self.counters.lost.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_damaged(&self) {
        self.counters.damaged.fetch_add(1, Relaxed);
    }

    pub(crate) fn state(&self) -> State {
        match () {
            () if self.is_dead() => State::Dead,
            () if self.is_failing() => State::Away,
            () if self.is_draining() => State::Draining,
            () if self.is_full() => State::Full,
            () => State::Up,
        }
    }

    /// Figures of one that keeps so many copies of each value.
    pub(crate) fn figures(&self, copies: u64) -> PeerFigures {
        let state = match self.state() {
            State::Up => "up",
            State::Full => "full",
            State::Draining => "draining",
            State::Away => "away",
            State::Dead => "dead",
        };
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let Counters { values, bytes, failures, damaged, lost, refused_full } = &self.counters;
        PeerFigures {
            name: self.name.clone(),
            state,
            values: copies * get(values),
            bytes: copies * get(bytes),
            failures: get(failures),
            damaged: get(damaged),
            lost: get(lost),
            refused_full: get(refused_full),
        }
    }
}

fn not_understood() -> Failure {
    Failure::Refused("its answer is not understood".to_owned())
}

/// What comes, up to the first failure: redis-rs itself would wait for each of the others as long as for the first one.
fn receive(link: &mut redis::Connection, count: usize) -> RedisResult<Vec<Value>> {
    (0..count).map(|_| link.recv_response()).collect()
}

/// The first error among the answers, as what it means.
fn failure_in(answers: &[Value]) -> Option<Failure> {
    use ServerErrorKind::{Ask, BusyLoading, ClusterDown, MasterDown, Moved, ReadOnly, TryAgain};
    let error = answers.iter().find_map(|answer| match answer {
        Value::ServerError(error) => Some(error),
        _ => None,
    })?;
    let text = format!("{} {}", error.code(), error.details().unwrap_or_default()).trim_end().to_owned();
    Some(match error.kind() {
        _ if error.code() == "OOM" => Failure::Full,
        Some(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain | Moved | Ask) => Failure::Away(text),
        _ => Failure::Refused(text),
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer::one(redis::IntoConnectionInfo::into_connection_info("redis://127.0.0.1:1").unwrap(), None).unwrap()
    }

    #[test]
    fn a_peer_that_is_away_rests() {
        let peer = peer();
        assert!(peer.takes_values() && peer.figures(1).state == "up");
        assert!(matches!(peer.beat("mark", DEAD_AFTER), Err(Failure::Away(_))));
        assert!(peer.is_failing() && !peer.may_be_asked() && !peer.takes_values() && !peer.is_dead());
        std::thread::sleep(REST_MIN);
        assert!(peer.may_be_asked());
        assert_eq!((peer.figures(1).state, peer.figures(1).failures), ("away", 1));
    }

    #[test]
    fn a_peer_that_drains_is_given_nothing() {
        let peer = peer();
        peer.draining.store(true, Relaxed);
        assert!(!peer.takes_values() && peer.may_be_asked());
    }
}
