//! The connection to the hub: a channel, and a token on each call.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::exit::Exit;
use super::failure::{Failure, Result};
use super::settings::Settings;

/// To connect.
const CONNECT: Duration = Duration::from_secs(10);
/// A PEM file of authorities is no longer.
const CA_BYTES: u64 = 1 << 20;

/// What clients of the API are made of.
pub(super) type Hub = InterceptedService<Channel, Bearer>;

/// Puts the token on each call.
#[derive(Debug, Clone)]
pub(super) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Connects.
pub(super) async fn connect(settings: &Settings) -> Result<Hub> {
    let address = settings.hub.value.clone().unwrap_or_default();
    let token = settings.token(|name| std::env::var(name).ok())?;
    let mut bearer: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| Failure::new("BAD_TOKEN", Exit::DENIED, "what you have is not a token"))?;
    bearer.set_sensitive(true);

    let known = ["http://", "https://", "unix:"]
        .iter()
        .any(|scheme| address.starts_with(scheme));
    if !known || address == "unix:" {
        return Err(not_an_address(&address));
    }
    let mut endpoint = Endpoint::from_shared(address.clone())
        .map_err(|_| not_an_address(&address))?
        .connect_timeout(CONNECT)
        .user_agent(concat!("pico/", env!("CARGO_PKG_VERSION")))
        .map_err(|_| not_an_address(&address))?;
    if address.starts_with("https://") {
        endpoint = endpoint.tls_config(tls(settings)?).map_err(|error| {
            Failure::new(
                "TLS",
                Exit::USAGE,
                format!("the certificates of --ca cannot be used ({error})"),
            )
        })?;
    }
    let channel = endpoint.connect().await.map_err(|error| {
        let mut why = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            why = cause.to_string();
            source = cause.source();
        }
        let mut failure = Failure::new(
            "UNREACHABLE",
            Exit::UNREACHABLE,
            format!("no hub answers at {address} ({why})"),
        )
        .hint("--hub ADDRESS, or pico-hub serve");
        failure.retryable = true;
        failure
    })?;
    Ok(InterceptedService::new(channel, Bearer(bearer)))
}

fn tls(settings: &Settings) -> Result<ClientTlsConfig> {
    let path = settings.ca.value.as_deref().ok_or_else(|| {
        Failure::usage("https needs the authority of the hub's certificate").hint("--ca FILE")
    })?;
    let pem = super::read_file(path.as_ref(), CA_BYTES)?;
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))
}

fn not_an_address(address: &str) -> Failure {
    Failure::usage(format!("'{address}' is not the address of a hub"))
        .hint("http://HOST:PORT, https://HOST:PORT or unix:PATH")
}
