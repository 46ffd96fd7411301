//! `tmem disk --tls-certificates`: whoever has no certificate of the right authority gets nothing, whoever has one gets it all.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::disk::{Disk, FIRST, OPT_GO, OPT_STRUCTURED_REPLY, connect, option, option_reply, read_exact};
use common::pki::Pki;
use common::{MIB, has, run_tmem};
use tmem::testing::sample_pages;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_STARTTLS: u32 = 5;
const OPT_FIGURES: u32 = 0x746d_656d;
const ACK: u32 = 1;
const ERR_TLS_REQD: u32 = 1 << 31 | 5;

/// A disk that wants TLS.
fn start(pki: &Pki, listen: &str) -> Disk {
    let server = pki.path("server");
    Disk::start_at(listen, &["--size", "64M", "--ram", "32M", "--tls-certificates", &server])
}

fn run(program: &str, words: &[&str]) -> Output {
    Command::new("timeout").arg("60").arg(program).args(words).stdin(Stdio::null()).output().unwrap()
}

fn succeed(program: &str, words: &[&str]) -> String {
    let out = run(program, words);
    assert!(out.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn with_certificates(uri: &str, folder: &str) -> String {
    let sign = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{sign}tls-certificates={folder}")
}

/// An image of 16 MiB.
fn image(folder: &Path) -> PathBuf {
    let path = folder.join("image");
    fs::write(&path, sample_pages(4096, 5).flatten().collect::<Vec<u8>>()).unwrap();
    path
}

#[test]
fn without_a_certificate_there_is_nothing_and_with_one_all() {
    const TEST: &str = "without_a_certificate_there_is_nothing_and_with_one_all";
    if !has(TEST, "nbdinfo") {
        return;
    }
    let pki = Pki::new("tls-nbdinfo");
    let disk = start(&pki, "127.0.0.1:0");
    assert!(disk.uri().starts_with("nbds://127.0.0.1:"), "{}", disk.uri());
    for folder in ["without", "stranger"] {
        let out = run("nbdinfo", &[&with_certificates(disk.uri(), &pki.path(folder))]);
        assert!(!out.status.success(), "{folder}");
        assert!(out.stdout.is_empty(), "{folder}: {}", String::from_utf8_lossy(&out.stdout));
    }
    // It says how far it came; what it tells of a disk begins with "export".
    let plain = run("nbdinfo", &[&disk.uri().replace("nbds:", "nbd:")]);
    let told = String::from_utf8_lossy(&plain.stdout);
    assert!(!plain.status.success() && told.contains("without TLS") && !told.contains("export"), "{plain:?}");
    let said = succeed("nbdinfo", &[&with_certificates(disk.uri(), &pki.path("client"))]);
    assert!(said.contains("protocol: newstyle-fixed with TLS") && said.contains("export-size: 67108864"), "{said}");
    disk.stop();
}

#[test]
fn nbdcopy_and_qemu_img_copy_under_tls() {
    const TEST: &str = "nbdcopy_and_qemu_img_copy_under_tls";
    if !has(TEST, "nbdcopy") || !has(TEST, "qemu-img") {
        return;
    }
    let pki = Pki::new("tls-copy");
    for listen in ["unix:", "127.0.0.1:0"] {
        let disk = start(&pki, listen);
        let image = image(disk.folder());
        let back = disk.folder().join("back");
        let uri = with_certificates(disk.uri(), &pki.path("client"));
        succeed("nbdcopy", &[image.to_str().unwrap(), &uri]);
        succeed("nbdcopy", &[&uri, back.to_str().unwrap()]);
        let (was, is) = (fs::read(&image).unwrap(), fs::read(&back).unwrap());
        assert!(is.len() as u64 == 64 * MIB && is[..was.len()] == was, "{listen}");
        if let Some(at) = disk.uri().strip_prefix("nbds://127.0.0.1:") {
            let port = at.trim_end_matches('/');
            let options =
                format!("driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},tls-creds=tls0");
            let see = |folder: &str| {
                let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", pki.path(folder));
                run("qemu-img", &["map", "--output=json", "--object", &object, "--image-opts", &options])
            };
            let out = see("client");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            assert!(String::from_utf8_lossy(&out.stdout).contains("\"zero\": true"));
            assert!(!see("without").status.success() && !see("stranger").status.success());
        }
        disk.stop();
    }
}

#[test]
fn before_tls_nothing_is_told() {
    let pki = Pki::new("tls-before");
    let disk = start(&pki, "unix:");
    let begin = || {
        let mut stream = connect(&disk);
        read_exact::<18>(&stream).unwrap();
        stream.write_all(&[0, 0, 0, 3]).unwrap();
        stream
    };
    let mut stream = begin();
    for (code, data) in [
        (OPT_LIST, &[][..]),
        (OPT_GO, &FIRST),
        (OPT_STRUCTURED_REPLY, &[]),
        (OPT_FIGURES, &[]),
        (OPT_STARTTLS, b"data"),
        (77, b"?"),
    ] {
        stream.write_all(&option(code, data)).unwrap();
        assert_eq!(option_reply(&stream).unwrap().0, ERR_TLS_REQD, "{code}");
    }
    stream.write_all(&option(OPT_ABORT, &[])).unwrap();
    assert_eq!(option_reply(&stream).unwrap().0, ACK);
    let mut stream = begin();
    stream.write_all(&option(OPT_EXPORT_NAME, b"")).unwrap();
    assert!(read_exact::<1>(&stream).is_err(), "an export without TLS");
    disk.stop();
}

/// Who sits between client and server could send commands behind STARTTLS, to have them done as if they had come under TLS.
#[test]
fn what_stands_in_the_clear_behind_starttls_is_not_done() {
    let pki = Pki::new("tls-injection");
    let disk = start(&pki, "unix:");
    let mut stream = connect(&disk);
    read_exact::<18>(&stream).unwrap();
    stream.write_all(&[&[0, 0, 0, 3][..], &option(OPT_STARTTLS, &[]), &option(OPT_GO, &FIRST)].concat()).unwrap();
    assert_eq!(option_reply(&stream).unwrap(), (ACK, vec![]));
    // An alert, and the end.
    let alert: [u8; 7] = read_exact(&stream).unwrap();
    assert_eq!((alert[0], alert[5]), (21, 2), "{alert:?}");
    assert!(read_exact::<1>(&stream).is_err());
    disk.stop();
}

#[test]
fn a_handshake_of_tls_that_drips_is_not_waited_for_longer() {
    let pki = Pki::new("tls-drips");
    let disk = start(&pki, "unix:");
    let mut stream = connect(&disk);
    read_exact::<18>(&stream).unwrap();
    let start = Instant::now();
    stream.write_all(&[&[0, 0, 0, 3][..], &option(OPT_STARTTLS, &[])].concat()).unwrap();
    // The head of a record of a handshake that never becomes whole.
    stream.write_all(&[22, 3, 1, 0x20, 0, 1, 0, 0x1f, 0xfc]).unwrap();
    while stream.write_all(&[3]).is_ok() {
        std::thread::sleep(Duration::from_millis(100));
        assert!(start.elapsed() < Duration::from_secs(25), "it waits for ever");
    }
    assert!(start.elapsed() > Duration::from_secs(10), "not even a slow client has time");
    disk.stop();
}

#[test]
fn stats_are_asked_for_under_tls() {
    let pki = Pki::new("tls-stats");
    let disk = start(&pki, "unix:");
    let at = format!("unix:{}", disk.socket().display());
    let ask = |words: &[&str]| run_tmem(&[&["disk", "stats", &at, "--json"], words].concat());
    let (status, out, err) = ask(&[]);
    assert!((status, out.as_str()) == (125, "") && err.contains("--tls-certificates DIR"), "{err}");
    for folder in ["without", "stranger"] {
        let (status, out, err) = ask(&["--tls-certificates", &pki.path(folder)]);
        assert!((status, out.as_str()) == (125, "") && err.lines().count() == 1, "{err}");
    }
    let (status, out, err) = ask(&["--tls-certificates", &pki.path("client")]);
    assert_eq!(status, 0, "{err}");
    let figures: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(figures["exports"][0]["size_bytes"], 64 * MIB);
    disk.stop();
    let plain = Disk::start(&["--size", "1M", "--ram", "16M"]);
    let at = format!("unix:{}", plain.socket().display());
    let (status, _, err) = run_tmem(&["disk", "stats", &at, "--tls-certificates", &pki.path("client")]);
    assert!(status == 125 && err.contains("has no TLS"), "{err}");
    plain.stop();
}

#[test]
fn a_folder_that_lacks_something_is_named() {
    let pki = Pki::new("tls-folder");
    let start = |folder: &str| {
        let listen = format!("unix:{}", pki.0.join("socket").display());
        run_tmem(&[
            "disk",
            "--size",
            "1M",
            "--ram",
            "16M",
            "--listen",
            &listen,
            "--tls-certificates",
            &pki.path(folder),
        ])
    };
    let (status, _, err) = start("client");
    assert!(status == 125 && err.contains("server-cert.pem") && err.lines().count() == 1, "{err}");
    fs::copy(pki.0.join("client/client-key.pem"), pki.0.join("server/server-key.pem")).unwrap();
    let (status, _, err) = start("server");
    assert!(status == 125 && err.contains("server-key.pem"), "a key of somebody else: {err}");
    fs::write(pki.0.join("server/ca-cert.pem"), "nothing").unwrap();
    let (status, _, err) = start("server");
    assert!(status == 125 && err.contains("ca-cert.pem"), "{err}");
    assert!(!pki.0.join("socket").exists());
}
