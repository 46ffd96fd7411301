//! Compiles the programs of `tests/programs` once per test binary.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// How a program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Linking {
    /// Against the shared C library.
    Dynamic,
    /// With everything inside.
    Static,
}

/// The executable made of `tests/programs/NAME.c`.
///
/// # Panics
///
/// When the C compiler is missing or refuses the source.
pub fn program(name: &str, linking: Linking) -> PathBuf {
    static MADE: OnceLock<Mutex<HashMap<(String, Linking), PathBuf>>> = OnceLock::new();
    let mut made = MADE.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    made.entry((name.to_owned(), linking)).or_insert_with(|| compile(name, linking)).clone()
}

fn compile(name: &str, linking: Linking) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/programs").join(format!("{name}.c"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    std::fs::create_dir_all(&folder).unwrap();
    let target = folder.join(if linking == Linking::Static { format!("{name}-static") } else { name.to_owned() });
    // Test binaries may run side by side: whoever is last puts an equal file in place.
    let fresh = folder.join(format!("{name}.{}", std::process::id()));
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-pthread", "-o"]).arg(&fresh).arg(&source);
    if linking == Linking::Static {
        cc.arg("-static");
    }
    let status = cc.status().expect("a C compiler (cc) is needed for these tests");
    assert!(status.success(), "cc refused {}", source.display());
    std::fs::rename(&fresh, &target).unwrap();
    target
}
