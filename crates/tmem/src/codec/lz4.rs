//! LZ4 by the reference implementation.

use std::ffi::{c_char, c_int, c_void};

use super::{Encoding, Expand, Malformed, PACKED_BYTES_MAX, Pack};
use crate::page::{PAGE_SIZE, Page};

unsafe extern "C" {
    // lz4-sys builds these functions but does not declare them. Unlike `LZ4_compress_default` the first does not clear the
    // 16 KiB table before each page, which would take as long as packing a good page.
    fn LZ4_compress_fast_extState_fastReset(
        state: *mut c_void,
        src: *const c_char,
        dst: *mut c_char,
        src_bytes: c_int,
        dst_bytes: c_int,
        acceleration: c_int,
    ) -> c_int;
    fn LZ4_decompress_safe_partial(
        src: *const c_char,
        dst: *mut c_char,
        src_bytes: c_int,
        target_bytes: c_int,
        dst_bytes: c_int,
    ) -> c_int;
    fn LZ4_sizeofState() -> c_int;
}

/// An LZ4 packing context: the hash table, zeroed once. Expanding needs no context.
pub(crate) struct Lz4 {
    state: Box<[u64]>,
}

impl Lz4 {
    pub(crate) fn new() -> Self {
        // SAFETY: the function takes nothing and returns a constant.
        let bytes = unsafe { LZ4_sizeofState() };
        let words = usize::try_from(bytes).expect("a size is positive").div_ceil(8);
        Self { state: vec![0; words].into_boxed_slice() }
    }

    pub(crate) fn expand_page(packed: &[u8], out: &mut Page) -> Result<(), Malformed> {
        let packed_bytes = c_int::try_from(packed.len()).map_err(|_| Malformed)?;
        // SAFETY: both pointers are good for the lengths given with them; `_safe` reads and writes no further whatever
        // the packed bytes say.
        let written = unsafe {
            lz4_sys::LZ4_decompress_safe(
                packed.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                packed_bytes,
                PAGE_SIZE as c_int,
            )
        };
        if written == PAGE_SIZE as c_int { Ok(()) } else { Err(Malformed) }
    }

    /// Expands a page from its beginning to `end` at least.
    pub(crate) fn expand_to(packed: &[u8], end: usize, out: &mut Page) -> Result<(), Malformed> {
        let packed_bytes = c_int::try_from(packed.len()).map_err(|_| Malformed)?;
        let end = end.min(PAGE_SIZE) as c_int;
        // SAFETY: both pointers are good for the lengths given with them; `_safe` reads and writes no further whatever
        // the packed bytes say.
        let written = unsafe {
            LZ4_decompress_safe_partial(
                packed.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                packed_bytes,
                end,
                PAGE_SIZE as c_int,
            )
        };
        if written >= end { Ok(()) } else { Err(Malformed) }
    }
}

impl Pack for Lz4 {
    fn encoding(&self) -> Encoding {
        Encoding::Lz4
    }

    fn compress(&mut self, page: &Page, out: &mut [u8; PACKED_BYTES_MAX]) -> Option<usize> {
        // SAFETY: the state has the size LZ4 asks for, is aligned to eight bytes, and was zeroed or left by an earlier
        // call, which is what fastReset demands; the buffers are good for the lengths given with them.
        let written = unsafe {
            LZ4_compress_fast_extState_fastReset(
                self.state.as_mut_ptr().cast(),
                page.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                PAGE_SIZE as c_int,
                PACKED_BYTES_MAX as c_int,
                1,
            )
        };
        usize::try_from(written).ok().filter(|bytes| *bytes > 0)
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(&*self.state)
    }
}

impl Expand for Lz4 {
    fn expand(&mut self, packed: &[u8], out: &mut Page) -> Result<(), Malformed> {
        Self::expand_page(packed, out)
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}
