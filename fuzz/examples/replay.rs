//! Runs the targets over files without a fuzzer, so that lines which the corpus reaches can be counted.
//!
//! `replay CORPUS` takes a folder with a folder for each target.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let corpus = PathBuf::from(env::args_os().nth(1).ok_or("usage: replay CORPUS")?);
    for (name, target) in setu_fuzz::TARGETS {
        for entry in fs::read_dir(corpus.join(name))? {
            target(&fs::read(entry?.path())?);
        }
    }
    Ok(())
}
