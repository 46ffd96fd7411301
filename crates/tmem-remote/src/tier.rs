//! The tier: writes cut into values and given to peers, reads put together from them.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tmem::{Homing, TIER_BLOCK_BYTES, Tier};
use xxhash_rust::xxh3::xxh3_64;

use crate::address::Peers;
use crate::keeper;
use crate::peer::{Failure, Peer, PeerFigures};
use crate::sync::{Condvar, Mutex};
use crate::values::{PeerSet, REGION_BLOCKS, Value, Values, bit, by_region, cut, members};
use crate::{Error, lock};

/// How long values live that nobody renews.
pub(crate) const TTL: Duration = Duration::from_secs(600);
/// How long the mark does: a peer that comes back with what it had long ago does not have it.
pub(crate) const MARK_TTL: Duration = Duration::from_secs(5);
/// How long a read waits for a peer to come back when no other one has what is to be read.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long removing everything may take.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(5);
/// How long such a read waits before it looks again.
const PAUSE: Duration = Duration::from_millis(20);

/// Figures of remote memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteFigures {
    /// Each peer, in the order in which they were named.
    pub peers: Vec<PeerFigures>,
    /// How many peers have each value, if all is well. Of a cluster: its nodes.
    pub copies: u64,
    /// Values, each counted once.
    pub values: u64,
    /// Reads that another copy answered, because the first one could not.
    pub failovers: u64,
    /// Copies that were made again because one was lost.
    pub replicated: u64,
    /// Values of which no copy was left.
    pub lost: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    failovers: AtomicU64,
    pub(crate) replicated: AtomicU64,
    lost: AtomicU64,
}

/// What the keeper is told.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pub(crate) stop: bool,
    /// Some value may have too few copies, or too many.
    pub(crate) look: bool,
}

pub(crate) struct Remote {
    pub(crate) peers: Vec<Peer>,
    /// Peers that are to have each value; a cluster is one.
    pub(crate) copies: u32,
    /// Copies that a cluster keeps by itself.
    copies_inside: u64,
    pub(crate) values: Values,
    /// In every key: nobody else's begin with it.
    name: String,
    next: AtomicU64,
    pub(crate) counters: Counters,
    pub(crate) orders: Mutex<Orders>,
    pub(crate) ordered: Condvar,
}

/// Other machines' RAM as a [`Tier`]: see the [crate]. A clone is another handle of the same.
///
/// A write over a part of what was written before drops the rest of that, up to 60 KiB; stores do not do that. What it knows of
/// where everything lies takes about 50 bytes for each 60 KiB, and is not part of a store's budget. When the last handle is
/// dropped, everything is removed from the peers.
#[derive(Clone)]
pub struct RemoteTier {
    owner: Arc<Owner>,
}

struct Owner {
    remote: Arc<Remote>,
    /// Started with the first write: who never needs remote memory has no thread for it.
    keeper: OnceLock<JoinHandle<()>>,
}

fn block_range(offset: u64, bytes: usize) -> Range<u64> {
    const BLOCK: u64 = TIER_BLOCK_BYTES as u64;
    offset / BLOCK..(offset + bytes as u64) / BLOCK
}

impl RemoteTier {
    /// What a store may put there: as much as the peers take, which say themselves when they are full.
    pub const BYTES_MAX: u64 = 1 << 40;

    /// Connects to the peers and looks whether they are fit to keep what is entrusted to them.
    ///
    /// # Errors
    /// When fewer peers than there are to be copies can be reached, or one of them would drop what it was given.
    pub fn connect(peers: &Peers) -> Result<Self, Error> {
        let tls = peers.tls()?;
        let nodes = peers.connections();
        let (all, replicas) = if peers.is_cluster {
            let cluster = Peer::cluster(nodes, tls.as_ref())?;
            let replicas = cluster.replicas().map_err(|failure| cluster.error(&failure))?;
            (vec![cluster], replicas)
        } else {
            (nodes.into_iter().map(|node| Peer::one(node, tls.as_ref())).collect::<Result<Vec<_>, _>>()?, 0)
        };
        let copies = peers.wanted_copies(replicas)?;
        let (copies, copies_inside) = if peers.is_cluster { (1, copies) } else { (copies, 1) };
        let all: Vec<Peer> = all.into_iter().map(|peer| peer.with_replicas(copies_inside - 1)).collect();

        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(|e| Error(format!("no random numbers: {e}")))?;
        let name = format!("{:016x}", u64::from_le_bytes(name));
        let mark = mark_of(&name);
        let mut away = Vec::new();
        for peer in &all {
            match examine(peer, &mark) {
                Ok(()) => {}
                Err(Failure::Away(why)) => away.push(format!("{}: {why}", peer.name())),
                Err(why) => return Err(peer.error(&why)),
            }
        }
        if all.len() - away.len() < copies {
            return Err(Error(format!("too few peers can be reached for {copies} copies: {}", away.join("; "))));
        }

        let remote = Arc::new(Remote::new(all, copies as u32, copies_inside as u64, name));
        Ok(Self { owner: Arc::new(Owner { remote, keeper: OnceLock::new() }) })
    }

    /// Figures of now.
    #[must_use]
    pub fn figures(&self) -> RemoteFigures {
        let remote = &self.owner.remote;
        let Counters { failovers, replicated, lost } = &remote.counters;
        RemoteFigures {
            peers: remote.peers.iter().map(|peer| peer.figures(remote.copies_inside)).collect(),
            copies: u64::from(remote.copies) * remote.copies_inside,
            values: remote.values.len() as u64,
            failovers: failovers.load(Relaxed),
            replicated: replicated.load(Relaxed),
            lost: lost.load(Relaxed),
        }
    }

    /// Peers that have not answered for long, each with its number in the order in which they were named.
    pub fn dead_peers(&self) -> impl Iterator<Item = (usize, &str)> {
        let peers = self.owner.remote.peers.iter().enumerate();
        peers.filter(|(_, peer)| peer.is_dead()).map(|(number, peer)| (number, peer.name()))
    }

    /// Removes everything from the peers, for good: when nobody will read it any more, but the handles live on. Takes up to 5 s.
    pub fn clear(&self) {
        self.owner.remote.clear();
    }
}

/// Has every owner of what lies with a peer take it to others, or no longer if `undo`: it is given nothing more either way until
/// that is undone. It may be switched off as soon as [`values_left`] are 0.
///
/// # Errors
/// When it cannot be reached, or is a cluster, which moves what its nodes have itself.
pub fn drain(peer: &Peers, undo: bool) -> Result<(), Error> {
    let peer = only_one(peer)?;
    peer.order_drain(!undo).map_err(|failure| peer.error(&failure))
}

/// How many values a peer has, of all owners together.
///
/// # Errors
/// As of [`drain`].
pub fn values_left(peer: &Peers) -> Result<u64, Error> {
    let peer = only_one(peer)?;
    peer.values_of_all().map_err(|failure| peer.error(&failure))
}

fn only_one(peers: &Peers) -> Result<Peer, Error> {
    let tls = peers.tls()?;
    match (peers.is_cluster, peers.connections().as_slice()) {
        (true, _) => Err(Error("a cluster moves what its nodes have itself: redis-cli --cluster reshard".to_owned())),
        (false, [node]) => Peer::one(node.clone(), tls.as_ref()),
        (false, _) => Err(Error("one peer at a time: the others are to take what it has".to_owned())),
    }
}

impl std::fmt::Debug for RemoteTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteTier").field("figures", &self.figures()).finish_non_exhaustive()
    }
}

impl std::fmt::Display for RemoteTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.owner.remote.peers.iter().map(Peer::name).collect();
        f.write_str(&names.join(", "))
    }
}

/// Whether a peer keeps what it is given.
fn examine(peer: &Peer, mark: &str) -> Result<(), Failure> {
    for text in peer.info("memory")? {
        let policy = text.lines().find_map(|line| line.trim().strip_prefix("maxmemory_policy:"));
        if let Some(policy) = policy.filter(|policy| *policy != "noeviction") {
            return Err(Failure::Refused(format!(
                "it drops what it has no room for (maxmemory-policy {policy}), but what goes there has to stay: set noeviction"
            )));
        }
    }
    // It may be being drained.
    peer.beat(mark, MARK_TTL).map(drop)
}

/// The key that shows that a peer was not emptied.
fn mark_of(name: &str) -> String {
    format!("tmem:{{{name}}}")
}

impl Remote {
    pub(crate) fn new(peers: Vec<Peer>, copies: u32, copies_inside: u64, name: String) -> Self {
        Self {
            peers,
            copies,
            copies_inside,
            values: Values::new(),
            name,
            next: AtomicU64::new(0),
            counters: Counters::default(),
            orders: Mutex::new(Orders::default()),
            ordered: Condvar::new(),
        }
    }

    /// The key of a value.
    pub(crate) fn key(&self, value: &Value) -> String {
        format!("tmem:{{{}.{}}}{}", self.name, value.region(), value.number)
    }

    /// The key that shows that a peer was not emptied.
    pub(crate) fn mark(&self) -> String {
        mark_of(&self.name)
    }

    /// Has the keeper look at all values.
    pub(crate) fn order_look(&self) {
        lock(&self.orders).look = true;
        self.ordered.notify_all();
    }

    /// The peer that has the least of those that take values and are not in `not`.
    pub(crate) fn choose(&self, not: PeerSet) -> Option<usize> {
        let fit = |(number, peer): &(usize, &Peer)| not & bit(*number) == 0 && peer.takes_values();
        self.peers.iter().enumerate().filter(fit).min_by_key(|(_, peer)| peer.bytes()).map(|(number, _)| number)
    }

    /// Removes values from the peers that have them.
    pub(crate) fn remove(&self, values: &[Value]) {
        for same in by_region(values) {
            for (number, peer) in self.peers.iter().enumerate() {
                let (of_peer, keys) = self.lying_at(number, same);
                of_peer.iter().for_each(|value| peer.count_out(value.bytes()));
                if !keys.is_empty() {
                    peer.remove(same[0].region(), keys);
                }
            }
        }
    }

    /// Those of some values that a peer has, and their keys.
    pub(crate) fn lying_at<'a>(&self, number: usize, values: &'a [Value]) -> (Vec<&'a Value>, Vec<String>) {
        values.iter().filter(|value| value.is_at(number)).map(|value| (value, self.key(value))).unzip()
    }

    /// A peer does not have a value any more.
    pub(crate) fn note_lost(&self, value: &Value, number: usize) {
        self.lose(value, number, |_| true);
    }

    /// What a peer has of a value is no good, if the rest will do. Says whether it was given up.
    fn lose(&self, value: &Value, number: usize, rest_will_do: impl FnOnce(PeerSet) -> bool) -> bool {
        let lost = self.give_up(value, number, rest_will_do);
        if lost {
            self.peers[number].count_lost();
            self.order_look();
        }
        lost
    }

    /// Forgets that a peer has a value, if it does and the rest will do, which is asked under the lock of the value. Says whether it was
    /// so.
    pub(crate) fn give_up(&self, value: &Value, number: usize, rest_will_do: impl FnOnce(PeerSet) -> bool) -> bool {
        let mut given_up = false;
        self.values.set_peers(value, |peers| {
            let rest = peers & !bit(number);
            given_up = peers != rest && rest_will_do(rest);
            if given_up { rest } else { peers }
        });
        if given_up {
            self.peers[number].count_out(value.bytes());
        }
        given_up
    }

    /// Ends the keeper's work and removes everything. What cannot be removed in time goes by itself.
    pub(crate) fn clear(&self) {
        lock(&self.orders).stop = true;
        self.ordered.notify_all();
        let end = Instant::now() + CLEAR_TIMEOUT;
        for part in self.values.parts().take_while(|_| Instant::now() < end) {
            let removed = part.iter().flat_map(|value| self.values.remove(&(value.start..value.end())));
            self.remove(&removed.collect::<Vec<_>>());
        }
        for peer in self.peers.iter().filter(|peer| peer.may_be_asked()) {
            peer.remove(0, vec![self.mark()]);
            peer.remove_late();
        }
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let blocks = block_range(offset, bytes.len());
        let new = |part: Range<u64>| {
            let at = (part.start - blocks.start) as usize * TIER_BLOCK_BYTES;
            let payload = &bytes[at..at + (part.end - part.start) as usize * TIER_BLOCK_BYTES];
            let number = self.next.fetch_add(1, Relaxed);
            let (start, blocks) = (part.start, part.end - part.start);
            (Value { start, blocks, number, check: xxh3_64(payload), peers: 0 }, payload)
        };
        let values: Vec<(Value, &[u8])> = cut(&blocks).into_iter().map(new).collect();
        for same in values.chunk_by(|(one, _), (next, _)| one.region() == next.region()) {
            self.write_region(same)?;
        }
        Ok(())
    }

    /// Forgets and removes what begins there.
    pub(crate) fn discard(&self, offset: u64, bytes: u64) {
        let removed = self.values.remove(&block_range(offset, bytes as usize));
        self.remove(&removed);
    }

    /// Stores values of one region with as many peers as there are to be copies.
    fn write_region(&self, values: &[(Value, &[u8])]) -> Result<(), Failure> {
        let with_keys: Vec<(String, &[u8])> = values.iter().map(|(value, bytes)| (self.key(value), *bytes)).collect();
        let (mut written, mut tried): (PeerSet, PeerSet) = (0, 0);
        let mut why = None;
        while written.count_ones() < self.copies {
            // All that are missing at once, so that they work at the same time.
            let missing = (self.copies - written.count_ones()) as usize;
            let chosen: Vec<usize> = std::iter::from_fn(|| self.choose(tried).inspect(|number| tried |= bit(*number)))
                .take(missing)
                .collect();
            if chosen.len() < missing {
                let done: Vec<Value> = values.iter().map(|(value, _)| Value { peers: written, ..*value }).collect();
                // They were counted in when they were stored.
                self.remove(&done);
                let none = if self.peers.iter().any(Peer::is_full) {
                    Failure::Full
                } else {
                    Failure::Away("too few peers can be reached".to_owned())
                };
                return Err(why.unwrap_or(none));
            }
            let begin = |number: usize| (number, self.peers[number].begin_store(&with_keys, TTL));
            let begun: Vec<_> = chosen.into_iter().map(begin).collect();
            for (number, storing) in begun {
                let peer = &self.peers[number];
                match peer.end_store(storing) {
                    Ok(()) => {
                        written |= bit(number);
                        values.iter().for_each(|(value, _)| peer.count_in(value.bytes()));
                    }
                    Err(failure) => {
                        // It may have stored them all the same.
                        let keys = with_keys.iter().map(|(key, _)| key.clone()).collect();
                        peer.remove_later(values[0].0.region(), keys);
                        why = Some(failure);
                    }
                }
            }
        }
        let mut replaced = Vec::new();
        for (value, _) in values {
            replaced.extend(self.values.insert(Value { peers: written, ..*value }));
        }
        self.remove(&replaced);
        Ok(())
    }

    /// Reads what lies at `offset`, from no peer of `not` if that is possible. Answers from which peers it came.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8], not: PeerSet) -> io::Result<PeerSet> {
        let blocks = block_range(offset, bytes.len());
        let values = self.values.covering(&blocks);
        let mut rest = values.ok_or_else(|| io::Error::other("nothing was written there, or it was lost"))?;
        let deadline = Instant::now() + PATIENCE;
        let (mut from, mut failed) = (0, 0);
        while let Some(first) = rest.first() {
            let candidates = |value: &Value| value.peers & !failed;
            let Some(number) = self.best_of(candidates(first), not) else {
                // What was lost or moved meanwhile is known there.
                rest = self.values.covering(&blocks).unwrap_or_default();
                if rest.iter().any(|value| value.peers == 0) || rest.is_empty() {
                    self.counters.lost.fetch_add(1, Relaxed);
                    return Err(io::Error::new(io::ErrorKind::NotFound, "no peer has it any more"));
                }
                if Instant::now() >= deadline {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no peer that has it answers"));
                }
                (from, failed) = (0, 0);
                thread::sleep(PAUSE);
                continue;
            };
            let (asked, others): (Vec<Value>, Vec<Value>) =
                rest.iter().partition(|value| value.region() == first.region() && candidates(value) & bit(number) != 0);
            let parts: Vec<_> = asked.iter().map(|value| (self.key(value), part_of(value, &blocks))).collect();
            let Ok(answers) = self.peers[number].load(&parts) else {
                failed |= bit(number);
                self.counters.failovers.fetch_add(1, Relaxed);
                continue;
            };
            rest = others;
            for ((value, (_, part)), answer) in asked.into_iter().zip(parts).zip(answers) {
                if answer.len() as u64 == part.end - part.start {
                    let at = (value.start * TIER_BLOCK_BYTES as u64 + part.start - offset) as usize;
                    bytes[at..at + answer.len()].copy_from_slice(&answer);
                    from |= bit(number);
                } else {
                    if answer.is_empty() {
                        self.note_if_lost(&value, number);
                    }
                    failed |= bit(number);
                    self.counters.failovers.fetch_add(1, Relaxed);
                    rest.push(value);
                }
            }
        }
        Ok(from)
    }

    /// Which of some peers to read from: one that works, that is not in `not`.
    fn best_of(&self, some: PeerSet, not: PeerSet) -> Option<usize> {
        let rank = |number: &usize| (not & bit(*number) != 0, self.peers[*number].is_failing());
        members(some).filter(|number| self.peers[*number].may_be_asked()).min_by_key(rank)
    }

    /// Gives up what some peers have of these blocks if it is not what was written, and others have it as well.
    pub(crate) fn suspect(&self, blocks: &Range<u64>, peers: PeerSet) {
        for value in self.values.covering(blocks).unwrap_or_default() {
            for number in members(value.peers & peers) {
                if !matches!(self.load_whole(&value, number), Err(Failure::Refused(_))) {
                    continue;
                }
                self.lose(&value, number, |rest| {
                    if rest == 0 {
                        return false;
                    }
                    // The keeper, which may copy the value there again at once, removes this copy before it does. Removed here, it
                    // could be the new one.
                    self.peers[number].remove_later(value.region(), vec![self.key(&value)]);
                    true
                });
            }
        }
    }

    /// Reads a whole value from a peer, if it is what was written.
    pub(crate) fn load_whole(&self, value: &Value, number: usize) -> Result<Vec<u8>, Failure> {
        let peer = &self.peers[number];
        let bytes = peer.load(&[(self.key(value), 0..value.bytes())])?.pop().unwrap_or_default();
        if xxh3_64(&bytes) == value.check {
            return Ok(bytes);
        }
        if bytes.is_empty() {
            self.note_if_lost(value, number);
        } else {
            peer.count_damaged();
        }
        Err(Failure::Refused("it is not what was written".to_owned()))
    }

    /// Asks a peer once more whether it has a value: that an answer was empty may be the network's fault.
    fn note_if_lost(&self, value: &Value, number: usize) {
        if self.peers[number].renew(&[self.key(value)], TTL).is_ok_and(|there| there == [false]) {
            self.note_lost(value, number);
        }
    }
}

/// The bytes of a value that lie in these blocks.
fn part_of(value: &Value, blocks: &Range<u64>) -> Range<u64> {
    let part = value.start.max(blocks.start)..value.end().min(blocks.end);
    let byte = |block| (block - value.start) * TIER_BLOCK_BYTES as u64;
    byte(part.start)..byte(part.end)
}

impl Tier for RemoteTier {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.owner.keep();
        self.owner.remote.write(offset, bytes).map_err(|failure| match failure {
            Failure::Full => io::Error::new(io::ErrorKind::StorageFull, "the peers are full"),
            Failure::Away(why) | Failure::Refused(why) => io::Error::other(why),
        })
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.owner.remote.read(offset, bytes, 0).map(drop)
    }

    fn read_checked(
        &self,
        offset: u64,
        bytes: &mut [u8],
        is_right: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> io::Result<()> {
        let remote = &self.owner.remote;
        let mut wrong = 0;
        loop {
            let from = remote.read(offset, bytes, wrong)?;
            let right = is_right(bytes);
            if right || from & !wrong == 0 {
                if wrong != 0 {
                    remote.counters.failovers.fetch_add(u64::from(right), Relaxed);
                    remote.suspect(&block_range(offset, bytes.len()), wrong);
                }
                return Ok(());
            }
            wrong |= from;
        }
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.owner.remote.discard(offset, bytes);
        Ok(())
    }

    /// All of it is lent. What lies with a peer that is to be drained leaves if no other peer can take it; while one of them does
    /// not answer, nothing is asked for that need not be.
    fn homing(&self) -> Homing {
        let remote = &self.owner.remote;
        let with_values = || remote.peers.iter().filter(|peer| peer.bytes() > 0);
        let takers = remote.peers.iter().filter(|peer| peer.takes_values()).count();
        if with_values().any(Peer::is_failing) {
            Homing::Stay
        } else if with_values().any(Peer::is_draining) && takers < remote.copies as usize {
            Homing::Leave
        } else {
            Homing::Return
        }
    }
}

impl Owner {
    /// Starts the keeper.
    fn keep(&self) {
        self.keeper.get_or_init(|| {
            let remote = Arc::clone(&self.remote);
            let keeper = thread::Builder::new().name("tmem-remote".to_owned());
            keeper.spawn(move || keeper::run(&remote)).expect("a thread can be started")
        });
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.remote.clear();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

const _: () = assert!(REGION_BLOCKS * TIER_BLOCK_BYTES as u64 == 1 << 20);
