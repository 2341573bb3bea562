//! How much memory there is for this process: the machine's, or what its control groups leave of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::process::total_memory;

/// What a group of version 2 may have: beyond `memory.max` the kernel kills, beyond `memory.high` it slows the group down
/// until next to nothing is served (Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files").
const LIMITS_2: [&str; 2] = ["memory.max", "memory.high"];
/// What a group of version 1 may have (Documentation/admin-guide/cgroup-v1/memory.rst). Without a limit it is the largest
/// number that the kernel counts to.
const LIMITS_1: [&str; 1] = ["memory.limit_in_bytes"];

/// Bytes of memory that this process may count on: the machine's, or the least limit of its control groups and of those
/// above them, as far as they are mounted here. It changes when the machine's owner changes it.
pub(crate) fn available_memory() -> u64 {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let text = |path: &str| read(Path::new(path)).unwrap_or_default();
    let limit = least_limit(&text("/proc/self/cgroup"), &text("/proc/self/mountinfo"), read);
    total_memory().min(limit.unwrap_or(u64::MAX))
}

/// The least limit of the groups in `groups` (cgroups(7), "/proc/pid/cgroup"), which are found by `mounts`
/// (proc_pid_mountinfo(5)), up to where these begin.
fn least_limit(groups: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut least: Option<u64> = None;
    for group in groups.lines() {
        let mut fields = group.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (kind, files) = match controllers {
            "" => ("cgroup2", &LIMITS_2[..]),
            _ if has(controllers, "memory") => ("cgroup", &LIMITS_1[..]),
            _ => continue,
        };
        for (top, folder) in mounts.lines().filter_map(|mount| place(mount, kind, path)) {
            let up = folder.ancestors().take_while(|folder| folder.starts_with(&top));
            let limits = up.flat_map(|folder| files.iter().map(|file| folder.join(file)));
            // Where there is none a file has the word `max`, or is not there.
            least = limits.filter_map(|file| read(&file)?.trim().parse().ok()).chain(least).min();
        }
    }
    least
}

/// Where a mount begins, and where in it a group is. `None`: it is no mount of such groups.
fn place(mount: &str, kind: &str, group: &str) -> Option<(PathBuf, PathBuf)> {
    let (what, of) = mount.split_once(" - ")?;
    let mut of = of.split(' ');
    let (is_kind, options) = (of.next()? == kind, of.nth(1)?);
    if !is_kind || kind == "cgroup" && !has(options, "memory") {
        return None;
    }
    let mut what = what.split(' ').skip(3);
    let (root, top) = (what.next()?, Path::new(what.next()?));
    // Containers see a part of the tree, which may begin at their own group; where it does not hold the group it is taken
    // for that.
    let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
    let below = if below.components().any(|part| part.as_os_str() == "..") { Path::new("") } else { below };
    Some((top.into(), top.join(below)))
}

fn has(list: &str, word: &str) -> bool {
    list.split(',').any(|item| item == word)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const V2: &str = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    fn least(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u64> {
        let files: HashMap<_, _> = files.iter().map(|(file, text)| (PathBuf::from(file), *text)).collect();
        least_limit(groups, mounts, |path| files.get(path).map(|text| (*text).to_owned()))
    }

    #[test]
    fn the_least_limit_up_the_tree_counts() {
        let unit = "0::/system.slice/setu.service\n";
        let own = ("/sys/fs/cgroup/system.slice/setu.service/memory.max", "536870912\n");
        let above = ("/sys/fs/cgroup/system.slice/memory.max", "268435456\n");
        let high = ("/sys/fs/cgroup/system.slice/setu.service/memory.high", "100000\n");
        let none = ("/sys/fs/cgroup/system.slice/memory.high", "max\n");
        assert_eq!(least(unit, V2, &[]), None);
        assert_eq!(least(unit, V2, &[none]), None);
        assert_eq!(least(unit, V2, &[own, none]), Some(512 << 20));
        assert_eq!(least(unit, V2, &[own, above]), Some(256 << 20));
        assert_eq!(least(unit, V2, &[own, above, high]), Some(100_000));
    }

    #[test]
    fn version_1_counts_by_its_controller() {
        let groups = "9:name=systemd:/\n4:cpu,memory:/pod/box\n0::/\n";
        let limit = ("/sys/fs/cgroup/memory/pod/box/memory.limit_in_bytes", "1000\n");
        let parent = ("/sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "900\n");
        let endless = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(least(groups, V1, &[limit, endless]), Some(1000));
        assert_eq!(least(groups, V1, &[limit, parent]), Some(900));
        assert_eq!(least("4:cpu:/pod/box\n", V1, &[limit, parent]), None);
    }

    #[test]
    fn a_container_sees_a_part_of_the_tree() {
        // Its own group is mounted, without a namespace and with one.
        let mounted = "35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n29 22 0:26 / /else rw - ext4 a b\n";
        let own = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000");
        assert_eq!(least("4:memory:/docker/1f\n", mounted, &[own]), Some(1000));
        assert_eq!(least("4:memory:/\n", mounted, &[own]), Some(1000));
        let inner = ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "10");
        assert_eq!(least("4:memory:/docker/1f/a\n", mounted, &[own, inner]), Some(10));
        // A group outside of the namespace's root.
        assert_eq!(least("0::/../..\n", V2, &[("/sys/fs/cgroup/memory.max", "7")]), Some(7));
    }

    #[test]
    fn nonsense_is_no_limit() {
        for (groups, mounts) in
            [("", ""), ("0::/", ""), (":::", "- - -"), ("0::/", "1 2 3 - cgroup2"), ("x", V2)]
        {
            assert_eq!(least(groups, mounts, &[]), None);
        }
        assert!(available_memory() > 0 && available_memory() <= total_memory());
    }
}
