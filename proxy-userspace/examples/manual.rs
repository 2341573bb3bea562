//! Writes the man pages and shell completions of `setu` into a directory, from the same definition that parses the
//! command line. No subcommand of setu, because only those who make packages need it.

use std::{env, fs, io, path::PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;
use setu::cli::Cli;

fn main() -> io::Result<()> {
    let out = env::args_os().nth(1).map(PathBuf::from);
    let out = out.ok_or_else(|| io::Error::other("usage: manual DIRECTORY"))?;
    let (pages, completions) = (out.join("man"), out.join("completions"));
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Cli::command(), pages)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Cli::command(), "setu", &completions)?;
    }
    Ok(())
}
