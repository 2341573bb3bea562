//! Where and how a run was made: what a reader needs to make it again, or to know why it comes out otherwise.

use std::{collections::BTreeMap, fs, process::Command, time::SystemTime};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use setu_tests::Setu;

use crate::topology::SETTINGS;

/// Machine, programs and settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) command: String,
    pub(crate) quick: bool,
    /// `YYYY-MM-DD`, UTC.
    pub(crate) date: String,
    /// Of the repository; `+` when files differ from it.
    pub(crate) commit: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    /// KiB.
    pub(crate) memory: u64,
    /// In the words of the programs.
    pub(crate) versions: BTreeMap<String, String>,
    /// Below /proc/sys, in the three namespaces.
    pub(crate) settings: BTreeMap<String, String>,
}

impl Environment {
    /// Looks around.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub(crate) fn read(command: &str, quick: bool) -> Result<Self> {
        let setu = Setu::binary().display().to_string();
        let programs = [
            ("setu", setu.as_str(), "--version"),
            ("haproxy", "haproxy", "-v"),
            ("nginx", "nginx", "-v"),
            ("sniproxy", "sniproxy", "-V"),
            ("nftables", "nft", "--version"),
        ];
        let versions = programs.into_iter().filter_map(|(name, program, argument)| {
            Some((name.to_owned(), first_line(Command::new(program).arg(argument))?))
        });
        let settings = ["net/ipv4/tcp_congestion_control", "net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem"];
        let settings = settings.into_iter().filter_map(|key| {
            let value = fs::read_to_string(format!("/proc/sys/{key}")).ok()?;
            Some((key.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        });
        let set = SETTINGS.map(|(key, value, _)| (key.to_owned(), value.to_owned()));
        let cpu = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let commit = first_line(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]));
        let changed = first_line(Command::new("git").args(["status", "--porcelain", "--untracked-files=no"]));
        let memory = fs::read_to_string("/proc/meminfo")?;
        let memory = memory.split_whitespace().nth(1).and_then(|text| text.parse().ok());
        Ok(Self {
            command: command.into(),
            quick,
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string()[..10].into(),
            commit: commit.unwrap_or_else(|| "unknown".into()) + if changed.is_some() { "+" } else { "" },
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
            processor: model.map_or("unknown", |(_, model)| model.trim()).into(),
            processors: std::thread::available_parallelism()?.get(),
            memory: memory.context("/proc/meminfo has no total")?,
            versions: versions.collect(),
            settings: settings.chain(set).collect(),
        })
    }

    /// When and on what, in a few words.
    pub(crate) fn occasion(&self) -> String {
        let Self { date, processors, kernel, quick, .. } = self;
        format!("{date}{}, {processors} cores, Linux {kernel}", if *quick { ", a quick run" } else { "" })
    }

    /// The name of the run's folder: the date and the kind of host.
    pub(crate) fn folder(&self) -> String {
        let version: Vec<_> = self.kernel.split(['.', '-']).take(2).collect();
        format!("{}-{}-cores-linux-{}", self.date, self.processors, version.join("."))
    }
}

/// The first line that a program prints, on either output.
fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&text).lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}
