//! What the command line says of the configuration: which file, and what overrides it.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Config, ConfigError, PathChoice, Place};

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
        offset_ports(&mut config, self.port_offset)?;
        Ok(config)
    }
}

/// Moves every port that setu listens on up, so that no privilege is needed. Port 0 stays.
///
/// # Errors
/// When a port would be above 65535.
pub(super) fn offset_ports(config: &mut Config, offset: u16) -> Result<(), ConfigError> {
    let listeners = config.listeners.iter_mut().flat_map(|listener| &mut listener.bind);
    for address in listeners.chain(&mut config.admin) {
        if address.port() == 0 {
            continue;
        }
        let port = address.port().checked_add(offset).ok_or_else(|| ConfigError::Value {
            place: Place { file: "--port-offset".into(), line: 0 },
            key: address.to_string(),
            problem: format!("its port and {offset} are more than 65535 together"),
            remedy: "choose a smaller offset".into(),
        })?;
        address.set_port(port);
    }
    Ok(())
}
