//! The tier against servers that others wrote.

mod common;

use std::io;
use std::time::Duration;

use common::{Network, Proxy, Server, redis_is_there, wait_until};
use tmem::testing::Random;
use tmem::{TIER_BLOCK_BYTES, Tier};
use tmem_remote::{Peers, RemoteFigures, RemoteTier};

const MIB: u64 = 1 << 20;

fn connect(ports: &[u16], copies: usize) -> RemoteTier {
    let peers: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let peers: Peers = format!("redis://{}", peers.join(",")).parse().unwrap();
    RemoteTier::connect(&peers.copies(copies)).unwrap()
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len / 8).flat_map(|_| random.number().to_le_bytes()).collect()
}

fn read(tier: &RemoteTier, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut found = vec![0; len];
    tier.read(offset, &mut found).map(|()| found)
}

/// Whether every value has as many copies as it should have.
fn is_whole(figures: &RemoteFigures) -> bool {
    figures.peers.iter().map(|peer| peer.values).sum::<u64>() == figures.values * figures.copies
}

#[test]
fn what_was_written_is_read_in_parts_and_removed_at_the_end() {
    if !redis_is_there() {
        return;
    }
    let server = Server::start(&[]);
    let tier = connect(&[server.port], 1);
    let one = bytes(288 << 10, 1);
    tier.write(0, &one).unwrap();
    let two = bytes(96 << 10, 2);
    tier.write(288 << 10, &two).unwrap();
    assert_eq!(server.values(), 5 + 2);
    let ttl: u64 = server.cli(&["ttl", server.cli(&["keys", "tmem:*}0"]).as_str()]).parse().unwrap();
    assert!((590..=600).contains(&ttl));
    // In one value, over the border of two, over the border of two writes.
    for (from, to) in [(4, 12), (56, 64), (280, 300), (0, 384)] {
        let all = [one.as_slice(), &two].concat();
        assert_eq!(
            read(&tier, from << 10, ((to - from) << 10) as usize).unwrap(),
            all[(from << 10) as usize..(to << 10) as usize]
        );
    }
    assert!(read(&tier, 380 << 10, 8 << 10).is_err() && read(&tier, MIB, 4096).is_err());
    // Written anew, in other values.
    let three = bytes(100 << 10, 3);
    tier.write(0, &three).unwrap();
    assert_eq!(read(&tier, 96 << 10, 4096).unwrap(), three[96 << 10..]);
    let figures = tier.figures();
    assert!(is_whole(&figures) && server.values() == figures.values, "{figures:?}");
    tier.write(5 * MIB, &one).unwrap();
    tier.discard(0, MIB).unwrap();
    assert!(read(&tier, 0, 4096).is_err());
    assert_eq!(server.values(), 5);
    assert_eq!(tier.figures().peers[0].bytes, 288 << 10);
    drop(tier);
    assert_eq!(server.values(), 0);
}

#[test]
fn servers_that_would_drop_pages_are_refused() {
    if !redis_is_there() {
        return;
    }
    let server = Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let peers: Peers = server.url().parse().unwrap();
    let why = RemoteTier::connect(&peers).unwrap_err().to_string();
    assert!(why.contains("allkeys-lru") && why.contains("set noeviction"), "{why}");
}

#[test]
fn who_cannot_be_reached_or_does_not_know_the_password_is_named() {
    if !redis_is_there() {
        return;
    }
    let server = Server::start(&["--requirepass", "open sesame"]);
    let one: Peers = server.url().parse().unwrap();
    let why = RemoteTier::connect(&one).unwrap_err().to_string();
    assert!(why.contains("NOAUTH"), "{why}");
    let why = RemoteTier::connect(&one.clone().password("wrong")).unwrap_err().to_string();
    assert!(why.contains(&server.port.to_string()), "{why}");
    RemoteTier::connect(&one.password("open sesame")).unwrap();

    let nobody = common::free_port();
    let why = RemoteTier::connect(&format!("redis://127.0.0.1:{nobody}").parse().unwrap()).unwrap_err().to_string();
    assert!(why.contains(&nobody.to_string()) && why.contains("too few peers"), "{why}");
}

#[test]
fn a_full_peer_says_so_and_what_it_has_stays() {
    if !redis_is_there() {
        return;
    }
    let server = Server::start(&["--maxmemory", "8mb"]);
    let tier = connect(&[server.port], 1);
    let written =
        (0..).take_while(|number| tier.write(number * MIB, &bytes(288 << 10, *number)).is_ok()).count() as u64;
    assert!((8..40).contains(&written), "{written}");
    let error = tier.write(100 * MIB, &bytes(64 << 10, 0)).unwrap_err();
    assert_eq!(error.to_string(), "the peers are full");
    for number in 0..written {
        assert_eq!(read(&tier, number * MIB, 288 << 10).unwrap(), bytes(288 << 10, number));
    }
    let figures = tier.figures();
    assert_eq!((figures.peers[0].state, figures.lost, figures.failovers), ("full", 0, 0));
    assert!(figures.peers[0].refused_full > 0 && is_whole(&figures));
}

#[test]
fn every_server_in_turn_may_be_killed() {
    if !redis_is_there() {
        return;
    }
    let mut servers: Vec<Server> = (0..3).map(|_| Server::start(&[])).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let tier = connect(&ports, 2);
    let mut written = 0;
    for server in &mut servers {
        for _ in 0..4 {
            tier.write(written * MIB, &bytes(256 << 10, written)).unwrap();
            written += 1;
        }
        assert!(is_whole(&tier.figures()));
        server.kill();
        for number in 0..written {
            assert_eq!(read(&tier, number * MIB, 256 << 10).unwrap(), bytes(256 << 10, number), "{number}");
        }
        // Two others are there, so writing goes on.
        tier.write(written * MIB, &bytes(256 << 10, written)).unwrap();
        written += 1;
        server.restart();
        // It is empty, which is found out, and what it had is copied again.
        wait_until("everything has its copies", || is_whole(&tier.figures()) && server.values() > 0);
    }
    let figures = tier.figures();
    assert_eq!(figures.lost, 0);
    assert!(figures.replicated > 0 && figures.peers.iter().all(|peer| peer.state == "up"), "{figures:?}");
    let values: u64 = servers.iter().map(Server::values).sum();
    assert_eq!(values, 2 * figures.values);
}

#[test]
fn what_a_dead_peer_had_is_copied_and_is_too_much_when_it_is_back() {
    if !redis_is_there() {
        return;
    }
    let servers: Vec<Server> = (0..3).map(|_| Server::start(&[])).collect();
    let proxies: Vec<Proxy> = servers.iter().map(|server| Proxy::before(server.port)).collect();
    let ports: Vec<u16> = proxies.iter().map(|proxy| proxy.port).collect();
    let tier = connect(&ports, 2);
    for number in 0..12 {
        tier.write(number * MIB, &bytes(64 << 10, number)).unwrap();
    }
    proxies[0].set(Network::Partitioned);
    let check = || {
        for number in 0..12 {
            assert_eq!(read(&tier, number * MIB, 64 << 10).unwrap(), bytes(64 << 10, number), "{number}");
        }
    };
    check();
    let of_others = || tier.figures().peers[1..].iter().map(|peer| peer.values).sum::<u64>();
    wait_until("everything is on the two others", || of_others() == 2 * tier.figures().values);
    proxies[0].set(Network::Good);
    wait_until("nothing is too much", || tier.figures().peers[0].state == "up" && is_whole(&tier.figures()));
    check();
    assert_eq!(tier.figures().lost, 0);
}

#[test]
fn without_another_copy_a_partition_is_waited_for_and_an_empty_server_is_an_error() {
    if !redis_is_there() {
        return;
    }
    let mut server = Server::start(&[]);
    let proxy = Proxy::before(server.port);
    let tier = connect(&[proxy.port], 1);
    tier.write(0, &bytes(64 << 10, 1)).unwrap();
    proxy.set(Network::Partitioned);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(4));
            proxy.set(Network::Good);
        });
        assert_eq!(read(&tier, 0, 64 << 10).unwrap(), bytes(64 << 10, 1));
    });
    server.kill();
    server.restart();
    assert_eq!(read(&tier, 0, 4096).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(tier.figures().lost, 1);
}

#[test]
fn wrong_answers_are_asked_for_elsewhere_and_replaced() {
    if !redis_is_there() {
        return;
    }
    let servers: Vec<Server> = (0..2).map(|_| Server::start(&[])).collect();
    let tier = connect(&[servers[0].port, servers[1].port], 2);
    let payload = bytes(64 << 10, 1);
    tier.write(0, &payload).unwrap();
    // Somebody changes what lies there.
    let keys = servers[0].cli(&["keys", "tmem:*}?*"]);
    keys.lines()
        .for_each(|key| assert_eq!(servers[0].cli(&["setrange", key, "100", "X"]).parse::<usize>().unwrap() % 4096, 0));
    let mut found = vec![0; TIER_BLOCK_BYTES];
    for _ in 0..4 {
        tier.read_checked(0, &mut found, &mut |found| found == &payload[..TIER_BLOCK_BYTES]).unwrap();
        assert_eq!(found, payload[..TIER_BLOCK_BYTES]);
    }
    wait_until("it is mended", || is_whole(&tier.figures()) && tier.figures().replicated > 0);
    let figures = tier.figures();
    assert!(figures.peers[0].damaged > 0 && figures.peers[1].damaged == 0, "{figures:?}");
    // If nobody has what is right, what is there is shown, and that is no error of the tier.
    tier.read_checked(0, &mut found, &mut |_| false).unwrap();
    assert_eq!((found, tier.figures().lost), (payload[..TIER_BLOCK_BYTES].to_vec(), 0));
}

#[test]
fn an_answer_that_was_spoilt_on_its_way_loses_no_copy() {
    if !redis_is_there() {
        return;
    }
    let server = Server::start(&[]);
    let proxy = Proxy::before(server.port);
    let tier = connect(&[proxy.port], 1);
    let payload = bytes(64 << 10, 1);
    tier.write(0, &payload).unwrap();
    proxy.set(Network::Corrupt(2));
    let mut wrong = 0;
    for _ in 0..4 {
        let mut found = vec![0; 4096];
        let mut right = false;
        while !right {
            let read = tier.read_checked(0, &mut found, &mut |found| {
                right = found == &payload[..4096];
                right
            });
            read.unwrap();
            wrong += u32::from(!right);
        }
    }
    assert!(wrong > 0, "too easy");
    proxy.set(Network::Good);
    assert_eq!(read(&tier, 0, 64 << 10).unwrap(), payload);
    assert_eq!((tier.figures().lost, tier.figures().peers[0].lost), (0, 0));
}

#[test]
fn a_peer_is_drained_and_may_go() {
    if !redis_is_there() {
        return;
    }
    let mut servers: Vec<Server> = (0..3).map(|_| Server::start(&[])).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let tier = connect(&ports, 2);
    for number in 0..12 {
        tier.write(number * MIB, &bytes(64 << 10, number)).unwrap();
    }
    let peer: Peers = format!("redis://127.0.0.1:{}", ports[1]).parse().unwrap();
    assert_eq!(tmem_remote::values_left(&peer).unwrap(), servers[1].values());
    // Even a full one can be told.
    assert_eq!(servers[1].cli(&["config", "set", "maxmemory", "1"]), "OK");
    tmem_remote::drain(&peer, false).unwrap();
    assert_eq!(servers[1].cli(&["config", "get", "maxmemory"]), "maxmemory\n1");
    wait_until("it is empty", || tmem_remote::values_left(&peer).unwrap() == 0);
    wait_until("all have their copies", || is_whole(&tier.figures()) && tier.figures().peers[1].values == 0);
    assert_eq!(servers[1].cli(&["config", "set", "maxmemory", "0"]), "OK");
    tier.write(20 * MIB, &bytes(64 << 10, 20)).unwrap();
    assert_eq!((servers[1].values(), tier.figures().peers[1].state), (0, "draining"));
    tmem_remote::drain(&peer, true).unwrap();
    wait_until("it is given something again", || tier.figures().peers[1].state == "up");
    tmem_remote::drain(&peer, false).unwrap();
    wait_until("it is not any more", || tier.figures().peers[1].state == "draining");
    servers[1].kill();
    for number in (0..12).chain([20]) {
        assert_eq!(read(&tier, number * MIB, 64 << 10).unwrap(), bytes(64 << 10, number), "{number}");
    }
}
