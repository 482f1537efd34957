//! Starting another program with exactly the descriptors that it is given.
//!
//! The child borrows this process's memory until it has called `exec` (`CLONE_VM | CLONE_VFORK`,
//! as `posix_spawn` does it), so a parent of many gigabytes starts one as fast as a small parent.
//! Everything that needs memory is prepared before; the child makes system calls and nothing else.
//!
//! `posix_spawn` itself will not do: it has no way to keep descriptors back that somebody made
//! without close-on-exec, and no `CLONE_PIDFD`.

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::uio::pwrite;

use super::io::pipe;
use super::pidfd;
use super::process::{Sentinel, Started, abandon, sentinel_of};

/// The child runs a few system calls on this, with all signals blocked.
const STACK_BYTES: usize = 64 * 1024;

/// A program to start.
#[derive(Debug)]
pub struct Program {
    pub path: CString,
    /// Never empty.
    pub argv: Vec<CString>,
    /// Descriptors that the program gets, under the same numbers, beside 0, 1 and 2.
    pub fds: Vec<RawFd>,
    /// The signal mask to start with; `None`: that of the thread that starts it.
    pub mask: Option<SigSet>,
}

/// What the child reads, and where it leaves its error. Lives in the parent's stack frame, which
/// does not move on before the child is done with it.
struct Message<'a> {
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    fds: &'a [RawFd],
    mask: libc::sigset_t,
    error: AtomicI32,
}

/// The environment as it is now, in the form that `exec` takes.
fn environment() -> Vec<CString> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            CString::new(entry).ok()
        })
        .collect()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Starts `program`. An error of `exec` (`ENOENT`, `EACCES`, `E2BIG`, ...) is returned here, and
/// nothing is left behind then.
///
/// Handlers of signals do not survive, ignored signals stay ignored, but for the two that the interpreter ignores for itself (SIGPIPE, SIGXFSZ).
pub fn spawn(mut program: Program) -> nix::Result<Started> {
    // Without pidfds: a pipe whose other end only the child has.
    let witness = if pidfd::supported() {
        None
    } else {
        Some(pipe((false, false))?)
    };
    program
        .fds
        .extend(witness.as_ref().map(|(_, writer)| writer.as_raw_fd()));
    let (pid, pidfd) = start(&program, witness.is_none())?;
    let sentinel = match (pidfd, witness) {
        (Some(fd), _) => Sentinel::Pidfd(fd),
        (None, Some((reader, _))) => Sentinel::Pipe(reader),
        (None, None) => sentinel_of(pid).inspect_err(|_| abandon(pid))?,
    };
    Ok(Started { pid, sentinel })
}

/// Starts `program` in a thread of its own, which ends with that: where the machine is busy, this
/// process would have to wait until the child gets a processor. `kept` are descriptors of the
/// child's that are closed here then.
///
/// The thread gets no signals: a handler would not interrupt what it is meant to interrupt.
pub fn spawn_aside(
    mut program: Program,
    kept: Vec<OwnedFd>,
) -> std::io::Result<JoinHandle<nix::Result<Started>>> {
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    program.mask.get_or_insert(mask);
    let thread = std::thread::Builder::new().spawn(move || {
        let started = spawn(program);
        drop(kept);
        started
    });
    let _ = mask.thread_set_mask();
    thread
}

fn start(program: &Program, with_pidfd: bool) -> nix::Result<(libc::pid_t, Option<OwnedFd>)> {
    let environment = environment();
    let (argv, envp) = (pointers(&program.argv), pointers(&environment));
    let mut stack = vec![0u128; STACK_BYTES / size_of::<u128>()];
    // No handler of ours may run in the child while it uses our memory.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let message = Message {
        path: program.path.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        fds: &program.fds,
        mask: *program.mask.as_ref().unwrap_or(&mask).as_ref(),
        error: AtomicI32::new(0),
    };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let mut fd: c_int = -1;
    // SAFETY: the stack is writable, aligned, grows down from its end and is not used by anybody
    // else; CLONE_VFORK suspends this thread until the child has called exec or _exit, so message,
    // stack and argument blocks outlive the child's use of them; `child` obeys its contract.
    let cloned = Errno::result(unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr_range().end.cast::<c_void>(),
            if with_pidfd {
                flags | libc::CLONE_PIDFD
            } else {
                flags
            },
            (&raw const message).cast_mut().cast::<c_void>(),
            &raw mut fd,
        )
    });
    let _ = mask.thread_set_mask();
    let pid = cloned?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    let pidfd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
    match message.error.load(Ordering::Relaxed) {
        0 => Ok((pid, pidfd)),
        errno => {
            abandon(pid);
            Err(Errno::from_raw(errno))
        }
    }
}

/// Runs in the child, on its own stack and in its parent's memory: system calls only, no
/// allocation, no panic, no destructor, no return.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a message that stays in place until this process has gone its way.
    let message = unsafe { &*argument.cast::<Message<'_>>() };
    let errno = prepare(message).and_then(|()| {
        // SAFETY: path, argv and envp are terminated and alive (see `spawn`).
        unsafe { libc::execve(message.path, message.argv, message.envp) };
        Err(Errno::last())
    });
    message
        .error
        .store(errno.map_or_else(|e| e as i32, |()| 0), Ordering::Relaxed);
    // SAFETY: leaves without running anything of the parent's.
    unsafe { libc::_exit(127) }
}

fn prepare(message: &Message<'_>) -> nix::Result<()> {
    reset_signals();
    // What others made without close-on-exec stays here as well. Where the kernel cannot do this
    // (before 5.11) only our own habit of never making such descriptors keeps the child clean.
    // SAFETY: changes flags in this process's own descriptor table (no CLONE_FILES).
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
    for fd in message.fds {
        // SAFETY: as above; an fd that is not open gives EBADF.
        Errno::result(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
    }
    // SAFETY: the mask is a valid signal set.
    let done = unsafe {
        libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const message.mask,
            std::ptr::null_mut(),
        )
    };
    Errno::result(done).map(drop)
}

/// Default actions for whatever has a handler, before signals are let in again: a handler of the
/// parent would run in the parent's memory.
fn reset_signals() {
    // SAFETY: zeroed sigactions are valid and mean the default action; the table of actions is
    // this process's own (no CLONE_SIGHAND). Numbers that are not for us give EINVAL.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            let mut now: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut now) == 0
                && now.sa_sigaction != libc::SIG_DFL
                && (now.sa_sigaction != libc::SIG_IGN
                    || signal == libc::SIGPIPE
                    || signal == libc::SIGXFSZ)
            {
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
            }
        }
    }
}

/// A file in memory, without a name, that holds `data` and is read from its beginning. Its number
/// is not one of the standard streams', whatever of those is closed.
pub fn memory_file(data: &[u8]) -> nix::Result<OwnedFd> {
    let mut file = memfd_create(c"billiard", MFdFlags::MFD_CLOEXEC)?;
    if file.as_raw_fd() < 3 {
        // SAFETY: the kernel makes this descriptor for us alone.
        file = unsafe { OwnedFd::from_raw_fd(fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(3))?) };
    }
    let mut done = 0;
    while done < data.len() {
        match pwrite(&file, &data[done..], done as libc::off_t) {
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{block_until_dead, reap};

    fn program(path: &str, args: &[&str], fds: Vec<RawFd>) -> Program {
        let text = |s: &&str| CString::new(*s).unwrap();
        Program {
            path: text(&path),
            argv: args.iter().map(text).collect(),
            fds,
            mask: None,
        }
    }

    fn exit_code(started: Started) -> Option<i32> {
        assert!(started.sentinel.wait(None).unwrap());
        block_until_dead(started.pid).unwrap();
        reap(started.pid, Some(&started.sentinel)).unwrap()
    }

    #[test]
    fn a_program_runs_and_its_exit_code_is_read_once() {
        let started = spawn(program("/bin/sh", &["sh", "-c", "exit 7"], vec![])).unwrap();
        let pid = started.pid;
        assert_eq!(exit_code(started), Some(7));
        assert_eq!(reap(pid, None), Err(Errno::ECHILD));
    }

    #[test]
    fn a_program_is_started_aside_with_this_thread_s_mask() {
        let mut blocked = SigSet::empty();
        blocked.add(nix::sys::signal::SIGUSR1);
        let before = blocked.thread_swap_mask(SigmaskHow::SIG_SETMASK).unwrap();
        let (reader, writer) = pipe((false, false)).unwrap();
        let test = format!(
            "test -e /proc/self/fd/{} || exit 3; grep SigBlk /proc/$$/status | grep -q 0200",
            writer.as_raw_fd()
        );
        let there = program("/bin/sh", &["sh", "-c", &test], vec![writer.as_raw_fd()]);
        let thread = spawn_aside(there, vec![writer]).unwrap();
        assert_eq!(SigSet::thread_get_mask().unwrap(), blocked);
        before.thread_set_mask().unwrap();
        assert_eq!(exit_code(thread.join().unwrap().unwrap()), Some(0));
        // The other end is closed, here as well.
        assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0));
        let missing = program("/no/such", &["x"], vec![]);
        let thread = spawn_aside(missing, vec![]).unwrap();
        assert_eq!(thread.join().unwrap().map(|_| ()), Err(Errno::ENOENT));
    }

    #[test]
    fn the_error_of_exec_is_the_caller_s_and_leaves_no_zombie() {
        let missing = spawn(program("/no/such/program", &["x"], vec![]));
        assert_eq!(missing.map(|_| ()), Err(Errno::ENOENT));
        let directory = spawn(program("/", &["x"], vec![]));
        assert_eq!(directory.map(|_| ()), Err(Errno::EACCES));
        let unopened = spawn(program("/bin/true", &["x"], vec![987_654]));
        assert_eq!(unopened.map(|_| ()), Err(Errno::EBADF));
    }

    #[test]
    fn only_the_listed_descriptors_arrive() {
        let (listed, kept) = pipe((false, false)).unwrap();
        let (leaky, _) = nix::unistd::pipe().unwrap();
        let test = format!(
            "test -e /proc/self/fd/{} && ! test -e /proc/self/fd/{} && ! test -e /proc/self/fd/{}",
            listed.as_raw_fd(),
            kept.as_raw_fd(),
            leaky.as_raw_fd()
        );
        let started = spawn(program(
            "/bin/sh",
            &["sh", "-c", &test],
            vec![listed.as_raw_fd()],
        ))
        .unwrap();
        assert_eq!(exit_code(started), Some(0));
    }
}
