//! The command line of `pico-hub`: what may be written. What is done with it stands in the program.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::config;

const EXIT_CODES: &str = "\
Exit codes:
  0  stopped by SIGTERM or SIGINT
  1  failure (the address is in use, the directory cannot be written, ...)
  2  usage
  130, 143  ended at once by a second SIGINT or SIGTERM";

const SERVE_EXAMPLES: &str = "\
Examples:
  # With /etc/pico/hub.toml
  pico-hub serve

  # On free ports, which are written to a file when the hub answers
  pico-hub serve --config ./hub.toml --ready-file ./hub.ready

The ready file is JSON: api (a list of addresses), object_store and metrics (addresses). A first SIGTERM or SIGINT lets
running calls end, a second one ends the hub at once. Set RUST_LOG (for example RUST_LOG=debug) to see more.";

const CONFIG_EXAMPLES: &str = "\
Examples:
  # A file with all keys and their defaults
  pico-hub config example > hub.toml

  # All that is wrong with it, at once
  pico-hub config check --config hub.toml";

const STORE_EXAMPLES: &str = "\
Examples:
  # On the default address; credentials appear in /var/lib/pico-store/credentials.json
  pico-hub store --dir /var/lib/pico-store

  # On a free port, which is written to a file when the server answers
  pico-hub store --dir ./store --listen 127.0.0.1:0 --port-file ./store.port

The credentials file is JSON with endpoint, access_key_id and secret_access_key; the agent reads it with
`credentials_file` in its [store] section. Set RUST_LOG (for example RUST_LOG=debug) to see more.";

/// `pico-hub`
#[derive(Debug, Parser)]
#[command(name = "pico-hub", version, about = "The Picocenter hub", after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve owners and agents
    Serve(ServeArgs),
    /// Check a configuration, or show an example
    #[command(subcommand, after_help = format!("{CONFIG_EXAMPLES}\n\n{EXIT_CODES}"))]
    Config(ConfigCommand),
    /// Serve a directory as S3 object store
    Store(StoreArgs),
}

/// Serve owners and agents.
///
/// The API pico.v1 over gRPC, with health and reflection, and what else the configuration asks for: the embedded object
/// store, metrics.
#[derive(Debug, Args)]
#[command(after_help = format!("{SERVE_EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct ServeArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigFile,

    /// Write where everything is served to this file once the hub answers
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

/// What is done with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say all that is wrong with a file
    Check(ConfigFile),
    /// Print a file with all keys, their defaults and what they mean
    Example,
}

/// Where a configuration is.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration
    #[arg(long, value_name = "FILE", env = "PICO_HUB_CONFIG", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
}

/// Serve a directory as S3 object store.
///
/// Writes are on disk before they are acknowledged, conditional writes (If-Match, If-None-Match) have one
/// winner, and every request must be signed.
#[derive(Debug, Args)]
#[command(after_help = format!("{STORE_EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct StoreArgs {
    /// Where everything is kept; created if missing, used by one server at a time
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,

    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9000")]
    pub listen: SocketAddr,

    /// Credentials, made on first start [default: DIR/credentials.json]
    #[arg(long, value_name = "FILE")]
    pub credentials_file: Option<PathBuf>,

    /// Write the port to this file once the server listens
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,
}

/// The command line as a whole, for help pages, man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}
