//! Why the kernel did not take a program of setu's, in the operator's words: whoever lacks a privilege has something else to do
//! than whoever lacks a kernel.

use std::io;

use aya::programs::ProgramError;
use rustix::io::Errno;

/// The first Linux whose BPF has all that the programs are made of: atomic operations that return the old value.
const FIRST: (u32, u32) = (5, 12);

/// What to say of a program that was refused.
pub(super) fn refusal(program: &str, error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let release = rustix::system::uname().release().to_string_lossy().into_owned();
            words(program, io_error, &verifier_log.to_string(), &release)
        }
        error => format!("the kernel refused {program}: {error}"),
    }
}

fn words(program: &str, error: &io::Error, log: &str, release: &str) -> String {
    // What the verifier refuses is EACCES or EINVAL.
    if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) {
        return format!(
            "the kernel refused {program}: {error}; CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed"
        );
    }
    let said = last_words(log, error);
    if version(release).is_some_and(|version| version < FIRST) {
        let (major, minor) = FIRST;
        return format!(
            "Linux {major}.{minor} or newer is needed for {program}, and this is {release}, which says: {said}"
        );
    }
    format!("the kernel ({release}) refused {program}: {said}")
}

/// What the verifier said before it counted what it had done; all that the kernel said, if that is nothing.
fn last_words(log: &str, error: &io::Error) -> String {
    let is_count = |line: &&str| {
        ["processed ", "verification time ", "stack depth "].iter().any(|count| line.starts_with(count))
    };
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty() && !is_count(line));
    lines.next_back().map_or_else(|| error.to_string(), |line| format!("{line} ({error})"))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(errno: Errno, log: &str, release: &str) -> String {
        words("setu's program", &io::Error::from(errno), log, release)
    }

    #[test]
    fn a_privilege_is_asked_for_where_one_is_missing_and_nowhere_else() {
        assert!(said(Errno::PERM, "", "6.1.0").contains("CAP_PERFMON"));
        for release in ["5.10.0-46-cloud-amd64", "6.1.0"] {
            let text =
                said(Errno::INVAL, "1: (db) r0 = x\nBPF_ATOMIC is unknown\nprocessed 4 insns\n", release);
            assert!(!text.contains("CAP_") && text.contains("BPF_ATOMIC is unknown"), "{text}");
        }
    }

    #[test]
    fn an_old_kernel_is_told_which_it_takes() {
        let text = said(Errno::INVAL, "", "5.10.0-46-cloud-amd64");
        assert!(
            text.starts_with("Linux 5.12 or newer is needed for setu's program, and this is 5.10.0-46"),
            "{text}"
        );
        assert!(!said(Errno::INVAL, "", "5.12.1").contains("newer"));
        assert!(!said(Errno::INVAL, "", "strange").contains("newer"));
    }
}
