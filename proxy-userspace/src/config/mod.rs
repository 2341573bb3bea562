//! What setu is to do: a file, or the defaults, as validated types. Later code holds nothing that "must be there".

mod arguments;
mod defaults;
mod display;
mod endpoint;
mod error;
mod file;
mod keyword;
mod load;
mod names;
mod network;
mod reference;
mod schema;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod types;

pub use arguments::{DEFAULT_FILE, FileArgs, RunArgs, default_file};
pub use endpoint::{Endpoint, Host};
pub use error::{ConfigError, Place};
pub use names::{AllowList, Pattern, is_host_name};
pub use network::{Ranges, is_public};
pub use reference::{Entry, Section, reference};
pub use types::{
    CertificateFiles, ClientAddresses, Config, Dial, Limits, Listener, Mode, PathChoice, Purpose, Route,
    SendProxyProtocol, Timeouts, Tls, Upstream, UpstreamId, Wire,
};
