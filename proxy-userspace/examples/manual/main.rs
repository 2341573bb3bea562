//! Writes what is made of setu's own definitions into a directory: man pages and shell completions, from the one that
//! parses the command line, and a page on all keys of the configuration, for man and for `docs`, from the one that each
//! file is held against. No subcommand of setu, because only those who make packages need it.

mod commands;
mod configuration;

use std::{
    env, fs,
    io::{self, Write as _},
    path::PathBuf,
};

use clap::CommandFactory as _;
use clap_complete::Shell;
use setu::{
    cli::Cli,
    config::{Config, reference},
};

fn main() -> io::Result<()> {
    let out = env::args_os().nth(1).map(PathBuf::from);
    let out = out.ok_or_else(|| io::Error::other("usage: manual DIRECTORY"))?;
    let (pages, completions) = (out.join("man"), out.join("completions"));
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Cli::command(), &pages)?;
    for page in fs::read_dir(&pages)? {
        let page = page?;
        let name = page.file_name();
        let end = commands::end(&name.to_string_lossy()).ok_or_else(|| {
            io::Error::other(format!("{}: examples/manual/commands.rs does not know it", name.display()))
        })?;
        fs::OpenOptions::new().append(true).open(page.path())?.write_all(end.as_bytes())?;
    }
    let defaults = Config::load(None).map_err(io::Error::other)?;
    let keys = reference().map_err(io::Error::other)?;
    fs::write(pages.join("setu.toml.5"), configuration::man(&keys, &defaults))?;
    fs::write(out.join("configuration.md"), configuration::markdown(&keys, &defaults))?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Cli::command(), "setu", &completions)?;
    }
    Ok(())
}
