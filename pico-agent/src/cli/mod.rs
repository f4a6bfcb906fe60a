//! The command line: what may be written (`args`), what each command does, how it answers (`output`) and
//! with which exit code ([`exit`]). Asks a running agent over its socket; runs no app itself: what does is
//! handed in as [`Hooks`].

mod args;
pub mod exit;
pub(crate) mod output;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser};
use serde_json::json;

use crate::config::{Config, ConfigError, DEFAULT_PATH, DEFAULT_STATE_DIR};
use crate::control::client::{Client, ClientError};
use crate::control::lock::LockError;
use crate::control::protocol::{self, ErrorCode, Failure, Request, Response};
use crate::criu::command::Criu;
use crate::doctor::{self, Verdict};
use crate::store::StoreConfig;
use crate::units::Wait;
use args::{AppCommand, Args, Command, ConfigCommand, LogFormat, Logging};
use exit::Exit;
use output::Output;

/// What the command line starts and does not know.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Runs an agent until it is told to end.
    pub run: fn(Config) -> Result<(), Failure>,
    /// Takes away what a stopped agent left, except for checkpoints; tells each thing it took away.
    pub cleanup: fn(Config) -> Result<Vec<String>, Failure>,
    /// Joins the hub of a configuration by a token; tells who the hub takes this agent for.
    pub join: fn(Config, String) -> Result<String, Failure>,
    /// Tries the object store; tells what answered, or why nothing did.
    pub try_store: fn(&StoreConfig) -> Result<String, String>,
}

/// The command line as a whole, for help pages, man pages and completions.
pub fn command() -> clap::Command {
    Args::command()
}

/// Parses a command line, does what it says, prints the answer, and tells the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>, hooks: Hooks) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let args = match Args::try_parse_from(&arguments) {
        Ok(args) => args,
        Err(error) => return refuse(&error, &arguments),
    };
    let output = Output::new(args.json);
    match execute(args, hooks, &output) {
        Ok(exit) => exit,
        Err(failure) => {
            output.failure(&failure);
            Exit::from(failure.code)
        }
    }
}

/// Help and version are answers; anything else that clap says is a usage error.
fn refuse(error: &clap::Error, arguments: &[OsString]) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return Exit::OK;
    }
    if arguments.iter().any(|word| word == "-j" || word == "--json") {
        let text = error.to_string();
        let message = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        let failure = Failure::new(ErrorCode::Usage, message).hint("pico-agent --help");
        Output::new(true).failure(&failure);
    } else {
        let _ = error.print();
    }
    Exit::USAGE
}

fn execute(args: Args, hooks: Hooks, output: &Output) -> Result<Exit, Failure> {
    match args.command {
        Command::Run { config, logging } => {
            start_logging(&logging)?;
            let config = load(&config_path(config.config)?)?;
            (hooks.run)(config)?;
            Ok(Exit::OK)
        }
        Command::Cleanup { config, logging } => {
            start_logging(&logging)?;
            let config = load(&config_path(config.config)?)?;
            let removed = (hooks.cleanup)(config)?;
            output.document(&json!({ "removed": removed }), || match removed.is_empty() {
                true => "nothing was left\n".to_owned(),
                false => removed.iter().map(|line| format!("removed {line}\n")).collect(),
            })
        }
        Command::Join { config, token_file } => {
            let config = load(&config_path(config.config)?)?;
            let token = std::fs::read_to_string(&token_file).map_err(|error| {
                let message = format!("cannot read {} ({error})", token_file.display());
                Failure::new(ErrorCode::Config, message).hint("write the hub's join token into it")
            })?;
            let id = (hooks.join)(config, token.trim().to_owned())?;
            output.document(&json!({ "agent_id": id }), || format!("joined as {id}\n"))
        }
        Command::Config {
            command: ConfigCommand::Check { file },
        } => {
            let path = config_path(file)?;
            let config = load(&path)?;
            let apps: Vec<&str> = config.apps.iter().map(|app| app.name.as_str()).collect();
            output.document(&json!({ "config": path, "apps": apps }), || {
                format!("{} is fine: {} app(s)\n", path.display(), apps.len())
            })
        }
        Command::Doctor { config, strict } => doctor(config.config, strict, hooks, output),
        Command::Version => version(output),
        Command::Status { agent } => match client(&agent)?.call(&Request::Status)? {
            Response::Status(status) => {
                output.document(&json!({ "agent": status }), || output::status(&status))
            }
            other => Err(unexpected(&other)),
        },
        Command::App { agent, command } => app(&agent, command, output),
    }
}

fn app(agent: &args::Agent, command: AppCommand, output: &Output) -> Result<Exit, Failure> {
    let client = client(agent)?;
    let request = match command {
        AppCommand::Logs(logs) => return self::logs(agent, logs, output),
        AppCommand::List => Request::List,
        AppCommand::Show { name } => Request::Show { name },
        AppCommand::Explain { name } => Request::Explain { name },
        AppCommand::Start { name } => Request::Start { name },
        AppCommand::Stop { name } => Request::Stop { name },
        AppCommand::Restart { name } => Request::Restart { name },
        AppCommand::Sleep { name, to, detach } => Request::Sleep {
            name,
            to: to.into(),
            wait: !detach,
        },
        AppCommand::Wake { name } => Request::Wake { name },
    };
    match client.call(&request)? {
        Response::Apps { apps } => output.document(&json!({ "apps": apps }), || output::list(&apps)),
        Response::Detail { app } => output.document(&json!({ "app": app }), || output::detail(&app)),
        Response::Explained(told) => output.document(&json!(told), || output::explained(&told)),
        Response::App { app } => output.document(&json!({ "app": app }), || output::changed(&app)),
        other => Err(unexpected(&other)),
    }
}

fn logs(agent: &args::Agent, logs: args::Logs, output: &Output) -> Result<Exit, Failure> {
    let args::Logs {
        name,
        lines,
        follow,
        stream,
        timestamps,
    } = logs;
    let stream = stream.map(Into::into);
    let request = Request::Logs {
        name: name.clone(),
        lines,
        follow,
        stream,
    };
    // Between two lines of a followed log lies any time.
    let client = Client::new(&socket(agent)?, if follow { None } else { timeout(agent) });
    let mut stdout = io::stdout().lock();
    let mut collected = Vec::new();
    let outcome = client.logs(&request, |line| match (output.json(), follow) {
        (true, false) => {
            collected.push(line);
            Ok(())
        }
        (true, true) => {
            let line = json!({ "schema": protocol::SCHEMA, "app": name, "line": line });
            writeln!(stdout, "{line}")?;
            stdout.flush()
        }
        (false, _) => {
            if timestamps {
                let time = line.time.map(|time| time.to_string()).unwrap_or_default();
                write!(stdout, "{time} {} ", line.stream)?;
            }
            writeln!(stdout, "{}", line.text)?;
            if follow { stdout.flush() } else { Ok(()) }
        }
    });
    drop(stdout);
    match outcome {
        // `pico-agent app logs NAME | head` has seen enough: that is no failure.
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::OK),
        Err(error) => Err(error.into()),
        Ok(()) if output.json() && !follow => {
            output.document(&json!({ "app": name, "lines": collected }), String::new)
        }
        Ok(()) => Ok(Exit::OK),
    }
}

fn doctor(config: Option<PathBuf>, strict: bool, hooks: Hooks, output: &Output) -> Result<Exit, Failure> {
    // Without a configuration the host can be examined all the same.
    let path = match config {
        Some(path) => Some(path),
        None => Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists()),
    };
    let config = path.as_deref().map(load).transpose()?;
    let inputs = config.as_ref().map(doctor::Inputs::of).unwrap_or_default();
    let mut rows = doctor::examine(&inputs);
    if let Some(store) = config.as_ref().and_then(|config| config.store.as_ref()) {
        rows.push(doctor::store((hooks.try_store)(store)));
    }
    let worst = doctor::worst(&rows);
    output.document(&json!({ "verdict": worst, "rows": rows }), || {
        output::doctor(&rows)
    })?;
    Ok(match worst {
        Verdict::Fail => Exit::UNSUPPORTED,
        Verdict::Warn if strict => Exit::FAILURE,
        Verdict::Warn | Verdict::Ok => Exit::OK,
    })
}

fn version(output: &Output) -> Result<Exit, Failure> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let criu = crate::config::criu_candidates(None)
        .iter()
        .find_map(|path| Criu::at(path).ok()?.version().ok());
    let (agent, kernel) = (env!("CARGO_PKG_VERSION"), kernel.trim());
    let document = json!({ "version": agent, "protocol": protocol::VERSION, "kernel": kernel, "criu": criu });
    output.document(&document, || {
        let criu = criu.as_deref().unwrap_or("not found");
        format!(
            "pico-agent {agent}\nprotocol {}\nkernel {kernel}\ncriu {criu}\n",
            protocol::VERSION
        )
    })
}

/// What a log of the agent itself looks like; PICO_LOG overrides (`debug`, `pico_agent::gate=trace`).
fn start_logging(logging: &Logging) -> Result<(), Failure> {
    use tracing_subscriber::EnvFilter;
    let level = match logging.verbose {
        0 => "pico_agent=info,warn",
        1 => "pico_agent=debug,info",
        _ => "pico_agent=trace,debug",
    };
    let filter = EnvFilter::try_from_env("PICO_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match logging.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| Failure::new(ErrorCode::Failed, format!("cannot start logging ({error})")))
}

fn config_path(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    given.map_or_else(
        || match Path::new(DEFAULT_PATH) {
            path if path.exists() => Ok(path.to_owned()),
            path => Err(Failure::new(
                ErrorCode::Config,
                format!("no configuration is named, and there is no {}", path.display()),
            )
            .hint("name one: --config FILE")),
        },
        Ok,
    )
}

fn load(path: &Path) -> Result<Config, Failure> {
    Ok(Config::load(path)?)
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let hint = match &error {
            ConfigError::Read { .. } => "name another: --config FILE",
            // Each problem has its own remedy in its line.
            ConfigError::Invalid { .. } => "",
        };
        Failure::new(ErrorCode::Config, error.to_string()).hint(hint)
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        let text = error.to_string();
        let (message, hint) = text.split_once("; try: ").unwrap_or((&text, ""));
        let code = match &error {
            LockError::Held { .. } => ErrorCode::Busy,
            LockError::Io { .. } => ErrorCode::Failed,
        };
        Failure::new(code, message).hint(hint)
    }
}

fn client(agent: &args::Agent) -> Result<Client, Failure> {
    Ok(Client::new(&socket(agent)?, timeout(agent)))
}

fn timeout(agent: &args::Agent) -> Option<std::time::Duration> {
    match agent.timeout {
        Wait::After(duration) => Some(duration),
        Wait::Never => None,
    }
}

/// The socket named, else the one of the configuration named, else the default ones of both.
fn socket(agent: &args::Agent) -> Result<PathBuf, Failure> {
    if let Some(socket) = &agent.socket {
        return Ok(socket.clone());
    }
    let default = Path::new(DEFAULT_PATH);
    let state_dir = match &agent.config.config {
        Some(path) => Config::state_dir_of(path)?,
        None if default.exists() => Config::state_dir_of(default)?,
        None => DEFAULT_STATE_DIR.into(),
    };
    Ok(state_dir.join("agent.sock"))
}

fn unexpected(response: &Response) -> Failure {
    Failure::new(
        ErrorCode::Failed,
        format!("the agent answered something else ({response:?})"),
    )
    .hint("use the pico-agent of the same version as the running agent")
}
