//! Parses the command line, builds what it asks for, runs it until a signal.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use pico_hub::args::{Cli, Command, ConfigCommand, ServeArgs, StoreArgs};
use pico_hub::config::{self, Config, LogFormat};
use pico_hub::{s3, serve};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

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
