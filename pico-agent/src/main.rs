//! pico-agent: parses, builds, runs. What it runs is in `pico_agent::lifecycle::agent`.

use std::process::ExitCode;

use pico_agent::cli::{self, Hooks};
use pico_agent::config::Config;
use pico_agent::control::protocol::{ErrorCode, Failure};
use pico_agent::lifecycle::agent::{self, AgentError};
use pico_agent::store::{Store, StoreConfig};

fn main() -> ExitCode {
    cli::main(
        std::env::args_os(),
        Hooks {
            run,
            cleanup,
            join,
            try_store,
        },
    )
    .into()
}

fn run(config: Config) -> Result<(), Failure> {
    let ready = || println!("pico-agent ready");
    runtime()?.block_on(agent::run(config, ready)).map_err(failure)
}

fn cleanup(config: Config) -> Result<Vec<String>, Failure> {
    runtime()?.block_on(agent::cleanup(&config)).map_err(failure)
}

fn join(config: Config, token: String) -> Result<String, Failure> {
    runtime()?.block_on(agent::join(&config, &token)).map_err(failure)
}

fn try_store(section: &StoreConfig) -> Result<String, String> {
    let check = async {
        let store = Store::connect(section)?;
        store.check().await
    };
    let runtime = runtime().map_err(|failure| failure.message)?;
    runtime.block_on(check).map_err(|error| error.to_string())?;
    Ok(format!(
        "bucket {} answers, conditional writes are honest",
        section.bucket
    ))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(ErrorCode::Failed, format!("cannot start the runtime ({error})")))
}

fn failure(error: AgentError) -> Failure {
    let code = match &error {
        AgentError::Lock(_) => ErrorCode::Busy,
        AgentError::Store(_) | AgentError::Address(_) | AgentError::Clash(_) | AgentError::NoHub => {
            ErrorCode::Config
        }
        AgentError::Hub(_) => ErrorCode::Unreachable,
        AgentError::Joined(..) => ErrorCode::WrongState,
        AgentError::Probes(_) | AgentError::Criu(_) | AgentError::Fence(_) => ErrorCode::Unsupported,
        _ => ErrorCode::Failed,
    };
    let hint = match &error {
        AgentError::Store(_) => {
            "see that the store runs and [store] in agent.toml names it; `pico-agent doctor` tries it"
        }
        _ => "",
    };
    Failure::new(code, error.to_string()).hint(hint)
}
