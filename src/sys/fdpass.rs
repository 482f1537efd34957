//! Passing descriptors over Unix sockets (`SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::io::from_raw;

/// The most descriptors that the kernel takes in one message (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// Sends `fds` with `payload`, which must not be empty: descriptors travel with a byte.
pub fn send_fds(socket: RawFd, payload: &[u8], fds: &[RawFd]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    sendmsg::<UnixAddr>(
        socket,
        &[IoSlice::new(payload)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
}

/// Receives up to `payload.len()` bytes and the descriptors that came with them, close-on-exec.
///
/// Zero bytes and no descriptors: the peer has hung up. `EMFILE` if this process could not take all
/// descriptors that came: the others are lost, and those that it took are closed.
pub fn recv_fds(socket: RawFd, payload: &mut [u8]) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(payload)];
    let message = recvmsg::<UnixAddr>(
        socket,
        &mut iov,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these descriptors for us alone.
            fds.extend(raw.into_iter().map(|fd| unsafe { from_raw(fd) }));
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(Errno::EMFILE);
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::io::{Source, Target, pipe, read, stream_pair, write2};

    #[test]
    fn descriptors_arrive_with_their_bytes() {
        let (a, b) = stream_pair((false, false)).unwrap();
        let (reader, writer) = pipe((false, false)).unwrap();
        let raw = [reader.as_raw_fd(), writer.as_raw_fd()];
        assert_eq!(send_fds(a.as_raw_fd(), b"go", &raw), Ok(2));
        let mut payload = [0u8; 8];
        let (n, fds) = recv_fds(b.as_raw_fd(), &mut payload).unwrap();
        assert_eq!((&payload[..n], fds.len()), (&b"go"[..], 2));
        drop((reader, writer));
        write2(
            fds[1].as_raw_fd(),
            Source::from(&b"x"[..]),
            Source::from(&b""[..]),
        )
        .unwrap();
        let mut room = [0u8; 4];
        assert_eq!(
            read(fds[0].as_raw_fd(), &Target::from(&mut room[..])),
            Ok(1)
        );
    }

    #[test]
    fn a_peer_that_hung_up_sends_nothing() {
        let (a, b) = stream_pair((false, false)).unwrap();
        drop(a);
        let (n, fds) = recv_fds(b.as_raw_fd(), &mut [0u8; 8]).unwrap();
        assert_eq!((n, fds.len()), (0, 0));
    }
}
