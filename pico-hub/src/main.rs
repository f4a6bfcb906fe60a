//! Parses the command line, builds what it asks for, runs it until a signal.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use pico_hub::config::{self, Config, LogFormat};
use pico_hub::{s3, serve};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

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

#[derive(Parser)]
#[command(name = "pico-hub", version, about = "The Picocenter hub", after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
#[derive(Args)]
#[command(after_help = format!("{SERVE_EXAMPLES}\n\n{EXIT_CODES}"))]
struct ServeArgs {
    #[command(flatten)]
    config: ConfigFile,

    /// Write where everything is served to this file once the hub answers
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say all that is wrong with a file
    Check(ConfigFile),
    /// Print a file with all keys, their defaults and what they mean
    Example,
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration
    #[arg(long, value_name = "FILE", env = "PICO_HUB_CONFIG", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
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
    let ended = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Config(ConfigCommand::Check(file)) => check(&file.config),
        Command::Config(ConfigCommand::Example) => {
            print!("{}", config::EXAMPLE);
            Ok(())
        }
        Command::Store(args) => {
            log_to_stderr(LogFormat::Text);
            run(store(args))
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(format: LogFormat) {
    // The s3s crate reports every refused request as an error; those are the client's to know.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,s3s=off"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn run(program: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(program)
}

fn check(path: &Path) -> anyhow::Result<()> {
    Config::load(path)?;
    println!("{} is right", path.display());
    Ok(())
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config.config)?;
    log_to_stderr(config.log);
    run(async {
        // Before anything is begun: a signal that comes early must not be lost.
        let stop = stop_on_signals().context("cannot wait for signals")?;
        let server = serve::Server::bind(&config).await?;
        let ready = server.ready().clone();
        let running = tokio::spawn(server.run(stop));
        if let Some(path) = &args.ready_file {
            let text = serde_json::to_vec(&ready)?;
            s3::replace_file(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        tracing::info!(
            api = ready.api.join(" "),
            object_store = ready.object_store,
            metrics = ready.metrics,
            "ready"
        );
        running.await?;
        tracing::info!("stopped");
        Ok(())
    })
}

async fn store(args: StoreArgs) -> anyhow::Result<()> {
    // Before anything is begun: a signal that comes early must not be lost.
    let stop = stop_on_signals().context("cannot wait for signals")?;
    let options = s3::Options {
        dir: args.dir,
        listen: args.listen,
        credentials_file: args.credentials_file,
    };
    let server = s3::Server::bind(&options).await?;
    if let Some(path) = &args.port_file {
        server.write_port_file(path)?;
    }
    tracing::info!(endpoint = server.credentials().endpoint, dir = %options.dir.display(), "serving");
    server.run(stop).await;
    tracing::info!("stopped");
    Ok(())
}

/// Told by the first SIGTERM or SIGINT; the second one ends the program at once.
fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => 143,
                _ = interrupt.recv() => 130,
            }
        };
        next().await;
        told.cancel();
        std::process::exit(next().await);
    });
    Ok(stop)
}
