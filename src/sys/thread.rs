//! Threads of the library's own.

use std::thread::Builder;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Starts a thread that no signal is ever delivered to: handlers run in threads that expect them,
/// and interrupt what those wait for. `EAGAIN` if there can be no more threads.
pub fn start(name: &str, body: impl FnOnce() + Send + 'static) -> nix::Result<()> {
    let mut before = SigSet::empty();
    // The new thread begins with the mask of this one.
    let all = SigSet::all();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&all), Some(&mut before))?;
    let started = Builder::new().name(name.to_owned()).spawn(body);
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    match started {
        Ok(_) => Ok(()),
        Err(error) => Err(error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn signals_are_blocked_there_and_only_there() {
        let mine = SigSet::thread_get_mask().unwrap();
        let (tell, told) = channel();
        start("quiet", move || {
            tell.send(SigSet::thread_get_mask().unwrap()).unwrap()
        })
        .unwrap();
        assert!(told.recv().unwrap().contains(nix::sys::signal::SIGALRM));
        assert_eq!(SigSet::thread_get_mask().unwrap(), mine);
    }
}
