//! Reading and writing addresses in program contexts: the verifier wants them word by word, in their own width.

use ambit_ebpf_common::Addr;

/// Reads four words in network byte order.
///
/// # Safety
///
/// `words` must point into a context that is valid for the program's run.
#[inline(always)]
pub unsafe fn read_v6(words: *const [u32; 4]) -> Addr {
    let words = words.cast::<u32>();
    // SAFETY: the caller's word; transmuted are 16 bytes of integers.
    unsafe {
        core::mem::transmute::<[u32; 4], Addr>([
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ])
    }
}

/// Writes four words in network byte order.
///
/// # Safety
///
/// As for [`read_v6`].
#[inline(always)]
pub unsafe fn write_v6(words: *mut [u32; 4], addr: &Addr) {
    let words = words.cast::<u32>();
    // SAFETY: the caller's word; transmuted are 16 bytes of integers.
    unsafe {
        let values = core::mem::transmute::<Addr, [u32; 4]>(*addr);
        words.write_volatile(values[0]);
        words.add(1).write_volatile(values[1]);
        words.add(2).write_volatile(values[2]);
        words.add(3).write_volatile(values[3]);
    }
}
