//! Drives traffic through setu and through what people use instead.
#![expect(clippy::print_stdout, reason = "tools for the terminal")]

mod compare;
mod demo;
mod measure;
mod peers;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Drives traffic through setu and its peers
#[derive(Parser)]
#[command(name = "setu-bench")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Chat and media through setu on loopback; fails on any byte that is wrong
    Demo,
    /// Setu beside HAProxy and nginx, in one run
    Bench {
        /// Three short rounds instead of five long ones
        #[arg(long)]
        quick: bool,
        /// Write summary and raw data there
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Demo => demo::run(),
        Task::Bench { quick, out } => compare::run(quick, out.as_deref()),
    }
}
