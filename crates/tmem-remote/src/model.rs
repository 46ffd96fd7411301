//! What the keeper, readers and writers do at the same time, in every order that loom finds: no copy is taken for one that is gone, and
//! nothing is left on a peer of which nobody knows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p tmem-remote --lib`

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use loom::thread;
use redis::Value as Answer;
use tmem::TIER_BLOCK_BYTES;

use crate::keeper;
use crate::lock;
use crate::peer::{Failure, Peer};
use crate::sync::Mutex;
use crate::tier::{MARK_TTL, Remote};
use crate::values::{PeerSet, Value, members};

/// A peer without a network: what it was asked comes to it whole, and one after the other.
pub(crate) struct Server {
    values: Mutex<BTreeMap<String, Vec<u8>>>,
    /// It is to be drained.
    drains: AtomicBool,
}

impl Server {
    fn new() -> Arc<Self> {
        Arc::new(Self { values: Mutex::new(BTreeMap::new()), drains: AtomicBool::new(false) })
    }

    /// Does packed commands, each by itself: others may come between.
    pub(crate) fn ask(&self, packed: &[u8]) -> Result<Vec<Answer>, Failure> {
        Ok(commands(packed).iter().map(|words| self.run(words)).collect())
    }

    fn run(&self, words: &[Vec<u8>]) -> Answer {
        let text = |at: usize| String::from_utf8_lossy(&words[at]).into_owned();
        let mut values = lock(&self.values);
        match text(0).as_str() {
            "SET" => {
                values.insert(text(1), words[2].clone());
                Answer::Okay
            }
            "GETRANGE" => {
                let (start, last): (usize, usize) = (text(2).parse().unwrap(), text(3).parse().unwrap());
                let value = values.get(&text(1)).map_or(&[][..], Vec::as_slice);
                Answer::BulkString(value.get(start..value.len().min(last + 1)).unwrap_or_default().to_vec())
            }
            "UNLINK" => {
                (1..words.len()).for_each(|at| drop(values.remove(&text(at))));
                Answer::Int(1)
            }
            "EXPIRE" => Answer::Int(values.contains_key(&text(1)).into()),
            "EXISTS" => Answer::Int(self.drains.load(Relaxed).into()),
            command => panic!("{command} is not understood"),
        }
    }

    fn keys(&self) -> Vec<String> {
        lock(&self.values).keys().cloned().collect()
    }

    fn damage(&self) {
        lock(&self.values).values_mut().for_each(|value| value[0] ^= 1);
    }
}

/// The words of commands, as RESP packs them.
fn commands(mut packed: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut line = |bytes: Option<usize>| {
        let end = bytes.unwrap_or_else(|| packed.windows(2).position(|two| two == b"\r\n").unwrap());
        let (line, rest) = packed.split_at(end);
        packed = &rest[2..];
        (line.to_vec(), packed.is_empty())
    };
    let number = |line: &[u8]| std::str::from_utf8(&line[1..]).unwrap().parse::<usize>().unwrap();
    let mut all = Vec::new();
    loop {
        let words = number(&line(None).0);
        let mut is_last = false;
        let command = (0..words).map(|_| {
            let bytes = number(&line(None).0);
            let (word, ends) = line(Some(bytes));
            is_last = ends;
            word
        });
        all.push(command.collect());
        if is_last {
            return all;
        }
    }
}

const BYTES: usize = TIER_BLOCK_BYTES;

/// Remote memory with a value at offset 0, and its servers.
fn remote(servers: usize, copies: u32) -> (Arc<Remote>, Vec<Arc<Server>>) {
    let servers: Vec<_> = (0..servers).map(|_| Server::new()).collect();
    let peers = servers.iter().map(|server| Peer::model("model", Arc::clone(server))).collect();
    let remote = Remote::new(peers, copies, 1, "name".to_owned());
    remote.write(0, &[1; BYTES]).unwrap();
    (Arc::new(remote), servers)
}

fn values(remote: &Remote) -> Vec<Value> {
    remote.values.parts().flatten().collect()
}

/// The value is read as it was written, from no peer of `not` if that is possible.
fn assert_read(remote: &Remote, not: PeerSet, fill: u8) {
    let mut bytes = [0; BYTES];
    remote.read(0, &mut bytes, not).unwrap();
    assert_eq!(bytes, [fill; BYTES]);
}

/// What is known of the peers is what they have, and it is what was written.
fn assert_known(remote: &Remote, servers: &[Arc<Server>], wanted: Option<u8>) {
    // What is to be removed is, before long.
    remote.peers.iter().for_each(|peer| assert!(peer.remove_late()));
    let values = values(remote);
    for (number, server) in servers.iter().enumerate() {
        let known: Vec<String> =
            values.iter().filter(|value| value.is_at(number)).map(|value| remote.key(value)).collect();
        assert_eq!(server.keys(), known, "peer {number}");
        assert_eq!(remote.peers[number].bytes(), (known.len() * BYTES) as u64, "peer {number}");
    }
    match wanted {
        None => assert!(values.is_empty()),
        Some(fill) => {
            for number in members(values[0].peers) {
                assert_eq!(remote.load_whole(&values[0], number).unwrap(), [fill; BYTES]);
            }
            assert_read(remote, 0, fill);
        }
    }
}

fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.max_branches = 100_000;
    model.preemption_bound = Some(4);
    let orders = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&orders);
    model.check(move || {
        counter.fetch_add(1, Relaxed);
        test();
    });
    let orders = orders.load(Relaxed);
    println!("{orders} orders");
    assert!(orders > 1, "loom tried only {orders} orders");
}

/// Has the keeper work while `meanwhile` runs, and then look at everything: after that nothing is left to do, and what is known is there.
fn beside_the_keeper(
    (remote, servers): &(Arc<Remote>, Vec<Arc<Server>>),
    work: fn(&Remote),
    meanwhile: impl FnOnce(&Remote),
    wanted: Option<u8>,
) {
    let other = Arc::clone(remote);
    let keeper = thread::spawn(move || work(&other));
    meanwhile(remote);
    keeper.join().unwrap();
    // It was told to look; or a value went away under its hands.
    assert!(!keeper::look(remote));
    assert_known(remote, servers, wanted);
}

fn look(remote: &Remote) {
    keeper::look(remote);
}

/// Loses the copy of the first peer and has the keeper make another one while `meanwhile` runs.
fn while_a_copy_is_made(meanwhile: fn(&Remote), wanted: Option<u8>) {
    check(move || {
        let all = remote(3, 2);
        let (remote, servers) = &all;
        let value = values(remote)[0];
        let lost = members(value.peers).next().unwrap();
        lock(&servers[lost].values).clear();
        remote.note_lost(&value, lost);
        beside_the_keeper(&all, look, meanwhile, wanted);
    });
}

#[test]
fn a_value_is_forgotten_while_it_is_copied() {
    while_a_copy_is_made(|remote| remote.discard(0, BYTES as u64), None);
}

#[test]
fn a_value_is_written_over_while_it_is_copied() {
    while_a_copy_is_made(|remote| remote.write(0, &[2; BYTES]).unwrap(), Some(2));
}

#[test]
fn a_value_is_read_while_it_is_copied() {
    while_a_copy_is_made(|remote| assert_read(remote, 0, 1), Some(1));
}

/// A reader finds a copy damaged while the keeper looks, which may have to put another one in the same place.
#[test]
fn a_damaged_copy_is_replaced_while_the_keeper_looks() {
    check(|| {
        let all = remote(2, 2);
        let (remote, servers) = &all;
        servers[0].damage();
        beside_the_keeper(&all, look, |remote| remote.suspect(&(0..1), 1), Some(1));
        assert_eq!(values(remote)[0].peers, 0b11);
    });
}

/// Two find out at once that a copy is gone, one of them the keeper: it is counted out once, and made again.
#[test]
fn a_lost_copy_is_lost_once() {
    check(|| {
        let all = remote(2, 2);
        let (remote, servers) = &all;
        lock(&servers[0].values).clear();
        let renew = |remote: &Remote| {
            keeper::renew(remote, 0);
            keeper::look(remote);
        };
        // A reader finds nothing there, and asks once more; or it finds the new copy.
        let read = |remote: &Remote| drop(remote.load_whole(&values(remote)[0], 0));
        beside_the_keeper(&all, renew, read, Some(1));
        assert_eq!(values(remote)[0].peers, 0b11);
    });
}

/// One peer is to be drained, and of the other one's copy a reader finds that it is damaged: the value is never without a good copy.
#[test]
fn a_peer_is_drained_while_another_copy_is_found_damaged() {
    check(|| {
        let all = remote(4, 2);
        let (remote, servers) = &all;
        let value = values(remote)[0];
        let of = members(value.peers).collect::<Vec<_>>();
        servers[of[0]].drains.store(true, Relaxed);
        remote.peers[of[0]].beat("mark", MARK_TTL).unwrap();
        servers[of[1]].damage();
        let find_out = |remote: &Remote| {
            remote.suspect(&(0..1), 1 << of[1]);
            assert_read(remote, 1 << of[1], 1);
        };
        beside_the_keeper(&all, look, find_out, Some(1));
        let peers = values(remote)[0].peers;
        assert!(peers.count_ones() == 2 && peers & 1 << of[0] == 0, "{peers:b}");
    });
}

/// The owner ends while a copy is made: nothing stays anywhere.
#[test]
fn everything_is_removed_while_a_copy_is_made() {
    while_a_copy_is_made(Remote::clear, None);
}
