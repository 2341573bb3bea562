//! From a file, or nothing, to the configuration.

use std::{fs, io, path::Path};

use super::{Config, ConfigError, Place, defaults, file};

impl Config {
    /// Reads a file, or takes the defaults.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = file else { return Ok(defaults::config()) };
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            place: Place { file: name.clone(), line: 0 },
            error: error.to_string(),
            remedy: match error.kind() {
                io::ErrorKind::NotFound => "`setu init` writes one; or name another with --config",
                _ => "let this user read it, or name another with --config",
            },
        })?;
        Self::parse(&name, &text)
    }

    /// Reads the text of a file that is called `name` in errors; paths in it are relative to that.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        file::parse(name, text)
    }
}
