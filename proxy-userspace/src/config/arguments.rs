//! What the command line says of the configuration: which file, and what overrides it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{Config, ConfigError, PathChoice, Place};

/// The configuration that is read where none is named.
pub const DEFAULT_FILE: &str = "/etc/setu/setu.toml";

/// Arguments of `setu run`, and of the check that it would start.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    file: FileArgs,
    /// How bytes move: in the kernel (sockmap), through this process (userspace), each connection where it is better
    /// off (auto), or as packets that are rewritten (wire).
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
    /// Read this configuration, see setu.toml(5); without it /etc/setu/setu.toml if that exists, else the defaults hold. An
    /// empty file, such as /dev/null, is the defaults
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

/// What is read where no file is named: `None` when there is none.
#[must_use]
pub fn default_file() -> Option<&'static Path> {
    // A link that leads nowhere, or a folder that may not be looked into, is a slip to be told of, and no wish for the
    // defaults.
    let is_missing =
        fs::symlink_metadata(DEFAULT_FILE).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    (!is_missing).then_some(Path::new(DEFAULT_FILE))
}

impl FileArgs {
    /// The file that is read, if there is any.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.config.as_deref().or_else(|| default_file())
    }

    /// Whether the operator named it.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.config.is_some()
    }

    /// Where the configuration comes from.
    #[must_use]
    pub fn origin(&self) -> String {
        match self.path() {
            Some(path) => path.display().to_string(),
            None => format!("the defaults, for there is no {DEFAULT_FILE}"),
        }
    }

    /// The configuration of the file, or the defaults.
    ///
    /// # Errors
    /// What is wrong in the file.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.path())
    }
}

impl RunArgs {
    /// The file of the configuration.
    #[must_use]
    pub fn file(&self) -> &FileArgs {
        &self.file
    }

    /// Holds on to the file that is read now: should it be gone later, that is an error, and no wish for the defaults.
    pub fn settle(&mut self) {
        self.file.config = self.file.path().map(PathBuf::from);
    }

    /// The configuration that these arguments ask for.
    ///
    /// # Errors
    /// What is wrong in the file, or with the offset.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut config = self.file.load()?;
        config.path = self.path.unwrap_or(config.path);
        offset_ports(&mut config, self.port_offset)?;
        check_wire_ports(&config)?;
        Ok(config)
    }
}

/// Whether setu would listen at a port of the wire's, now that all arguments are known.
fn check_wire_ports(config: &Config) -> Result<(), ConfigError> {
    let wanted = config.path == PathChoice::Wire;
    let Some((whose, bind)) = config.wire_conflict().filter(|_| wanted) else { return Ok(()) };
    let ports = &config.wire.ports;
    Err(ConfigError::Value {
        place: Place { file: "--path, --port-offset".into(), line: 0 },
        key: "wire.ports".into(),
        problem: format!("{}-{} has the port of {whose}, {bind}", ports.start(), ports.end()),
        remedy: "write other ports, or choose another offset".into(),
    })
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
