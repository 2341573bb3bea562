//! What is printed and pinned to a wall: the code, and the cards.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Link, ShareError, cards};

impl Link {
    /// Writes the code and the instruction cards into a directory, and returns the files.
    ///
    /// # Errors
    /// The file that could not be written.
    pub fn write(&self, directory: &Path) -> Result<Vec<PathBuf>, ShareError> {
        let mut files = vec![("proxy.svg".to_owned(), self.svg())];
        files.extend(cards::all(self)?);
        let failed = |path: &Path, error| ShareError::Write { path: path.into(), error };
        fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
        let mut written = Vec::new();
        for (name, text) in files {
            let path = directory.join(name);
            fs::write(&path, text).map_err(|error| failed(&path, error))?;
            written.push(path);
        }
        Ok(written)
    }
}
