//! `--remote`: memory that does not fit goes to the RAM of other machines and comes back right, whatever becomes of them.

mod common;
#[path = "../../tmem-remote/tests/common/mod.rs"]
mod servers;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use common::disk::{Disk, Nbd};
use common::host::Host;
use common::pki::Pki;
use common::{
    Guard, Job, Linking, MIB, Outcome, can_run, folder, long, noise, noise_for, program, run_tmem, say, skip,
    tmem_command, wait_until,
};
use serde_json::Value;
use servers::{Cluster, Network, Proxy, Server, redis_is_there};

const TROUBLE: i32 = 125;

fn remote(name: &str, job: Job, ram_mib: u64, flags: &[&str]) -> Outcome {
    let spill = if flags.contains(&"--spill") { &[][..] } else { &["--spill", "off"] };
    let flags = [spill, flags].concat();
    let outcome = job.under_tmem(ram_mib * MIB).flags(flags).timeout(Duration::from_secs(200)).run();
    let remote = outcome.stats.as_ref().map(|stats| stats["remote"].to_string()).unwrap_or_default();
    say(&format!("{name}: {}; {remote}; says {:?}", outcome.summary(), outcome.stderr_text()));
    outcome
}

fn figure(outcome: &Outcome, name: &str) -> u64 {
    outcome.stats.as_ref().unwrap()["remote"][name].as_u64().unwrap()
}

fn assert_right(outcome: &Outcome, rounds: u32) {
    assert_eq!(outcome.stdout_text(), format!("ok noise {rounds} rounds\n"), "{}", outcome.stderr_text());
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.stderr_text());
    assert_eq!((outcome.figure("on_full_events"), figure(outcome, "lost")), (0, 0), "{}", outcome.stderr_text());
    outcome.assert_budget();
}

/// What `tmem top` says of remote memory of the one supervisor that runs.
fn remote_now() -> Option<Value> {
    let (_, out, _) = run_tmem(&["top", "--once", "--json"]);
    let all: Value = serde_json::from_str(&out).ok()?;
    all["supervisors"].get(0).map(|supervisor| supervisor["remote"].clone())
}

/// Whether much is with the peers, and no copy is missing.
fn is_whole(remote: &Value) -> bool {
    let figure = |name: &str| remote[name].as_u64().unwrap();
    figure("values") > 300
        && figure("peer_values") == figure("values") * figure("copies")
        && figure("peers_up") == figure("peers")
}

fn wait_until_whole() {
    let whole = || remote_now().is_some_and(|remote| is_whole(&remote));
    assert!(wait_until(Duration::from_secs(60), whole), "copies are missing: {:?}", remote_now());
}

/// What is said, in a line, when a program does not start with these flags.
fn refusal(flags: &[&str]) -> String {
    let (status, out, err) = run_tmem(&[&["run", "--ram", "64M"], flags, &["--", "echo", "started"]].concat());
    assert!(status == TROUBLE && out.is_empty() && err.lines().count() == 1, "{flags:?}: {out}{err}");
    err
}

/// `tmem serve` with RAM for a test.
fn serve(words: &[&str]) -> (Guard, String) {
    let words = [&["serve", "--ram", "256M"], words].concat();
    let mut child = tmem_command(&words).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Guard(child), line.trim().to_owned())
}

/// Drains a server once much is there and ends it; what `tmem remote drain` said.
fn drain_and_end(mut server: Guard, url: &str) -> (i32, String, String) {
    wait_until_whole();
    let drained = run_tmem(&["remote", "drain", url]);
    server.signal(libc::SIGTERM);
    assert!(server.wait(Duration::from_secs(10)).is_some_and(|status| status.success()));
    drained
}

#[test]
fn noise_fits_into_other_machines_and_nothing_stays_there() {
    let name = "noise_fits_into_other_machines_and_nothing_stays_there";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    let all = [Server::start(&[]), Server::start(&[])];
    let [one, two] = all.each_ref().map(|server| server.url());
    for (peers, copies) in [(one.clone(), 1), (format!("{one},{two}"), 2)] {
        let outcome = remote(name, noise(160), 40, &["--remote", &peers]);
        assert_right(&outcome, 1);
        assert_eq!(figure(&outcome, "copies"), copies);
        assert!(outcome.stderr_text().is_empty(), "{}", outcome.stderr_text());
        assert!(outcome.stats.as_ref().unwrap()["spill"]["zpages_out"].as_u64().unwrap() > 20_000);
        assert!(all.iter().all(|server| server.cli(&["dbsize"]) == "0"), "something is left");
    }
}

#[test]
fn a_machine_lends_its_ram_with_tmem_serve() {
    let name = "a_machine_lends_its_ram_with_tmem_serve";
    if !can_run(name) {
        return;
    }
    let folder = folder(name);
    let password = folder.join("password");
    fs::write(&password, "open sesame\n").unwrap();
    let password = password.to_str().unwrap();
    let pki = Pki::new("remote_tls");
    let socket = format!("unix:{}", folder.join("socket").display());
    let tls = pki.path("server");
    for listen in [
        &["--listen", "127.0.0.1:0", "--password-file", password][..],
        &["--listen", &socket],
        &["--listen", "127.0.0.1:0", "--password-file", password, "--tls-certificates", &tls],
    ] {
        let (_server, url) = serve(listen);
        let url = url.replace("unix://", "unix:");
        let client = pki.path("client");
        let mut flags = vec!["--remote", &url];
        if listen.contains(&"--password-file") {
            flags.extend(["--remote-password-file", password]);
        }
        if listen.contains(&"--tls-certificates") {
            flags.extend(["--remote-certificates", &client]);
        }
        let outcome = remote(name, noise(160), 40, &flags);
        assert_right(&outcome, 1);
        assert!(outcome.stderr_text().is_empty(), "{}", outcome.stderr_text());
    }
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn redis_keeps_pages_over_tls_for_who_has_a_certificate() {
    let name = "redis_keeps_pages_over_tls_for_who_has_a_certificate";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    let (pki, port) = (Pki::new(name), servers::free_port().to_string());
    let file = |file: &str| format!("{}/{file}", pki.path("server"));
    let (certificate, key, authority) = (file("server-cert.pem"), file("server-key.pem"), file("ca-cert.pem"));
    let tls = ["--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let server = Server::start(&[&tls[..], &["--tls-ca-cert-file", &authority]].concat());
    // A user who may do what is needed, and with the keys of tmem alone.
    let commands = ["+@connection", "+@read", "+@write", "+@keyspace", "+info", "+wait"];
    let user = [&["acl", "setuser", "lent", "on", ">secret", "~tmem:*"][..], &commands].concat();
    assert_eq!(server.cli(&user), "OK");
    let url = format!("rediss://lent:secret@127.0.0.1:{port}");
    let outcome = remote(name, noise(160), 40, &["--remote", &url, "--remote-certificates", &pki.path("client")]);
    assert_right(&outcome, 1);
    assert!(outcome.stderr_text().is_empty(), "{}", outcome.stderr_text());
    assert!(outcome.stats.as_ref().unwrap()["spill"]["zpages_out"].as_u64().unwrap() > 20_000);
    assert_eq!(server.cli(&["dbsize"]), "0", "something is left");
    for certificates in ["without", "stranger"] {
        refusal(&["--remote", &url, "--remote-certificates", &pki.path(certificates)]);
    }
}

#[test]
fn every_peer_in_turn_may_be_killed() {
    let name = "every_peer_in_turn_may_be_killed";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    let mut all: Vec<Server> = (0..3).map(|_| Server::start(&[])).collect();
    let list: Vec<String> = all.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
    let peers = format!("redis://{}", list.join(","));
    let killer = thread::spawn(move || {
        for server in &mut all {
            wait_until_whole();
            let lost = || remote_now().and_then(|remote| remote["copies_lost"].as_u64()).unwrap();
            let before = lost();
            server.kill();
            thread::sleep(Duration::from_millis(500));
            server.restart();
            // That it is empty has to be known before the next one is killed.
            assert!(wait_until(Duration::from_secs(30), || lost() > before));
        }
        wait_until_whole();
        all
    });
    let outcome = remote(name, noise_for(96, 16), 48, &["--remote", &peers]);
    drop(killer.join().unwrap());
    assert_right(&outcome, 16);
    assert!(figure(&outcome, "replicated") > 300 && figure(&outcome, "copies_lost") > 300);
}

#[test]
fn without_a_copy_left_the_program_is_killed() {
    let name = "without_a_copy_left_the_program_is_killed";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    let mut server = Server::start(&[]);
    let peer = server.url();
    let killer = thread::spawn(move || {
        wait_until_whole();
        server.kill();
        server.restart();
        server
    });
    let outcome = remote(name, noise_for(96, 20), 48, &["--remote", &peer]);
    drop(killer.join().unwrap());
    let (out, err) = (outcome.stdout_text(), outcome.stderr_text());
    assert_eq!(outcome.status.signal(), Some(libc::SIGKILL), "{out}{err}");
    assert!(out.is_empty() && err.contains("no peer has it any more"), "{out}{err}");
}

#[test]
fn a_partition_of_the_only_peer_is_waited_for() {
    let name = "a_partition_of_the_only_peer_is_waited_for";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    let server = Server::start(&[]);
    let proxy = Proxy::before(server.port);
    let peer = format!("redis://127.0.0.1:{}", proxy.port);
    let cutter = thread::spawn(move || {
        wait_until_whole();
        proxy.set(Network::Partitioned);
        thread::sleep(Duration::from_secs(if long() { 30 } else { 8 }));
        proxy.set(Network::Good);
        proxy
    });
    let outcome = remote(name, noise_for(96, 4), 48, &["--remote", &peer]);
    drop(cutter.join().unwrap());
    assert_eq!(outcome.stdout_text(), "ok noise 4 rounds\n", "{}", outcome.stderr_text());
    assert!(outcome.stderr_text().contains("does not answer"), "{}", outcome.stderr_text());
}

#[test]
fn that_the_peers_are_full_is_said_once() {
    let name = "that_the_peers_are_full_is_said_once";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    let server = Server::start(&["--maxmemory", "24mb"]);
    let peer = server.url();
    let outcome = remote(name, noise_for(96, 5), 40, &["--remote", &peer]);
    assert_eq!(outcome.stdout_text(), "ok noise 5 rounds\n", "{}", outcome.stderr_text());
    let said = outcome.stderr_text();
    assert_eq!(said.matches("cannot be written (the peers are full)").count(), 1, "{said}");
    assert!(figure(&outcome, "refused_full") > 0);
}

#[test]
fn what_is_old_leaves_full_peers_for_the_spill_file() {
    let name = "what_is_old_leaves_full_peers_for_the_spill_file";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    let server = Server::start(&["--maxmemory", "48mb"]);
    let peer = server.url();
    let folder = folder(name);
    let file = folder.display().to_string();
    let outcome = remote(name, noise_for(160, 4), 40, &["--remote", &peer, "--spill", &file]);
    assert_eq!(outcome.stdout_text(), "ok noise 4 rounds\n", "{}", outcome.stderr_text());
    assert!(figure(&outcome, "refused_full") > 0 && figure(&outcome, "lost") == 0);
    let demoted = outcome.stats.as_ref().unwrap()["spill"]["zpages_demoted"].as_u64().unwrap();
    assert!(demoted > 1000, "{demoted}");
    assert_eq!(server.cli(&["dbsize"]), "0", "something is left");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_cluster_fails_over_under_a_program() {
    let name = "a_cluster_fails_over_under_a_program";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    let mut cluster = Cluster::start();
    let url = cluster.url();
    let killer = thread::spawn(move || {
        wait_until_whole();
        cluster.nodes[0].kill();
        thread::sleep(Duration::from_secs(5));
        // It comes back as a replica.
        cluster.nodes[0].restart();
        assert!(wait_until(Duration::from_secs(30), || cluster.is_whole()), "the cluster is not whole again");
        cluster
    });
    let outcome = remote(name, noise_for(80, 16), 48, &["--remote", &url]);
    let cluster = killer.join().unwrap();
    // While there is no primary, what does not fit stays in RAM.
    assert_eq!(outcome.stdout_text(), "ok noise 16 rounds\n", "{}", outcome.stderr_text());
    assert_eq!(figure(&outcome, "lost"), 0);
    assert_eq!((figure(&outcome, "copies"), figure(&outcome, "peers")), (2, 1));
    assert_eq!(cluster.values(), 0, "something is left");
}

#[test]
fn a_disk_keeps_its_blocks_on_other_machines() {
    let name = "a_disk_keeps_its_blocks_on_other_machines";
    if !redis_is_there() {
        return;
    }
    let all = [Server::start(&[]), Server::start(&[])];
    let peers = format!("redis://127.0.0.1:{},127.0.0.1:{}", all[0].port, all[1].port);
    let disk = Disk::start(&["--size", "256M", "--ram", "24M", "--remote", &peers]);
    let mut nbd = Nbd::open(&disk);
    let block = |number: u64| -> Vec<u8> {
        let mut random = tmem::testing::Random::new(number);
        (0..8192).flat_map(|_| random.number().to_le_bytes()).collect()
    };
    (0..1500).for_each(|number| assert_eq!(nbd.write(number << 16, &block(number)), 0));
    assert!(all.iter().all(|server| server.values() > 500));
    (0..1500).for_each(|number| assert!(nbd.read(number << 16, 1 << 16).unwrap() == block(number), "{number}"));
    say(&format!("{name}: {} KiB on peers", disk.figure("spilled_bytes") >> 10));
    drop(nbd);
    disk.stop();
    assert!(all.iter().all(|server| server.cli(&["dbsize"]) == "0"), "something is left");
}

#[test]
fn a_machine_that_lends_is_drained_while_a_program_runs() {
    let name = "a_machine_that_lends_is_drained_while_a_program_runs";
    if !can_run(name) {
        return;
    }
    let (one, first) = serve(&["--listen", "127.0.0.1:0"]);
    let (_two, second) = serve(&["--listen", "127.0.0.1:0"]);
    let peers = format!("{first},{second}");
    let drainer = thread::spawn(move || drain_and_end(one, &first));
    let outcome = remote(name, noise_for(96, 12), 48, &["--remote", &peers, "--copies", "1"]);
    assert_eq!(drainer.join().unwrap(), (0, String::new(), String::new()));
    assert_right(&outcome, 12);
    assert_eq!(figure(&outcome, "copies_lost"), 0);
}

/// Hosts with cables of their own: one is cut off for long and comes back, the server of another is killed, and all of them are
/// reached through narrow cables.
#[test]
fn hosts_are_cut_off_and_killed() {
    let name = "hosts_are_cut_off_and_killed";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    if !long() {
        return skip(name, "it takes minutes; TMEM_LONG=1 runs it");
    }
    let hosts = match [1, 2, 3].into_iter().map(Host::new).collect::<Result<Vec<_>, _>>() {
        Ok(hosts) => hosts,
        Err(why) => return skip(name, &format!("no hosts of their own here: {why}")),
    };
    if let Err(why) = hosts.iter().try_for_each(|host| host.narrow(400)) {
        say(&format!("{name}: NOTE: the cables are as wide as they are: {why}"));
    }
    let folder = folder(name);
    let password = folder.join("password");
    fs::write(&password, "open sesame").unwrap();
    let password = password.to_str().unwrap().to_owned();
    let servers = [hosts[0].redis("open sesame"), hosts[1].redis("open sesame"), hosts[2].serve(&password)];
    let addresses: Vec<_> = hosts.iter().map(|host| host.address.clone()).collect();
    let peers = format!("redis://{}", addresses.join(","));
    let rounds = 24;
    let trouble = thread::spawn(move || {
        let [cut_off, mut killed, stays] = servers;
        wait_until_whole();
        hosts[0].cut_off(true);
        thread::sleep(Duration::from_secs(30));
        hosts[0].cut_off(false);
        wait_until_whole();
        killed.signal(libc::SIGKILL);
        assert!(killed.wait(Duration::from_secs(10)).is_some());
        let started_again = hosts[1].redis("open sesame");
        wait_until_whole();
        (cut_off, started_again, stays, hosts)
    });
    let outcome = remote(name, noise_for(96, rounds), 48, &["--remote", &peers, "--remote-password-file", &password]);
    drop(trouble.join().unwrap());
    assert_right(&outcome, rounds);
    assert!(figure(&outcome, "replicated") > 300, "{}", outcome.stderr_text());
    assert_eq!(figure(&outcome, "copies"), 2);
    fs::remove_dir_all(folder).unwrap();
}

/// What a program keeps that needs less now comes home although nobody asks for it, and the peer has its RAM again.
#[test]
fn pages_come_home_when_there_is_room() {
    let name = "pages_come_home_when_there_is_room";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    let server = Server::start(&[]);
    let peer = server.url();
    let looker = thread::spawn(move || {
        assert!(wait_until(Duration::from_secs(60), || server.values() > 300), "nothing went there");
        assert!(wait_until(Duration::from_secs(30), || server.values() == 0), "{} are left", server.values());
        server
    });
    let shrink =
        Job::native([program("shrink", Linking::Dynamic).as_os_str(), "20".as_ref(), "128".as_ref(), "9000".as_ref()]);
    let outcome = remote(name, shrink, 64, &["--remote", &peer]);
    drop(looker.join().unwrap());
    assert_eq!((outcome.stdout_text(), outcome.stderr_text()), ("ok shrink\n".to_owned(), String::new()));
    assert!(outcome.stats.as_ref().unwrap()["spill"]["zpages_recalled"].as_u64().unwrap() > 500);
    outcome.assert_budget();
}

/// The only peer is switched off while a program needs what lies there: that goes to the spill file.
#[test]
fn the_only_peer_is_drained_to_the_spill_file() {
    let name = "the_only_peer_is_drained_to_the_spill_file";
    if !can_run(name) {
        return;
    }
    let (one, peer) = serve(&["--listen", "127.0.0.1:0"]);
    let drained = peer.clone();
    let drainer = thread::spawn(move || drain_and_end(one, &drained));
    let folder = folder(name);
    let outcome = remote(name, noise_for(96, 12), 48, &["--remote", &peer, "--spill", folder.to_str().unwrap()]);
    assert_eq!(drainer.join().unwrap(), (0, String::new(), String::new()));
    assert_right(&outcome, 12);
    assert_eq!(figure(&outcome, "copies_lost"), 0);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_cannot_be_is_said_before_the_program_starts() {
    let name = "what_cannot_be_is_said_before_the_program_starts";
    if !can_run(name) || !redis_is_there() {
        return;
    }
    let evicts = Server::start(&["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"]);
    let (evicts, nobody) = (evicts.url(), servers::free_port());
    let nobody = format!("redis://127.0.0.1:{nobody}");
    for (flags, why) in [
        (&["--remote", "10.0.0.1"][..], "does not say what it is"),
        (&["--remote", &evicts], "set noeviction"),
        (&["--remote", &nobody], "too few peers can be reached"),
        (&["--remote", &nobody, "--copies", "2"], "name more peers"),
        (&["--remote", &nobody, "--remote-password-file", "/nowhere"], "/nowhere"),
        (&["--copies", "2"], "--remote"),
    ] {
        let err = refusal(flags);
        assert!(err.contains(why), "{flags:?}: {err}");
    }
}
