//! Waiting until descriptors can be read.

use std::os::fd::RawFd;
use std::time::Duration;

use nix::errno::Errno;

/// What became of one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Quiet,
    /// There is something to read, or the end of the file, or an error that a read would tell.
    Ready,
    /// Not an open descriptor.
    Invalid,
}

/// A set of descriptors to watch for input. Process-local.
#[derive(Debug)]
pub struct PollSet(Vec<libc::pollfd>);

impl PollSet {
    pub fn new(fds: impl IntoIterator<Item = RawFd>) -> Self {
        Self(
            fds.into_iter()
                .map(|fd| libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                })
                .collect(),
        )
    }

    /// Waits until one descriptor is not quiet or `timeout` has passed (`None`: for ever); returns
    /// how many are not. `EINTR` when a signal came first.
    pub fn wait(&mut self, timeout: Option<Duration>) -> nix::Result<usize> {
        wait(&mut self.0, timeout)
    }

    /// Each descriptor with what the last wait found, in the order given.
    pub fn results(&self) -> impl Iterator<Item = (RawFd, Readiness)> + '_ {
        self.0.iter().map(|entry| (entry.fd, readiness(entry)))
    }
}

/// [`PollSet::wait`] for a single descriptor, without an allocation.
pub fn poll_one(fd: RawFd, timeout: Option<Duration>) -> nix::Result<Readiness> {
    let mut entry = [libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }];
    wait(&mut entry, timeout)?;
    Ok(readiness(&entry[0]))
}

fn readiness(entry: &libc::pollfd) -> Readiness {
    match entry.revents {
        0 => Readiness::Quiet,
        bits if bits & libc::POLLNVAL != 0 => Readiness::Invalid,
        _ => Readiness::Ready,
    }
}

fn wait(entries: &mut [libc::pollfd], timeout: Option<Duration>) -> nix::Result<usize> {
    let spec = timeout.map(|left| libc::timespec {
        tv_sec: left.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: left.subsec_nanos() as _,
    });
    let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the entries are valid for their number, the time is null or valid, no signal mask.
    let n = unsafe {
        libc::ppoll(
            entries.as_mut_ptr(),
            entries.len() as libc::nfds_t,
            spec,
            std::ptr::null(),
        )
    };
    Errno::result(n).map(|n| n as usize)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::io::{Source, pipe, write2};

    #[test]
    fn tells_quiet_ready_and_invalid_apart() {
        let (reader, writer) = pipe((false, false)).unwrap();
        let fd = reader.as_raw_fd();
        assert_eq!(poll_one(fd, Some(Duration::ZERO)), Ok(Readiness::Quiet));
        write2(
            writer.as_raw_fd(),
            Source::from(&b"x"[..]),
            Source::from(&b""[..]),
        )
        .unwrap();
        let mut set = PollSet::new([fd, 1_000_000]);
        assert_eq!(set.wait(None), Ok(2));
        let found: Vec<_> = set.results().collect();
        assert_eq!(
            found,
            [(fd, Readiness::Ready), (1_000_000, Readiness::Invalid)]
        );
    }

    #[test]
    fn a_closed_peer_is_something_to_read() {
        let (reader, writer) = pipe((false, false)).unwrap();
        drop(writer);
        assert_eq!(poll_one(reader.as_raw_fd(), None), Ok(Readiness::Ready));
    }
}
