//! The memory of a running process as a source of pages.

use anyhow::ensure;
use serde_json::{Value, json};
use tmem::{PAGE_SIZE, Page};
use tmem_run::inspect::{Process, Reading};

use super::report::mib;
use super::source::{Block, Source, add_run};

/// Memory of a process that `tmem run` would manage.
pub struct ProcessPages {
    pid: u32,
    process: Process,
    blocks: Vec<Block>,
}

impl ProcessPages {
    /// Opens the process and lists its pages.
    ///
    /// # Errors
    /// When it cannot be read, or has no memory for tmem.
    pub fn open(pid: u32) -> anyhow::Result<Self> {
        let process = Process::open(pid)?;
        let mut blocks = Vec::new();
        for range in process.ranges() {
            add_run(&mut blocks, range.start / PAGE_SIZE as u64, range.end / PAGE_SIZE as u64);
        }
        ensure!(
            !blocks.is_empty(),
            "process {pid} ({}) has nothing for tmem: no private anonymous memory in mappings of 64 KiB and more",
            process.name()
        );
        Ok(Self { pid, process, blocks })
    }
}

impl Source for ProcessPages {
    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn read_run(&self, first: u64, out: &mut [Page]) -> anyhow::Result<Option<usize>> {
        Ok(match self.process.read(first * PAGE_SIZE as u64, out.as_flattened_mut()) {
            Reading::Bytes(bytes) => Some(bytes / PAGE_SIZE),
            Reading::Ended => None,
        })
    }

    fn title(&self) -> String {
        format!("Process {} ({})", self.pid, self.process.name())
    }

    fn notes(&self) -> Vec<String> {
        let (total, pages) =
            (self.process.anonymous_bytes(), self.blocks.iter().map(|block| block.pages()).sum::<u64>());
        let left = total.saturating_sub(pages * PAGE_SIZE as u64);
        let swapped = self.process.swapped_bytes();
        let mut notes = vec![
            "This is what tmem run would manage: private, anonymous, writable, in mappings of 64 KiB and more."
                .to_owned(),
            format!("{} more of anonymous memory would stay as it is.", mib(left as f64)),
        ];
        if swapped > 0 {
            notes.push(format!("{} of it is in swap; what is read of that comes back to RAM.", mib(swapped as f64)));
        }
        if self.process.is_managed() {
            notes.push("A tmem manages this process: pages that are in its store are not counted here.".to_owned());
        }
        notes
    }

    fn json(&self) -> Value {
        json!({
            "kind": "process",
            "pid": self.pid,
            "name": self.process.name(),
            "anonymous_bytes": self.process.anonymous_bytes(),
            "swapped_bytes": self.process.swapped_bytes(),
            "managed_by_tmem": self.process.is_managed(),
        })
    }
}
