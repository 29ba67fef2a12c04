//! The kernel's side of the seat: a seccomp filter on the calling thread, inherited by those it starts, and the descriptor
//! over which calls are handed over and answered.

use std::io;
use std::mem::{offset_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{seccomp_data, seccomp_notif, seccomp_notif_resp, sock_filter, sock_fprog};

/// Calls that concern no file: they are not handed over.
const PASSING: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_prctl,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// A call that was handed over.
pub struct Request(seccomp_notif);

/// What it returns, errors below zero.
pub type Reply = i64;

impl Request {
    pub fn number(&self) -> i64 {
        i64::from(self.0.data.nr)
    }

    pub fn args(&self) -> [u64; 6] {
        self.0.data.args
    }

    /// The thread that made it.
    pub fn thread(&self) -> u32 {
        self.0.pid
    }
}

/// Where the calls of a thread, and of all that it starts, arrive.
pub struct Listener(OwnedFd);

impl Listener {
    /// From now on this thread's calls wait to be answered.
    pub fn of_this_thread() -> Self {
        let filter = program();
        let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the call reads no memory.
        let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(no_new, 0, "{}", io::Error::last_os_error());
        // SAFETY: the program outlives the call, which copies it.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            )
        };
        assert!(fd >= 0, "the kernel does not hand system calls over: {}", io::Error::last_os_error());
        // SAFETY: the call has just made it for us.
        Self(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// The next call. `None`: no thread is left that could make one.
    pub fn next(&self) -> Option<Request> {
        loop {
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which lives on this stack.
            unsafe { libc::poll(&raw mut poll, 1, -1) };
            if poll.revents & libc::POLLIN == 0 && poll.revents & libc::POLLHUP != 0 {
                return None;
            }
            // SAFETY: plain numbers, of which zero is valid; the kernel wants it zeroed.
            let mut request: seccomp_notif = unsafe { zeroed() };
            // SAFETY: the request is as large as the command says.
            if unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut request) } == 0 {
                return Some(Request(request));
            }
        }
    }

    pub fn answer(&self, request: &Request, reply: Reply) {
        let (val, error) = if reply < 0 { (0, reply as i32) } else { (reply, 0) };
        let mut response = seccomp_notif_resp { id: request.0.id, val, error, flags: 0 };
        // SAFETY: the response is as large as the command says.
        let sent = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
        assert_eq!(sent, 0, "no signal comes between call and answer: {}", io::Error::last_os_error());
    }
}

/// Passing calls are allowed, all others handed over.
fn program() -> Vec<sock_filter> {
    let number = offset_of!(seccomp_data, nr) as u32;
    let statement = |code: u32, k: u32| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, number)];
    for (index, &call) in PASSING.iter().enumerate() {
        let to_the_end = (PASSING.len() - index) as u8;
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        program.push(sock_filter { code, jt: to_the_end, jf: 0, k: call as u32 });
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF));
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    program
}
