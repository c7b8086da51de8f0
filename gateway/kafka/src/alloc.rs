//! How glibc's allocator is told to give memory back. In this crate because only it may say `unsafe`.
//!
//! By default glibc keeps an arena for each thread, and raises its own thresholds to 32 MiB once a large block was freed:
//! after a backlog of a million small records the process kept 80 MiB that nobody used. With these settings and [`trim`]
//! now and then it keeps less than 32 MiB (measured with a stuck head and a million records acked behind it).
//!
//! What librdkafka fetches comes in blocks of up to `max.partition.fetch.bytes` (1 MiB). Mapped alone, or given back at
//! once, each is faulted in anew page by page: with 128 and 256 KiB as limits a record cost a tenth more CPU at 128 bytes
//! and a fifth more at 1 KiB. Above 4 MiB nothing more was gained.
#![expect(unsafe_code, reason = "mallopt and malloc_trim are C functions")]

/// Above this a block is mapped alone, and what is free at the end of an arena is given back.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES_MAX: libc::c_int = 4 << 20;

/// Sets the allocator's limits. Call once, before the process does much.
pub fn tune() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two integers and only changes the allocator's own settings, under its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES_MAX);
    }
}

/// Gives free pages back to the system. Milliseconds at most; not for a hot path.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes an integer and touches only free memory, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
