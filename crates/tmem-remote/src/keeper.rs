//! The keeper: a thread that renews what lies with the peers, and sees to it that every value has its copies.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::lock;
use crate::peer::{Peer, State};
use crate::tier::{MARK_TTL, Remote, TTL};
use crate::values::{PeerSet, Value, bit, by_region, members};

/// How often it looks whether the peers answer, and still have what they had.
const PULSE: Duration = Duration::from_millis(250);
/// How often values are renewed: two renewals may fail.
const RENEWAL: Duration = Duration::from_secs(TTL.as_secs() / 4);
/// How long it waits before it tries again what could not be done.
const RETRY: Duration = Duration::from_secs(1);

/// Works until it is told to stop.
pub(crate) fn run(remote: &Remote) {
    let mut states: Vec<State> = remote.peers.iter().map(worth).collect();
    let mut renewed = Instant::now();
    let mut look_at: Option<Instant> = None;
    loop {
        {
            let mut orders = lock(&remote.orders);
            if !orders.stop && !orders.look {
                // Woken for nothing it looks a little earlier.
                (orders, _) = remote.ordered.wait_timeout(orders, PULSE).unwrap_or_else(PoisonError::into_inner);
            }
            if orders.stop {
                return;
            }
            if std::mem::take(&mut orders.look) {
                look_at.get_or_insert_with(Instant::now);
            }
        }
        for (number, peer) in remote.peers.iter().enumerate() {
            if peer.may_be_asked() {
                peer.remove_late();
            }
            let beat = if peer.may_be_asked() { peer.beat(&remote.mark(), MARK_TTL).ok() } else { None };
            let state = worth(peer);
            if std::mem::replace(&mut states[number], state) != state {
                look_at.get_or_insert_with(Instant::now);
            }
            // Only who knows all that is lost may leave the mark again.
            if beat == Some(false) && renew(remote, number) {
                let _ = peer.leave_mark(&remote.mark(), MARK_TTL);
            }
        }
        if renewed.elapsed() >= RENEWAL {
            renewed = Instant::now();
            (0..remote.peers.len()).for_each(|number| _ = renew(remote, number));
        }
        // A write that had chosen it before it was known may have come since.
        if remote.peers.iter().any(|peer| peer.is_draining() && peer.bytes() > 0) {
            look_at.get_or_insert_with(|| Instant::now() + RETRY);
        }
        if look_at.is_some_and(|at| Instant::now() >= at) {
            look_at = look(remote).then(|| Instant::now() + RETRY);
        }
    }
}

/// What a peer's copies are worth: whether it takes more does not matter to those.
fn worth(peer: &Peer) -> State {
    match peer.state() {
        State::Full => State::Up,
        state => state,
    }
}

fn is_stopped(remote: &Remote) -> bool {
    lock(&remote.orders).stop
}

/// Has everything that a peer has live on, and finds out what it does not have any more. Says whether it was asked for all of it.
pub(crate) fn renew(remote: &Remote, number: usize) -> bool {
    let peer = &remote.peers[number];
    for part in remote.values.parts() {
        for same in by_region(&part) {
            let (of_peer, keys) = remote.lying_at(number, same);
            if of_peer.is_empty() {
                continue;
            }
            if !peer.may_be_asked() || is_stopped(remote) {
                return false;
            }
            let Ok(there) = peer.renew(&keys, TTL) else { return false };
            for (value, _) in of_peer.iter().zip(there).filter(|(_, there)| !there) {
                remote.note_lost(value, number);
            }
        }
    }
    true
}

/// Looks at all values and gives each as many copies as it should have. Says whether something is left to do.
pub(crate) fn look(remote: &Remote) -> bool {
    let mut unfinished = false;
    for part in remote.values.parts() {
        for value in part {
            if is_stopped(remote) {
                return false;
            }
            unfinished |= !tend(remote, value);
        }
    }
    unfinished
}

/// Peers of a set whose copies are there to stay.
fn safe(remote: &Remote, peers: PeerSet) -> PeerSet {
    let stays = |number: &usize| !remote.peers[*number].is_dead() && !remote.peers[*number].is_draining();
    members(peers).filter(stays).fold(0, |set, number| set | bit(number))
}

/// Makes copies of a value that are missing, and removes those that are too many. Says whether it has what it should have.
fn tend(remote: &Remote, mut value: Value) -> bool {
    while safe(remote, value.peers).count_ones() < remote.copies {
        match copy(remote, &value) {
            Some(number) => value.peers |= bit(number),
            None => return false,
        }
    }
    while let Some(number) = superfluous(remote, value.peers) {
        value.peers &= !bit(number);
        // Who reads may have found out meanwhile that another copy is no good.
        if remote.give_up(&value, number, |rest| safe(remote, rest).count_ones() >= remote.copies) {
            remote.peers[number].remove(value.region(), vec![remote.key(&value)]);
        }
    }
    true
}

/// A peer whose copy nobody needs: first one that will not stay.
fn superfluous(remote: &Remote, peers: PeerSet) -> Option<usize> {
    let safe = safe(remote, peers);
    let unsafe_ones = peers & !safe;
    if safe.count_ones() >= remote.copies && unsafe_ones != 0 {
        return members(unsafe_ones).next();
    }
    let too_many = safe.count_ones() > remote.copies;
    too_many.then(|| members(safe).max_by_key(|number| remote.peers[*number].bytes())).flatten()
}

/// Copies a value from a peer that has it to one that does not: which one.
fn copy(remote: &Remote, value: &Value) -> Option<usize> {
    let to = remote.choose(value.peers)?;
    let mut from = members(value.peers).filter(|number| remote.peers[*number].may_be_asked());
    let bytes = from.find_map(|number| remote.load_whole(value, number).ok())?;
    let peer = &remote.peers[to];
    // It may have had this value before, and be to remove it.
    if !peer.remove_late() {
        return None;
    }
    if peer.store(&[(remote.key(value), &bytes)], TTL).is_err() {
        peer.remove_later(value.region(), vec![remote.key(value)]);
        return None;
    }
    peer.count_in(value.bytes());
    remote.counters.replicated.fetch_add(1, Relaxed);
    if !remote.values.set_peers(value, |peers| peers | bit(to)) {
        // It was written over or given up meanwhile.
        peer.count_out(value.bytes());
        peer.remove(value.region(), vec![remote.key(value)]);
    }
    Some(to)
}
