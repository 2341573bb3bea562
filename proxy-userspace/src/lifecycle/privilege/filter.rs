//! Which system calls setu may still make (seccomp).
//!
//! The answer to all others is "no such call", as from an older kernel: a library that tries a new call falls back to the
//! one before it, and what this list forgets costs a feature, not the connections of everyone. An attacker learns no
//! more from it than from being killed, and gets no further.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// Calls that are allowed whatever their arguments.
const ALLOWED: &[libc::c_long] = &[
    // Bytes.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_splice,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    // Sockets and other descriptors.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_close,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    // Files; which ones is up to Landlock and the user.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_getcwd,
    libc::SYS_umask,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads and signals.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // What the process is told of itself and the machine.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Older forms of some of these, which aarch64 never had.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_access,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_chmod,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Commands of bpf(2) on maps that are open, and the one that detaches a program (include/uapi/linux/bpf.h): none loads
/// or makes anything.
const BPF_COMMANDS: [u64; 5] = [1, 2, 3, 4, 9];
/// Options of prctl(2) that name a thread and a range of memory.
const PRCTL_OPTIONS: [u64; 2] = [libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64];
/// include/uapi/asm-generic/ioctls.h; libc's constants differ in type from one C library to another.
const FIONREAD: u64 = 0x541b;
const SIOCOUTQ: u64 = 0x5411;
const FIONBIO: u64 = 0x5421;
/// include/uapi/linux/sockios.h.
const SIOCOUTQNSD: u64 = 0x894b;
const SIOCGIFINDEX: u64 = 0x8933;
const FAMILIES: [i32; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// What the keeper of the wire may call: it opens nothing, neither file nor connection, and runs nothing.
const KEEPER: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_bind,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_membarrier,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The folder of its pins, which Landlock leaves it alone.
    libc::SYS_flock,
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
];
#[cfg(target_arch = "x86_64")]
const KEEPER_OLDER: &[libc::c_long] = &[
    libc::SYS_mkdir,
    libc::SYS_stat,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_unlink,
    libc::SYS_rmdir,
];
#[cfg(not(target_arch = "x86_64"))]
const KEEPER_OLDER: &[libc::c_long] = &[];
/// Commands on maps that are open, those that attach a program to a device and pin the link, and those that tell what an
/// object is.
const KEEPER_BPF: [u64; 9] = [1, 2, 3, 4, 6, 7, 15, 28, 29];

/// Applies the filter to this thread and those that it starts.
///
/// # Errors
/// The kernel does not have it.
pub(super) fn apply() -> Result<(), String> {
    let program = program().map_err(|error| error.to_string())?;
    apply_filter(&program).map_err(|error| error.to_string())
}

/// Applies the keeper's filter to this thread and those that it starts.
///
/// # Errors
/// The kernel does not have it.
pub(super) fn apply_to_keeper() -> Result<(), String> {
    let program = keepers_program().map_err(|error| error.to_string())?;
    apply_filter(&program).map_err(|error| error.to_string())
}

fn keepers_program() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        KEEPER.iter().chain(KEEPER_OLDER).map(|call| (*call, Vec::new())).collect();
    let is = |argument, value| SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value);
    let mut allow = |call: libc::c_long, argument, values: &[u64]| {
        let rule = |value: &u64| SeccompRule::new(vec![is(argument, *value)?]);
        rules.insert(call, values.iter().map(rule).collect::<Result<_, _>>()?);
        Ok::<_, BackendError>(())
    };
    allow(libc::SYS_bpf, 0, &KEEPER_BPF)?;
    allow(libc::SYS_ioctl, 1, &[FIONREAD, SIOCOUTQ, SIOCOUTQNSD, SIOCGIFINDEX])?;
    allow(libc::SYS_tgkill, 0, &[std::process::id().into()])?;
    allow(libc::SYS_prctl, 0, &PRCTL_OPTIONS)?;
    let threads = SeccompCondition::new(
        0,
        Dword,
        SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64),
        libc::CLONE_THREAD as u64,
    )?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![threads])?]);
    // A device's index is asked for by a socket of no family in particular; before Linux 6.6 a program is attached by netlink.
    let kind = |family: i32| SeccompRule::new(vec![is(0, family as u64)?]);
    rules.insert(libc::SYS_socket, vec![kind(libc::AF_UNIX)?, kind(libc::AF_NETLINK)?]);
    let no_code = SeccompCondition::new(2, Dword, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![SeccompRule::new(vec![no_code.clone()])?]);
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow, arch)?
        .try_into()
}

fn program() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    let is = |argument, value| SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value);
    let bits = |argument, mask: i32, value: i32| {
        SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(mask as u64), value as u64)
    };
    // Each allows its call when one of its rules holds, a rule when all its conditions do.
    let mut allow = |call: libc::c_long, conditions: Vec<Vec<SeccompCondition>>| {
        let any = conditions.into_iter().map(SeccompRule::new).collect::<Result<_, _>>()?;
        rules.insert(call, any);
        Ok::<_, BackendError>(())
    };
    let commands = BPF_COMMANDS.map(|command| is(0, command)).into_iter();
    allow(libc::SYS_bpf, commands.map(|command| Ok(vec![command?])).collect::<Result<_, BackendError>>()?)?;
    let options = PRCTL_OPTIONS.map(|option| is(0, option)).into_iter();
    allow(libc::SYS_prctl, options.map(|option| Ok(vec![option?])).collect::<Result<_, BackendError>>()?)?;

    // No raw sockets, no packets; of netlink only what lists this machine's addresses.
    let mut sockets = Vec::new();
    for family in FAMILIES {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            sockets.push(vec![is(0, family as u64)?, bits(1, 0xf, kind)?]);
        }
    }
    sockets.push(vec![is(0, libc::AF_UNIX as u64)?, bits(1, 0xf, libc::SOCK_SEQPACKET)?]);
    sockets.push(vec![is(0, libc::AF_NETLINK as u64)?, is(2, libc::NETLINK_ROUTE as u64)?]);
    allow(libc::SYS_socket, sockets)?;
    allow(libc::SYS_socketpair, vec![vec![is(0, libc::AF_UNIX as u64)?]])?;
    // How much is queued, and nonblocking mode.
    allow(
        libc::SYS_ioctl,
        vec![
            vec![is(1, FIONREAD)?],
            vec![is(1, SIOCOUTQ)?],
            vec![is(1, SIOCOUTQNSD)?],
            vec![is(1, FIONBIO)?],
        ],
    )?;

    // Memory is never executable.
    allow(libc::SYS_mmap, vec![vec![bits(2, libc::PROT_EXEC, 0)?]])?;
    allow(libc::SYS_mprotect, vec![vec![bits(2, libc::PROT_EXEC, 0)?]])?;
    // Threads, not processes. clone3 hides its flags behind a pointer; libc falls back to this.
    allow(libc::SYS_clone, vec![vec![bits(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?]])?;
    // A panic that aborts.
    allow(libc::SYS_tgkill, vec![vec![is(0, std::process::id().into())?]])?;
    // Of no other process.
    allow(libc::SYS_prlimit64, vec![vec![is(0, 0)?]])?;

    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow, arch)?
        .try_into()
}
