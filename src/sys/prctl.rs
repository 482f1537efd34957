//! What prctl(2) sets for a process. The parent-death signal belongs to the calling thread's
//! process, follows the parent *thread*, and is cleared in the child of a fork.

use libc::{c_int, c_ulong};
use nix::errno::Errno;

/// The signal that the kernel sends to this process when the thread that made it ends; 0 for none.
pub fn get_pdeathsig() -> nix::Result<c_int> {
    let mut signal: c_int = 0;
    // SAFETY: PR_GET_PDEATHSIG writes one int through its second argument, which outlives the call.
    Errno::result(unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) })?;
    Ok(signal)
}

/// Sets it; any signal number, real-time ones included, or 0. `EINVAL` for other numbers.
pub fn set_pdeathsig(signal: c_int) -> nix::Result<()> {
    // The kernel reads an unsigned long: a negative number becomes a huge one and is refused.
    // SAFETY: PR_SET_PDEATHSIG takes a number and touches no memory.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as c_ulong) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_no_signal_is_refused() {
        assert_eq!(set_pdeathsig(65), Err(Errno::EINVAL));
        assert_eq!(set_pdeathsig(-1), Err(Errno::EINVAL));
    }

    #[test]
    fn what_was_set_is_read_back() {
        let before = get_pdeathsig().unwrap();
        set_pdeathsig(libc::SIGUSR1).unwrap();
        assert_eq!(get_pdeathsig(), Ok(libc::SIGUSR1));
        set_pdeathsig(before).unwrap();
    }
}
