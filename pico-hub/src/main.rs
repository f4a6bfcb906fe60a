//! Parses the command line, builds what it asks for, runs it until a signal.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use pico_hub::s3::{Options, Server};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

const EXIT_CODES: &str = "\
Exit codes:
  0  stopped by SIGTERM or SIGINT
  1  failure (the address is in use, the directory cannot be written, ...)
  2  usage";

const STORE_EXAMPLES: &str = "\
Examples:
  # On the default address; credentials appear in /var/lib/pico-store/credentials.json
  pico-hub store --dir /var/lib/pico-store

  # On a free port, which is written to a file when the server answers
  pico-hub store --dir ./store --listen 127.0.0.1:0 --port-file ./store.port

The credentials file is JSON with endpoint, access_key_id and secret_access_key; the agent reads it with
`credentials_file` in its [store] section. Set RUST_LOG (for example RUST_LOG=debug) to see more.";

#[derive(Parser)]
#[command(name = "pico-hub", version, about = "The Picocenter hub", after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a directory as S3 object store
    Store(StoreArgs),
}

/// Serve a directory as S3 object store.
///
/// Writes are on disk before they are acknowledged, conditional writes (If-Match, If-None-Match) have one
/// winner, and every request must be signed.
#[derive(Args)]
#[command(after_help = format!("{STORE_EXAMPLES}\n\n{EXIT_CODES}"))]
struct StoreArgs {
    /// Where everything is kept; created if missing, used by one server at a time
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,

    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,

    /// Credentials, made on first start [default: DIR/credentials.json]
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,

    /// Write the port to this file once the server listens
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The s3s crate reports every refused request as an error; those are the client's to know.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,s3s=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    let Command::Store(args) = cli.command;
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(args: StoreArgs) -> anyhow::Result<()> {
    // Before anything is begun: a signal that comes early must not be lost.
    let stop = stop_on_signals().context("cannot wait for signals")?;
    let options = Options {
        dir: args.dir,
        listen: args.listen,
        credentials_file: args.credentials_file,
    };
    let server = Server::bind(&options).await?;
    if let Some(path) = &args.port_file {
        server.write_port_file(path)?;
    }
    tracing::info!(endpoint = server.credentials().endpoint, dir = %options.dir.display(), "serving");
    server.run(stop).await;
    tracing::info!("stopped");
    Ok(())
}

fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}
