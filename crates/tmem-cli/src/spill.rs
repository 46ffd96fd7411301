//! What `--spill` says: `auto`, `off`, or a path with or without a size.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::bail;
use tmem_run::Spill;

use crate::size::RamSize;

/// Reads the value of `--spill`.
///
/// # Errors
///
/// When it is empty, or the size is none.
pub fn parse(value: &OsStr) -> anyhow::Result<Spill> {
    match value.as_bytes() {
        b"" => bail!("--spill: name a directory or a file, or say auto or off"),
        b"auto" => return Ok(Spill::Auto),
        b"off" => return Ok(Spill::Off),
        _ => {}
    }
    let (path, bytes_max) = split_size(value)?;
    Ok(Spill::At { path: path.into(), bytes_max })
}

/// A colon with a digit behind it, and no slash, begins a size.
fn split_size(value: &OsStr) -> anyhow::Result<(&OsStr, Option<u64>)> {
    let bytes = value.as_bytes();
    let Some(colon) = bytes.iter().rposition(|&byte| byte == b':').filter(|&at| at > 0) else {
        return Ok((value, None));
    };
    let (path, size) = (&bytes[..colon], &bytes[colon + 1..]);
    if !size.first().is_some_and(u8::is_ascii_digit) || size.contains(&b'/') {
        return Ok((value, None));
    }
    match String::from_utf8_lossy(size).parse() {
        Ok(RamSize::Bytes(bytes)) => Ok((OsStr::from_bytes(path), Some(bytes))),
        _ => bail!(
            "--spill {}: '{}' is not a size: write for example 512M, 1.5G or 800MiB",
            value.display(),
            String::from_utf8_lossy(size)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> (String, Option<u64>) {
        match parse(text.as_ref()).unwrap() {
            Spill::At { path, bytes_max } => (path.to_str().unwrap().to_owned(), bytes_max),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn words_paths_and_sizes() {
        assert_eq!(parse("auto".as_ref()).unwrap(), Spill::Auto);
        assert_eq!(parse("off".as_ref()).unwrap(), Spill::Off);
        assert_eq!(at("/var/tmp"), ("/var/tmp".to_owned(), None));
        assert_eq!(at("./auto"), ("./auto".to_owned(), None));
        assert_eq!(at("/a/file:20G"), ("/a/file".to_owned(), Some(20 << 30)));
        assert_eq!(at("file:1.5M"), ("file".to_owned(), Some(3 << 19)));
        assert_eq!(at("/a:1/b"), ("/a:1/b".to_owned(), None));
        assert_eq!(at("/a:b"), ("/a:b".to_owned(), None));
        assert_eq!(at("/a:b:8M"), ("/a:b".to_owned(), Some(8 << 20)));
        for bad in ["", "/a:1X", "/a:50%", "/a:0"] {
            assert!(parse(bad.as_ref()).is_err(), "{bad}");
        }
    }
}
