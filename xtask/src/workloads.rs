//! The programs that are raced: those of `tests/workloads`, at sizes that take seconds.

use crate::project;

/// A deterministic program: the same output every time, status 77 if something it needs is not installed.
pub struct Workload {
    pub name: &'static str,
    interpreter: &'static str,
    script: &'static str,
    args: &'static [&'static str],
}

const fn workload(
    name: &'static str,
    interpreter: &'static str,
    script: &'static str,
    args: &'static [&'static str],
) -> Workload {
    Workload { name, interpreter, script, args }
}

/// All workloads, in the order they are run.
pub const WORKLOADS: &[Workload] = &[
    workload("sort", "sh", "sort.sh", &["300"]),
    workload("python", "python3", "dicts.py", &["300"]),
    workload("python-pool", "python3", "pool.py", &["300"]),
    workload("redis", "sh", "redis.sh", &["150"]),
    workload("node", "node", "heap.js", &["300"]),
    // By its cgroup's limit a JVM would choose another heap and another collector: not the same program for both.
    workload("java", "sh", "java.sh", &["150", "-XX:-UseContainerSupport"]),
    workload("java -Xmx", "sh", "java.sh", &["150", "-XX:-UseContainerSupport", "-Xmx192m"]),
    workload("g++", "sh", "gxx.sh", &["14"]),
    workload("sqlite", "sh", "sqlite.sh", &["200"]),
    workload("jemalloc", "sh", "jemalloc.sh", &["200"]),
    workload("static", "sh", "static.sh", &["250"]),
];

impl Workload {
    /// The command line, with the script's full path.
    pub fn command(&self) -> Vec<String> {
        let script = project::root().join("tests/workloads").join(self.script);
        let mut words = vec![self.interpreter.to_owned(), script.to_string_lossy().into_owned()];
        words.extend(self.args.iter().map(|&arg| arg.to_owned()));
        words
    }

    /// Why it cannot run here.
    pub fn unavailable(&self) -> Option<String> {
        (!project::installed(self.interpreter)).then(|| format!("{} is not installed", self.interpreter))
    }
}

/// The workloads whose name is in `only`; all of them if that is empty.
///
/// # Errors
///
/// When a name is unknown.
pub fn select(only: &[String]) -> anyhow::Result<Vec<&'static Workload>> {
    let known = || WORKLOADS.iter().map(|w| w.name).collect::<Vec<_>>().join(", ");
    for name in only {
        anyhow::ensure!(WORKLOADS.iter().any(|w| w.name == name), "no workload '{name}': there are {}", known());
    }
    Ok(WORKLOADS.iter().filter(|w| only.is_empty() || only.iter().any(|name| name == w.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_exists() {
        for workload in WORKLOADS {
            let script = project::root().join("tests/workloads").join(workload.script);
            assert!(script.is_file(), "{}", script.display());
        }
    }

    #[test]
    fn names_select() {
        assert_eq!(select(&[]).unwrap().len(), WORKLOADS.len());
        assert_eq!(select(&["node".to_owned()]).unwrap()[0].name, "node");
        assert!(select(&["nodejs".to_owned()]).is_err());
    }
}
