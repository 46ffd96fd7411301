//! The kernel's compressed RAM disk: set up, asked what it takes, and reset, whatever happens in between.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::{interrupt, project};

/// The block device.
pub const DEVICE: &str = "/dev/zram0";

const ZRAM: &str = "/sys/block/zram0";
/// One read or write; zram takes it apart into pages.
const STEP_BYTES: usize = 1 << 20;
/// What O_DIRECT wants of buffers.
const ALIGN: usize = 4096;

/// Why this machine has no zram device for us; `None` if it has.
pub fn unavailable() -> Option<String> {
    if !project::is_root() {
        return Some("it needs root".to_owned());
    }
    if !Path::new(DEVICE).exists() {
        return Some(format!("there is no {DEVICE} (try: modprobe zram)"));
    }
    let in_use = fs::read_to_string(format!("{ZRAM}/disksize")).is_ok_and(|size| size.trim() != "0");
    in_use.then(|| format!("{DEVICE} is in use (to free it: swapoff {DEVICE}; echo 1 > {ZRAM}/reset)"))
}

/// Whether the kernel has this compressor for zram.
pub fn has_algorithm(name: &str) -> bool {
    let text = fs::read_to_string(format!("{ZRAM}/comp_algorithm")).unwrap_or_default();
    text.split_whitespace().any(|word| word.trim_matches(['[', ']']) == name)
}

/// Bytes of RAM that the device takes at present, without the table of its pages; 0 if that cannot be read.
pub fn used_bytes() -> u64 {
    mm_stat().map_or(0, |stat| stat.used_bytes)
}

/// What zram says of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmStat {
    /// Pages that were written, uncompressed; same-filled ones count.
    pub original_bytes: u64,
    /// The same compressed; same-filled ones take nothing.
    pub compressed_bytes: u64,
    /// Frames that zsmalloc holds for them.
    pub used_bytes: u64,
    /// Pages that are one repeated word.
    pub same_pages: u64,
}

fn mm_stat() -> anyhow::Result<MmStat> {
    let path = format!("{ZRAM}/mm_stat");
    let text = fs::read_to_string(&path).context(path)?;
    parse_mm_stat(&text).with_context(|| format!("mm_stat is not as expected: {text}"))
}

fn parse_mm_stat(text: &str) -> Option<MmStat> {
    let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(MmStat {
        original_bytes: *numbers.first()?,
        compressed_bytes: *numbers.get(1)?,
        used_bytes: *numbers.get(2)?,
        same_pages: *numbers.get(5)?,
    })
}

/// The device, set up; it is reset when this is dropped.
pub struct Zram(());

impl Zram {
    /// Sets the device up empty.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a step; those already taken are undone.
    pub fn set_up(algorithm: &str, disk_bytes: u64) -> anyhow::Result<Self> {
        put("reset", "1")?;
        // From here on, dropping it undoes what was done.
        let zram = Self(());
        put("comp_algorithm", algorithm)?;
        put("disksize", &disk_bytes.to_string())?;
        Ok(zram)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        if let Err(error) = put("reset", "1") {
            eprintln!("xtask: cannot put the machine back as it was: {error:#}");
        }
    }
}

fn put(file: &str, text: &str) -> anyhow::Result<()> {
    let path = format!("{ZRAM}/{file}");
    fs::write(&path, text).with_context(|| format!("cannot write {text} to {path}"))
}

/// What the kernel makes of some pages.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub stat: MmStat,
    pub write_us_per_page: f64,
    pub read_us_per_page: f64,
}

/// Writes pages past the page cache, reads them back, and checks that they are the same.
///
/// # Errors
///
/// When the kernel refuses a step, or we are interrupted. The device is reset in any case.
pub fn measure(algorithm: &str, pages: &[u8]) -> anyhow::Result<Measured> {
    let _zram = Zram::set_up(algorithm, pages.len() as u64)?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(DEVICE).context(DEVICE)?;
    let mut space = vec![0; STEP_BYTES + ALIGN];
    let start = space.as_ptr().align_offset(ALIGN);
    let buffer = &mut space[start..start + STEP_BYTES];
    let count = (pages.len() / tmem::PAGE_SIZE) as f64;
    let write_us_per_page = write(&file, buffer, pages)? / count;
    let read_us_per_page = read(&file, buffer, pages)? / count;
    Ok(Measured { stat: mm_stat()?, write_us_per_page, read_us_per_page })
}

fn write(file: &File, buffer: &mut [u8], pages: &[u8]) -> anyhow::Result<f64> {
    let mut us = 0.0;
    for (step, part) in (0..).zip(pages.chunks(STEP_BYTES)) {
        interrupt::check()?;
        buffer[..part.len()].copy_from_slice(part);
        let start = Instant::now();
        file.write_all_at(&buffer[..part.len()], step * STEP_BYTES as u64).context("cannot write to zram")?;
        us += start.elapsed().as_secs_f64() * 1e6;
    }
    Ok(us)
}

fn read(file: &File, buffer: &mut [u8], pages: &[u8]) -> anyhow::Result<f64> {
    let mut us = 0.0;
    for (step, part) in (0..).zip(pages.chunks(STEP_BYTES)) {
        interrupt::check()?;
        let start = Instant::now();
        file.read_exact_at(&mut buffer[..part.len()], step * STEP_BYTES as u64).context("cannot read from zram")?;
        us += start.elapsed().as_secs_f64() * 1e6;
        ensure!(buffer[..part.len()] == *part, "zram gives back other pages than were written");
    }
    Ok(us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let text = "16777216  4305024  4411392        0  4411392       12        0      310      310\n";
        let stat = parse_mm_stat(text).unwrap();
        assert_eq!(stat.original_bytes, 16_777_216);
        assert_eq!((stat.compressed_bytes, stat.used_bytes, stat.same_pages), (4_305_024, 4_411_392, 12));
        assert_eq!(parse_mm_stat("1 2 3"), None);
        assert_eq!(parse_mm_stat("1 2 x 4 5 6"), None);
    }
}
