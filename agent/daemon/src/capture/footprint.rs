//! What this process keeps in memory without need: free heap, and code that only its start has run.
//!
//! It stands here because it takes calls of the C library that no safe wrapper has. Costs a moment each time; when it is
//! worth that, others decide.

use std::{fs, io};

use nix::libc;

/// Gives free memory back to the kernel, wherever in the heap it lies. Others wait meanwhile if they need a heap: a
/// millisecond for every ten megabytes or so.
pub(crate) fn give_back_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes the program's code and constants out of this process's memory; what is used comes back page by page, from the kernel's
/// cache of the file, and what only the start needed does not.
pub(crate) fn let_go_of_code() -> io::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    for (start, len) in code(&maps, program.to_str().unwrap_or_default()) {
        // SAFETY: the range is a private mapping of the program's file that can only be read, or read and run, and that the
        // loader has not written either: what is dropped of it is read again from the file, which the kernel lets nobody write
        // while it runs.
        if unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Start and length of the mappings of `program` that are as the file has them, as /proc/PID/maps tells (proc_pid_maps(5)): code, and
/// the constants at the file's beginning. Others that can only be read hold addresses that the loader has put in.
fn code<'a>(maps: &'a str, program: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    maps.lines().filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, flags, offset) = (fields.next()?, fields.next()?, fields.next()?);
        let path = fields.nth(2)?;
        let untouched = flags == "r-xp" || (flags == "r--p" && offset.bytes().all(|digit| digit == b'0'));
        if !untouched || path != program || fields.next().is_some() {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let (start, end) = (address(start)?, address(end)?);
        Some((start, end.checked_sub(start)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_program_has_not_written_is_let_go() {
        let maps = "\
7000-8000 r--p 00000000 fe:00 12 /usr/bin/ambit
8000-a000 r-xp 00001000 fe:00 12 /usr/bin/ambit
9f00-a000 r--p 00002000 fe:00 12 /usr/bin/ambit
a000-b000 rw-p 00003000 fe:00 12 /usr/bin/ambit
b000-c000 r-xp 00001000 fe:00 13 /usr/lib/libc.so.6
c000-d000 r-xp 00000000 00:00 0 
d000-e000 r-xp 00000000 00:00 0 [vdso]
e000-f000 r-xp 00001000 fe:00 12 /usr/bin/ambit (deleted)
";
        assert_eq!(code(maps, "/usr/bin/ambit").collect::<Vec<_>>(), [(0x7000, 0x1000), (0x8000, 0x2000)]);
    }

    #[test]
    fn the_process_goes_on_without_what_it_does_not_need() {
        let kept: Vec<Box<[u8]>> = (0..1000).map(|n| vec![n as u8; 5000].into_boxed_slice()).collect();
        let held: Vec<Box<[u8]>> = kept.iter().step_by(2).cloned().collect();
        drop(kept);
        give_back_heap();
        let_go_of_code().unwrap();
        assert!(
            held.iter().zip((0..1000).step_by(2)).all(|(bytes, n)| bytes.iter().all(|byte| *byte == n as u8))
        );
    }
}
