//! What fuzz targets need of the inside.

use crate::resp::{Decoder, Found, Limits};

/// Reads bytes as commands, whole and piece by piece: the same comes out.
///
/// # Panics
/// When it does not.
pub fn decode_any(bytes: &[u8]) {
    let limits = Limits { bulk_bytes: 1 << 16, args: 1 << 10 };
    let whole = decode(bytes, bytes.len().max(1), limits);
    let pieces = decode(bytes, 1 + bytes.first().map_or(0, |byte| usize::from(*byte % 7)), limits);
    assert_eq!(whole, pieces);
    let _ = decode(bytes, bytes.len().max(1), Limits::STRANGER);
}

/// Commands, and whether it ended with nonsense.
fn decode(bytes: &[u8], piece: usize, limits: Limits) -> (Vec<Vec<Vec<u8>>>, bool) {
    let (mut decoder, mut start, mut end, mut commands) = (Decoder::default(), 0, 0, Vec::new());
    loop {
        match decoder.decode(&bytes[start..end], limits) {
            Err(_) => return (commands, true),
            Ok(Found::Command(found)) => {
                assert!(found > 0 && found <= end - start);
                commands.push(decoder.args().iter().map(|range| bytes[start..][range.clone()].to_vec()).collect());
                start += found;
            }
            Ok(Found::Incomplete(wanted)) => {
                assert!(wanted > end - start);
                if end == bytes.len() {
                    return (commands, false);
                }
                end = (end + piece).min(bytes.len());
            }
        }
    }
}
