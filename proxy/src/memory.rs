//! Memory that only starting needed, and memory that a burst of requests needed.
//!
//! Starting runs far more code than serving: arguments, documents, certificates, namespaces. The
//! kernel maps it in pieces of 64 KiB and keeps it mapped. A sidecar stands beside every workload,
//! so once it is ready it lets go of what it has not written to; what is still used comes back from
//! the page cache with the next call.
//!
//! What is freed stays with the allocator, as holes between what is still used: after a burst that can
//! be many times of what a sidecar needs. It is given back once much of it is free, or the burst is over.

#![expect(
    unsafe_code,
    reason = "madvise, mallinfo2, malloc_trim and clock_gettime have no safe wrappers"
)]

mod trimming;

use std::io;
use std::time::Duration;

pub use trimming::Trimming;
use trimming::Usage;

/// From readiness until what starting needed is let go: first connections use much of the rest.
pub const RELEASE_AFTER: Duration = Duration::from_secs(1);

/// How often it is looked whether memory that was freed is to be given back.
pub const TRIM_EVERY: Duration = Duration::from_secs(15);

/// Gives memory that was freed back to the system, where `trimming` says so; `open` connections are
/// open, and [`TRIM_EVERY`] has passed since the last time. How many bytes the process holds less.
pub fn release_freed(trimming: &mut Trimming, open: usize) -> Option<u64> {
    let before = usage(open)?;
    if !trimming.is_due(before, TRIM_EVERY) {
        return None;
    }
    trim();
    let after = usage(open)?;
    trimming.on_trimmed(after);
    Some(before.resident.saturating_sub(after.resident))
}

/// `None` where the kernel or the allocator does not say.
fn usage(open: usize) -> Option<Usage> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(Usage {
        resident: anonymous(&status)?,
        used: used()?,
        processor: processor()?,
        open,
    })
}

/// Resident memory that is of no file, in bytes, from proc_pid_status(5).
fn anonymous(status: &str) -> Option<u64> {
    let mut lines = status.lines();
    let found = lines.find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = found.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Processor time of all threads.
fn processor() -> Option<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes to that place, which is a valid one, and to nothing else.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanoseconds = u32::try_from(time.tv_nsec).ok()?;
    (done == 0).then(|| Duration::new(seconds, nanoseconds))
}

/// What was allocated and not freed.
#[cfg(target_env = "gnu")]
fn used() -> Option<u64> {
    // SAFETY: it has no arguments, takes the allocator's own locks and returns numbers.
    let info = unsafe { libc::mallinfo2() };
    u64::try_from(info.uordblks + info.hblkhd).ok()
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it takes the allocator's own locks, and touches only what is free.
    let _whether_any = unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
fn used() -> Option<u64> {
    None
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

/// A mapping of a file that this process cannot write to and has no copy of.
#[derive(Debug, PartialEq, Eq)]
struct Clean {
    start: usize,
    length: usize,
}

/// Unmaps pages of the program and its libraries until they are used again. How many KiB they were.
///
/// # Errors
///
/// When the kernel does not say what is mapped.
pub fn release_startup_pages() -> io::Result<u64> {
    let (mappings, resident) = clean_mappings(&std::fs::read_to_string("/proc/self/smaps")?);
    for Clean { start, length } in mappings {
        let address = std::ptr::with_exposed_provenance_mut::<libc::c_void>(start);
        // SAFETY: the mapping is of a file, cannot be written to and has no page of its own, as the
        // kernel has just said, so what is read there next is what was there before.
        let done = unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(resident)
}

/// The clean mappings of a process, from its smaps (proc_pid_smaps(5)), and what of them is
/// resident in KiB. Relocated data looks like them, but has pages of its own ("Anonymous").
fn clean_mappings(smaps: &str) -> (Vec<Clean>, u64) {
    let mut found = Vec::new();
    let mut resident = 0;
    let mut current: Option<(Clean, u64)> = None;
    for line in smaps.lines() {
        if let Some(mapping) = header(line) {
            current = mapping.map(|mapping| (mapping, 0));
            continue;
        }
        let Some((field, value)) = line.split_once(':') else {
            continue;
        };
        let kib = value.trim().strip_suffix(" kB");
        let kib = kib.and_then(|number| number.parse::<u64>().ok());
        match (field, kib) {
            ("Rss", Some(kib)) => {
                if let Some((_, size)) = &mut current {
                    *size = kib;
                }
            }
            // "Private_Dirty" is no sign of it: a file that was written a moment ago is dirty too.
            ("Anonymous" | "Swap", Some(kib)) if kib > 0 => {
                current = None;
            }
            // The last field of a mapping.
            ("VmFlags", _) => {
                if let Some((mapping, size)) = current.take() {
                    found.push(mapping);
                    resident += size;
                }
            }
            _ => {}
        }
    }
    (found, resident)
}

/// Whether a line begins a mapping, and which, where it is a file's that cannot be written to.
fn header(line: &str) -> Option<Option<Clean>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let permissions = words.next()?;
    let path = words.nth(3);
    let file = path.is_some_and(|path| path.starts_with('/'));
    let private_and_read_only = matches!(permissions, "r-xp" | "r--p");
    let length = end.checked_sub(start)?;
    Some((file && private_and_read_only).then_some(Clean { start, length }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_without_pages_of_our_own_are_let_go() {
        let mapping = |header: &str, rss: u64, anonymous: u64| {
            format!(
                "{header}\nSize: 8 kB\nRss: {rss} kB\nPrivate_Dirty: {anonymous} kB\n\
                 Anonymous: {anonymous} kB\nVmFlags: rd ex mr mw me\n"
            )
        };
        let smaps = [
            mapping("1000-3000 r-xp 0001000 fe:00 5 /usr/bin/weft", 8, 0),
            mapping("3000-5000 r--p 0003000 fe:00 5 /usr/bin/weft", 8, 4),
            mapping("5000-7000 rw-p 0005000 fe:00 5 /usr/bin/weft", 4, 0),
            mapping("7000-9000 rw-p 0000000 00:00 0 [heap]", 8, 8),
            mapping("9000-b000 r--s 0000000 00:00 9 /memfd:x", 8, 0),
            mapping("b000-f000 r--p 0000000 fe:00 6 /usr/lib/libc.so.6", 4, 0),
            mapping("f000-ff00 r-xp 0000000 00:00 0 [vdso]", 4, 0),
        ];
        let expected = [(0x1000, 0x2000), (0xb000, 0x4000)];
        let expected = expected.map(|(start, length)| Clean { start, length });
        assert_eq!(clean_mappings(&smaps.concat()), (expected.into(), 12));
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn what_was_freed_is_given_back() {
        let many: Vec<Vec<u8>> = (0..40_000).map(|_| vec![1; 1000]).collect();
        let mut trimming = Trimming::default();
        // What other tests of this process hold stays out of it.
        trimming.on_trimmed(usage(0).expect("it is known"));
        // Between what is free stays something that is used.
        let kept: Vec<_> = many.into_iter().step_by(100).collect();
        let released = release_freed(&mut trimming, 0).expect("40 MB were freed");
        assert!(released > 20 << 20, "{released}");
        assert_eq!(kept.len(), 400);
    }

    #[test]
    fn the_kernel_tells_what_is_resident() {
        let status = "Name:\tweft\nVmRSS:\t   12000 kB\nRssAnon:\t    4096 kB\nRssFile:\t 1 kB\n";
        assert_eq!(anonymous(status), Some(4 << 20));
        assert_eq!(anonymous("Name:\tweft\n"), None);
    }

    #[test]
    fn what_is_let_go_comes_back() {
        let table: &'static str = include_str!("memory.rs");
        let before = table.len() + table.bytes().filter(|byte| *byte == b'\n').count();
        assert!(release_startup_pages().expect("smaps is there") > 0);
        let after = table.len() + table.bytes().filter(|byte| *byte == b'\n').count();
        assert_eq!(before, after);
    }
}
