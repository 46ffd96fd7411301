//! What a store says about itself.

/// Figures of a store at one moment. Counters run from the store's creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Pages that gets would find.
    pub pages: u64,
    /// Those among them that are one repeated 64-bit pattern and take nothing but their entry.
    pub same_filled: u64,
    /// Bytes of all those pages as their users see them.
    pub original_bytes: u64,
    /// Zpages that are stored; fewer than pages when pages are shared or same-filled.
    pub zpages: u64,
    /// Bytes of the zpages, without headers.
    pub compressed_bytes: u64,
    /// Bytes of the zpages with headers and padding: what would be left if frames were packed without any loss.
    pub zpage_bytes: u64,
    /// Bytes of frames in memory.
    pub frame_bytes: u64,
    /// Everything the store holds: frames, index, tables, contexts.
    pub memory_bytes: u64,
    /// What `memory_bytes` must not pass.
    pub budget_bytes: u64,
    /// Pools that exist.
    pub pools: u64,
    /// Puts that were accepted.
    pub puts: u64,
    /// Those among them that replaced a page.
    pub replaced: u64,
    /// Puts that were refused for lack of room.
    pub refusals: u64,
    /// Gets.
    pub gets: u64,
    /// Gets that found their page.
    pub hits: u64,
    /// Pages that flushes took away.
    pub flushed: u64,
    /// Ephemeral pages that were dropped for room.
    pub evictions: u64,
    /// Zpages that were moved to close holes.
    pub moves: u64,
    /// Bytes that those moves copied.
    pub moved_bytes: u64,
    /// Pages that were found damaged.
    pub corrupt: u64,
}

/// Figures of one pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Pages that gets would find.
    pub pages: u64,
    /// Payload bytes of the pages that this pool put; those it shares with others since a clone count for none.
    pub compressed_bytes: u64,
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Put {
    /// Bytes the page takes in packed form; nothing for a same-filled page.
    pub stored_bytes: u32,
    /// The key held a page before.
    pub replaced: bool,
}

/// What a step of background work did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintenance {
    /// Zpages that were moved.
    pub moved: u64,
    /// Bytes that were given back to the system.
    pub returned_bytes: u64,
    /// There is more to do: call again soon.
    pub more: bool,
}
