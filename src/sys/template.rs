//! The fork server's two sides: the template that forks, and those who ask it to.
//!
//! ```text
//!  client A ─┐  one packet per request:                    template ──fork──► child
//!  client B ─┼─► [reply end, descriptors for the child] ──►    │                │
//!            │                                                 │                │
//!            └◄── reply socket of this request ◄── exit code ──┘                │
//!                          ▲ ▲ pid, or -errno ─┘ (if the fork fails)            │
//!                          └────────────── pid, pidfd ──────────────────────────┘
//! ```
//!
//! All clients hold copies of one end of a socket pair; when the last is closed the template is
//! done. It is the child that reports that it lives: if no report comes there is no child, and the
//! request may safely be made again of another template.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::fdpass::{recv_fds, send_fds};
use super::io::from_raw;
use super::pidfd;
use super::poll::{PollSet, Readiness};
use super::process::{ExitCode, Sentinel, Started, reap_any};

/// Two connected sockets that keep messages, and the descriptors with them, apart.
pub fn packet_pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

/// Sends a number over a reply socket; nobody minds if the client has gone.
fn reply(socket: RawFd, number: i64, fds: &[RawFd]) {
    while send_fds(socket, &number.to_ne_bytes(), fds) == Err(Errno::EINTR) {}
}

/// A reply as the client reads it: the number and the descriptor that came with it; `ECONNRESET`
/// if there will never be one.
fn read_reply(socket: RawFd) -> nix::Result<(i64, Option<OwnedFd>)> {
    let mut bytes = [0; 8];
    match recv_fds(socket, &mut bytes)? {
        (8, mut fds) => Ok((i64::from_ne_bytes(bytes), fds.pop())),
        _ => Err(Errno::ECONNRESET),
    }
}

/// The template's state. Process-local; the forked child takes it apart (`become_child`).
#[derive(Debug)]
pub struct Template {
    /// Open for as long as the template is one.
    requests: RawFd,
    deaths: SignalFd,
    mask: SigSet,
    /// The reply sockets of living children.
    children: HashMap<libc::pid_t, OwnedFd>,
}

/// What a client wants forked.
#[derive(Debug)]
pub struct Request {
    reply: OwnedFd,
    /// For the child.
    pub fds: Vec<OwnedFd>,
}

impl Template {
    /// Serves the requests that come over `requests`. Blocks SIGCHLD from here on.
    pub fn new(requests: RawFd) -> nix::Result<Self> {
        let mut chld = SigSet::empty();
        chld.add(Signal::SIGCHLD);
        let deaths = SignalFd::with_flags(&chld, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let mask = chld.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self {
            requests,
            deaths,
            mask,
            children: HashMap::new(),
        })
    }

    /// Waits for the next request, and reports the deaths of children meanwhile. `None` when all
    /// clients have gone.
    pub fn next_request(&mut self) -> nix::Result<Option<Request>> {
        loop {
            let (requests, deaths) = (self.requests, self.deaths.as_raw_fd());
            let mut set = PollSet::new([requests, deaths]);
            set.wait(None)?;
            let ready: Vec<RawFd> = set
                .results()
                .filter(|(_, readiness)| *readiness == Readiness::Ready)
                .map(|(fd, _)| fd)
                .collect();
            if ready.contains(&deaths) {
                self.bury();
            }
            if ready.contains(&requests) {
                match recv_fds(requests, &mut [0; 8]) {
                    Ok((0, _)) => return Ok(None),
                    Ok((_, mut fds)) if !fds.is_empty() => {
                        let reply = fds.remove(0);
                        return Ok(Some(Request { reply, fds }));
                    }
                    // A message that is no request, or one that we had no descriptors left for:
                    // its reply socket is closed by now, which tells the client.
                    Ok(_) | Err(Errno::EMFILE) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
    }

    fn bury(&mut self) {
        while let Ok(Some(_)) = self.deaths.read_signal() {}
        while let Ok(Some((pid, code))) = reap_any() {
            if let Some(socket) = self.children.remove(&pid) {
                reply(socket.as_raw_fd(), i64::from(code), &[]);
            }
        }
    }

    /// In the template: `pid` was forked for `request`.
    pub fn forked(&mut self, request: Request, pid: libc::pid_t) {
        self.children.insert(pid, request.reply);
    }

    /// In the template: there could be no child.
    pub fn failed(request: &Request, errno: Errno) {
        reply(request.reply.as_raw_fd(), -i64::from(errno as i32), &[]);
    }

    /// In the child: lets go of what is the template's, and reports to the client.
    pub fn become_child(self, request: Request) -> nix::Result<Vec<OwnedFd>> {
        let Self {
            requests,
            deaths,
            mask,
            children,
        } = self;
        drop((deaths, children));
        let _ = nix::unistd::close(requests);
        mask.thread_set_mask()?;
        let pid = i64::from(std::process::id());
        let socket = request.reply.as_raw_fd();
        if pidfd::supported() {
            let own = pidfd::open(pid as libc::pid_t)?;
            reply(socket, pid, &[own.as_raw_fd()]);
        } else {
            reply(socket, pid, &[]);
            // Open until the process ends: with the template's copy it is the client's sentinel.
            std::mem::forget(request.reply);
        }
        Ok(request.fds)
    }
}

/// Asks for a fork: sends `fds` for the child; returns the socket that the replies come over.
///
/// `EPIPE`, `ECONNRESET` or `ENOTCONN` if the template has died.
pub fn request(template: RawFd, fds: &[RawFd]) -> nix::Result<OwnedFd> {
    let (ours, theirs) = packet_pair()?;
    let mut all = vec![theirs.as_raw_fd()];
    all.extend(fds);
    send_fds(template, b"fork", &all)?;
    Ok(ours)
}

/// The child that was asked for with [`request`], as soon as it reports. `ECONNRESET` if the
/// template died before it could fork; the error of the fork, if that failed.
pub fn forked_child(reply: &OwnedFd) -> nix::Result<Started> {
    let (number, pidfd) = read_reply(reply.as_raw_fd())?;
    if number < 0 {
        return Err(Errno::from_raw(-number as i32));
    }
    let sentinel = match pidfd {
        Some(fd) => Sentinel::Pidfd(fd),
        None => {
            let copy = fcntl(reply, FcntlArg::F_DUPFD_CLOEXEC(3))?;
            // SAFETY: the kernel has just made this descriptor for us alone.
            Sentinel::Pipe(unsafe { from_raw(copy) })
        }
    };
    let pid = number as libc::pid_t;
    Ok(Started { pid, sentinel })
}

/// The exit code that the template has reported over `reply`; `None` if there is no report yet.
/// `ECONNRESET` if there will be none, because the template died first.
pub fn reported_exit_code(reply: RawFd) -> nix::Result<Option<ExitCode>> {
    let mut set = PollSet::new([reply]);
    if set.wait(Some(Duration::ZERO))? == 0 {
        return Ok(None);
    }
    read_reply(reply).map(|(code, _)| Some(code as ExitCode))
}
