//! A process whose end, however it comes, matters to nobody.

use std::time::Duration;

/// Ends with the thread that started it, leaves no core dump, has nothing open but the standard streams, and is ended by a signal
/// after `at_most`.
pub(crate) fn expendable_process(at_most: Duration) {
    let seconds = libc::c_uint::try_from(at_most.as_secs()).unwrap_or(libc::c_uint::MAX);
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain calls; the limit lives through its own. What fails leaves things as they are.
    unsafe {
        #[cfg(target_os = "linux")]
        {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // A dump that goes to a pipe knows no limit of size, and memory has passwords in it.
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
            // librdkafka opens pipes that a process started meanwhile inherits.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        }
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::alarm(seconds);
    }
}

/// Ends the process at once: nothing is dropped, no handler runs.
pub(crate) fn end_process(status: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(status) }
}
