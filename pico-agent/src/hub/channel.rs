//! The way to the hub: a connection that notices when the other end is gone.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::config::HubConfig;
use super::credential::read_text;
use super::link::LinkError;

/// How long the hub may take to answer a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A hub that is not heard for this long and then does not answer for that long is gone.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));

/// Connects.
pub(super) async fn connect(config: &HubConfig) -> Result<Channel, LinkError> {
    let mut endpoint = Endpoint::from_shared(config.address.clone())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true)
        .user_agent(concat!("pico-agent/", env!("CARGO_PKG_VERSION")))?;
    if let Some(path) = config
        .ca_file
        .as_ref()
        .filter(|_| config.address.starts_with("https://"))
    {
        let authority = Certificate::from_pem(read_text(path)?);
        endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(authority))?;
    }
    Ok(endpoint.connect().await?)
}

/// The `authorization` of a call.
pub(super) fn bearer(secret: &str) -> Result<MetadataValue<Ascii>, LinkError> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {secret}")
        .parse()
        .map_err(|_| LinkError::NoToken)?;
    value.set_sensitive(true);
    Ok(value)
}
