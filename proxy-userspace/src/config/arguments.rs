//! What the command line says of the configuration: which file, and what overrides it.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Config, ConfigError, PathChoice};

/// Arguments of `setu run`, and of the check that it would start.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    file: FileArgs,
    /// How bytes move: in the kernel (sockmap), through this process (userspace), or each connection where it is better
    /// off (auto).
    /// Overrides relay.path of the configuration
    #[arg(long, value_enum)]
    path: Option<PathChoice>,
    /// Add N to every port: with 10000 no privilege is needed, and 5222 becomes 15222
    #[arg(long, value_name = "N", default_value_t = 0)]
    port_offset: u16,
}

/// The file of the configuration.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// Read this configuration, see setu.toml(5); without it the defaults run
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

impl FileArgs {
    /// The configuration of the file, or the defaults.
    ///
    /// # Errors
    /// What is wrong in the file.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref())
    }
}

impl RunArgs {
    /// The file of the configuration.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.config.as_deref()
    }

    /// The configuration that these arguments ask for.
    ///
    /// # Errors
    /// What is wrong in the file, or with the offset.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut config = self.file.load()?;
        config.path = self.path.unwrap_or(config.path);
        config.offset_ports(self.port_offset)?;
        Ok(config)
    }
}
