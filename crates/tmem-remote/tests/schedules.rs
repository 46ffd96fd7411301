//! A store over three peers with two copies of everything, while one peer after the other has a fault, as a seed says: nothing may be
//! lost, and no byte may be wrong. `TMEM_SCHEDULES` says how many schedules, `TMEM_SEED` where they begin.

mod common;

use std::collections::HashMap;

use common::{Network, Proxy, Server, redis_is_there, wait_until};
use tmem::testing::{Random, sample_page};
use tmem::{Config, Key, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Spill, Store};
use tmem_remote::{Peers, RemoteTier};

const BUDGET: u64 = 2 << 20;
const PAGES: u64 = 5000;
const PHASES: u64 = 4;
const STEPS: u64 = 1500;

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Killed and started again, empty.
    Restarted,
    /// Killed, and started again at the end of the phase.
    Killed,
    Partitioned,
    Slow,
    Lossy,
    Narrow,
    Corrupt,
    Full,
    /// Killed in the middle of the phase, and started again at its end.
    KilledLater,
}

const FAULTS: [Fault; 9] = [
    Fault::Restarted,
    Fault::Killed,
    Fault::Partitioned,
    Fault::Slow,
    Fault::Lossy,
    Fault::Narrow,
    Fault::Corrupt,
    Fault::Full,
    Fault::KilledLater,
];

struct World {
    random: Random,
    store: Store,
    pool: PoolId,
    pages: HashMap<u32, Page>,
    refused: u64,
}

impl World {
    fn step(&mut self) {
        let index = self.random.below(PAGES) as u32;
        let key = Key::new(self.pool, 0, index);
        match self.random.below(100) {
            0..=59 => {
                let page = sample_page(&mut self.random);
                match self.store.overwrite(key, &page) {
                    Ok(_) => _ = self.pages.insert(index, page),
                    Err(error) => {
                        assert!(error.is_no_room(), "{error}");
                        self.refused += 1;
                    }
                }
            }
            60..=94 => self.assert_page(index),
            95..=97 => assert_eq!(self.store.flush_page(key), self.pages.remove(&index).is_some()),
            _ => drop(self.store.maintain()),
        }
    }

    fn assert_page(&self, index: u32) {
        let mut found = [0; PAGE_SIZE];
        let there = self.store.get(Key::new(self.pool, 0, index), &mut found).unwrap();
        assert_eq!(there, self.pages.contains_key(&index), "page {index}");
        assert!(!there || found == self.pages[&index], "page {index} is another one");
    }
}

fn schedule(seed: u64, servers: &mut [Server], proxies: &[Proxy]) -> u64 {
    let list: Vec<String> = proxies.iter().map(|proxy| format!("127.0.0.1:{}", proxy.port)).collect();
    let peers: Peers = format!("redis://{}", list.join(",")).parse().unwrap();
    let tier = RemoteTier::connect(&peers.copies(2)).unwrap();
    let store = Store::new(Config::new(BUDGET).threads(1)).unwrap();
    store.add_spill(Spill::new(tier.clone(), RemoteTier::BYTES_MAX)).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    let mut world = World { random: Random::new(seed), store, pool, pages: HashMap::new(), refused: 0 };
    (0..STEPS).for_each(|_| world.step());
    for _ in 0..PHASES {
        let victim = world.random.below(3) as usize;
        let fault = FAULTS[world.random.below(FAULTS.len() as u64) as usize];
        println!("seed {seed}: {fault:?} at {victim}");
        let (server, proxy) = (&mut servers[victim], &proxies[victim]);
        match fault {
            Fault::Restarted => {
                server.kill();
                server.restart();
            }
            Fault::Killed => server.kill(),
            Fault::Partitioned => proxy.set(Network::Partitioned),
            Fault::Slow => proxy.set(Network::Slow(2)),
            Fault::Lossy => proxy.set(Network::Lossy(50)),
            Fault::Narrow => proxy.set(Network::Narrow(8 << 10)),
            Fault::Corrupt => proxy.set(Network::Corrupt(20)),
            Fault::Full => assert_eq!(server.cli(&["config", "set", "maxmemory", "1mb"]), "OK"),
            Fault::KilledLater => {}
        }
        for step in 0..STEPS {
            if step == STEPS / 2 && matches!(fault, Fault::KilledLater) {
                server.kill();
            }
            world.step();
        }
        match fault {
            Fault::Killed | Fault::KilledLater => server.restart(),
            Fault::Full => assert_eq!(server.cli(&["config", "set", "maxmemory", "0"]), "OK"),
            _ => proxy.set(Network::Good),
        }
        wait_until("all is well again", || {
            let figures = tier.figures();
            let copies: u64 = figures.peers.iter().map(|peer| peer.values).sum();
            // What arrived after it was to be removed is there as well, until its time is over.
            let has_all = |(server, values): (&Server, u64)| server.values() >= values;
            let of_each = figures.peers.iter().map(|peer| peer.values);
            copies == figures.values * 2
                && servers.iter().zip(of_each).all(has_all)
                && figures.peers.iter().all(|peer| matches!(peer.state, "up" | "full"))
        });
    }
    (0..PAGES as u32).for_each(|index| world.assert_page(index));
    let figures = tier.figures();
    assert_eq!(figures.lost, 0, "{figures:?}");
    let spill = world.store.stats().spill;
    assert!(spill.spilled > 100 && spill.fetched > 100, "too easy: {spill:?}");
    println!("seed {seed}: {} refused, {figures:?}", world.refused);
    drop((world, tier));
    servers.iter().for_each(|server| assert_eq!(server.cli(&["flushall"]), "OK"));
    figures.replicated
}

#[test]
fn nothing_is_lost_while_one_peer_at_a_time_has_a_fault() {
    if !redis_is_there() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = number("TMEM_SEED").unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs());
    let mut servers: Vec<Server> = (0..3).map(|_| Server::start(&[])).collect();
    let proxies: Vec<Proxy> = servers.iter().map(|server| Proxy::before(server.port)).collect();
    let schedules = number("TMEM_SCHEDULES").unwrap_or(4);
    let replicated: u64 = (first..first + schedules).map(|seed| schedule(seed, &mut servers, &proxies)).sum();
    println!("{schedules} schedules, {replicated} copies made again");
    assert!(replicated > 0, "too easy");
}
