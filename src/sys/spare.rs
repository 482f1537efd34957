//! Handing a process's descriptors to an interpreter that has been waiting for them.
//!
//! The descriptors get the numbers there that they have here, because what is pickled for a new
//! interpreter names them by number.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::fdpass::{MAX_FDS, recv_fds, send_fds};
use super::io::from_raw;

/// Sends `message` and `fds` over the packet socket `spare`. `EPIPE` if nobody waits there.
pub fn hand_over(spare: RawFd, message: RawFd, fds: &[RawFd]) -> nix::Result<()> {
    let mut all = vec![message];
    all.extend(fds);
    let numbers: Vec<u8> = all.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
    send_fds(spare, &numbers, &all).map(drop)
}

/// Waits for what [`hand_over`] sends: returns the message; the other descriptors are in their
/// places. `None` if nobody will ever send anything. Closes `socket` before the places are taken,
/// whose own number may be one of them.
pub fn wait_for(socket: RawFd) -> nix::Result<Option<OwnedFd>> {
    let mut bytes = [0; MAX_FDS * size_of::<RawFd>()];
    let (n, fds) = recv_fds(socket, &mut bytes)?;
    let _ = nix::unistd::close(socket);
    let numbers: Vec<RawFd> = bytes[..n]
        .chunks_exact(size_of::<RawFd>())
        .map(|chunk| RawFd::from_ne_bytes(chunk.try_into().expect("chunks of this size")))
        .collect();
    if fds.is_empty() || fds.len() != numbers.len() {
        return Ok(None);
    }
    place(fds, &numbers).map(Some)
}

/// Gives all but the first descriptor the number at its position; returns the first.
fn place(fds: Vec<OwnedFd>, numbers: &[RawFd]) -> nix::Result<OwnedFd> {
    // First out of each other's way: above all numbers that are wanted.
    let free = numbers.iter().max().map_or(3, |highest| highest + 1).max(3);
    let mut moved = Vec::with_capacity(fds.len());
    for fd in fds {
        let copy = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(free))?;
        // SAFETY: the kernel has just made this descriptor for us alone.
        moved.push(unsafe { from_raw(copy) });
    }
    for (fd, number) in moved.iter().zip(numbers).skip(1) {
        // SAFETY: a number that is wanted belongs to the message, not to anything in this process.
        Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), *number, libc::O_CLOEXEC) })?;
    }
    Ok(moved.swap_remove(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::io::{identity, pipe, stream_pair};
    use crate::sys::process::{block_until_dead, fork, reap};
    use crate::sys::template::packet_pair;

    fn swapped() -> nix::Result<bool> {
        let (a, b) = pipe((false, false))?;
        let (c, _) = stream_pair((false, false))?;
        let (first, second) = (a.as_raw_fd(), b.as_raw_fd());
        let was = (
            identity(first)?,
            identity(second)?,
            identity(c.as_raw_fd())?,
        );
        let numbers = [c.as_raw_fd(), second, first];
        let kept = place(vec![c, a, b], &numbers)?;
        let is = (
            identity(second)?,
            identity(first)?,
            identity(kept.as_raw_fd())?,
        );
        Ok(is == was)
    }

    #[test]
    fn descriptors_change_places() {
        // In a process of its own: other tests' threads open descriptors meanwhile.
        match fork().unwrap() {
            0 => {
                let status = if swapped() == Ok(true) { 0 } else { 1 };
                // SAFETY: leaves at once.
                unsafe { libc::_exit(status) }
            }
            pid => {
                block_until_dead(pid).unwrap();
                assert_eq!(reap(pid, None), Ok(Some(0)));
            }
        }
    }

    #[test]
    fn nobody_sends_anything() {
        let (ours, its) = packet_pair().unwrap();
        drop(ours);
        assert!(
            wait_for(std::os::fd::IntoRawFd::into_raw_fd(its))
                .unwrap()
                .is_none()
        );
    }
}
