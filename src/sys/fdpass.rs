//! Passing descriptors over Unix sockets (`SCM_RIGHTS`).

use std::io::IoSlice;
use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

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

/// Room for the header of a control message and [`MAX_FDS`] descriptors, aligned for both.
const CONTROL_WORDS: usize = (MAX_FDS * size_of::<RawFd>() + 64) / size_of::<u64>();

/// Receives up to `payload.len()` bytes and the descriptors that came with them, close-on-exec.
///
/// Zero bytes and no descriptors: the peer has hung up. `EMFILE` if this process could not take all
/// descriptors that came: the others are lost, and those that it took are closed.
pub fn recv_fds(socket: RawFd, payload: &mut [u8]) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: an all-zero msghdr is valid: no address, no data, no control messages.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header's pointers lead to writable memory of the lengths given.
    let n = unsafe { libc::recvmsg(socket, &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let n = Errno::result(n)? as usize;
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled in well-formed control messages, which the macros walk; the
    // descriptors in them were installed for us alone. (nix would not show them if it had to cut
    // the message short, and they would stay open.)
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS
            {
                let bytes = (*message).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                for i in 0..bytes / size_of::<RawFd>() {
                    fds.push(from_raw(data.add(i).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Errno::EMFILE);
    }
    Ok((n, fds))
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
