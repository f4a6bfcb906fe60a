//! `pico`, the owner's command line: what may be written (`args`), where the hub is (`settings`, `connect`), what each
//! object's commands do (`app`, `apply`, `event`, `token`, `agent`), how answers look (`output`, `view`) and with which
//! exit code ([`exit`]). It speaks the API and knows nothing of the hub's inside.

mod agent;
mod app;
mod apply;
mod args;
mod connect;
mod event;
mod exec;
pub mod exit;
mod failure;
mod handle;
mod output;
mod settings;
mod spec;
mod token;
mod view;

use std::ffi::OsString;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use clap_complete::Shell as Generator;
use pico_proto::units::Wait;
use pico_proto::v1;
use pico_proto::v1::operation_service_client::OperationServiceClient;
use serde_json::json;
use tonic::{Code, Request};

use args::{Cli, Command, ConfigCommand, Shell, Waiting};
use connect::{Hub, connect};
use exit::Exit;
use failure::{Failure, Result};
use output::{Answer, Output, table};
use settings::Settings;

/// For calls that only ask, or only begin something.
const CALL: Duration = Duration::from_secs(30);
/// A deadline that a wait without end is asked again after.
const LONG: Duration = Duration::from_secs(600);

/// The command line as a whole, for help pages, man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses a command line, does what it says, prints the answer, and tells the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, &arguments),
    };
    let output = Output::new(&cli.common);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure = Failure::new("FAILED", Exit::FAILURE, format!("cannot begin ({error})"));
            output.failure(&failure);
            return failure.exit;
        }
    };
    let done = runtime.block_on(async {
        tokio::select! {
            done = execute(cli, output) => done,
            _ = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
        }
    });
    // A thread may still wait for standard input.
    runtime.shutdown_background();
    match done {
        Ok(exit) => exit,
        Err(failure) if failure.exit == Exit::OK => Exit::OK,
        Err(failure) => {
            output.failure(&failure);
            failure.exit
        }
    }
}

/// Help and version are answers; anything else that clap says is a usage error.
fn refuse(error: &clap::Error, arguments: &[OsString]) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Whoever stopped reading has seen enough.
        let _ = error.print();
        return Exit::OK;
    }
    let json = ["-j", "--json", "-p", "--pretty"];
    if arguments.iter().any(|word| json.iter().any(|flag| word == flag)) {
        let text = error.to_string();
        let message = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        let output = Output {
            json: true,
            pretty: false,
            quiet: false,
            wide: false,
        };
        output.failure(&Failure::usage(message).hint("pico --help"));
    } else {
        let _ = error.print();
    }
    Exit::USAGE
}

/// What every command has at hand.
struct Context {
    hub: Hub,
    owner: Option<String>,
    output: Output,
}

async fn execute(cli: Cli, output: Output) -> Result<Exit> {
    let settings = || Settings::read(&cli.common, |name| std::env::var(name).ok());
    match &cli.command {
        Command::Completion { shell } => return completion(*shell),
        Command::Version => return version(output),
        Command::Config {
            command: ConfigCommand::Show { origin },
        } => return show_settings(&settings()?, *origin, output),
        _ => {}
    }
    let settings = settings()?;
    let context = Context {
        hub: connect(&settings).await?,
        owner: settings.owner.value,
        output,
    };
    match cli.command {
        Command::App { command } => app::run(&context, command).await,
        Command::Apply {
            file,
            dry_run,
            waiting,
        } => apply::run(&context, &file, dry_run, &waiting).await,
        Command::Event { command } => event::run(&context, command).await,
        Command::Token { command } => token::run(&context, command).await,
        Command::Agent { command } => agent::run(&context, command).await,
        // Answered above, without a hub.
        Command::Completion { .. } | Command::Version | Command::Config { .. } => Ok(Exit::OK),
    }
}

impl Context {
    fn print(&self, answer: &Answer) -> Result<Exit> {
        self.output.print(answer).map(|()| Exit::OK)
    }

    /// Waits for an operation, and prints what it has become.
    async fn finish(&self, begun: v1::Operation, subject: &str, waiting: &Waiting) -> Result<Exit> {
        let operation = self.settle(begun, waiting).await?;
        self.print(&view::operation(&operation, subject))
    }

    /// Waits for an operation, unless it was asked not to.
    ///
    /// # Errors
    /// When it fails, and when it is not done in time; it goes on then.
    async fn settle(&self, begun: v1::Operation, waiting: &Waiting) -> Result<v1::Operation> {
        let mut operation = begun;
        if !operation.done && !waiting.detach {
            let mut client = OperationServiceClient::new(self.hub.clone());
            let id = operation.id.clone();
            let waited = patiently(waiting.wait_timeout, |deadline| {
                let request = within(v1::WaitOperationRequest { id: id.clone() }, deadline);
                let mut client = client.clone();
                async move { client.wait_operation(request).await }
            });
            operation = match waited.await {
                Ok(done) => done,
                Err(status) if status.code() == Code::DeadlineExceeded => {
                    // It may have been done just then.
                    let request = within(v1::GetOperationRequest { id: id.clone() }, CALL);
                    let now = client.get_operation(request).await?.into_inner();
                    if !now.done {
                        let told = format!(
                            "{} is not done after {}; it goes on as operation {id}",
                            now.verb, waiting.wait_timeout
                        );
                        return Err(Failure::new("TIMEOUT", Exit::TIMEOUT, told).hint("--wait-timeout TIME"));
                    }
                    now
                }
                Err(status) => return Err(status.into()),
            };
        }
        match operation.error.clone() {
            Some(error) if operation.done => Err(Failure::operation(error)),
            _ => Ok(operation),
        }
    }
}

/// Asks until there is an answer other than "not yet", for as long as `patience` says.
async fn patiently<T, F>(patience: Wait, ask: impl Fn(Duration) -> F) -> std::result::Result<T, tonic::Status>
where
    F: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
{
    loop {
        let deadline = match patience {
            Wait::Never => LONG,
            Wait::After(patience) => patience,
        };
        // The hub keeps the deadline; beside a hub that is gone, so does this side, a little later.
        let asked = tokio::time::timeout(deadline + CALL, ask(deadline)).await;
        let answer = asked.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer")));
        match answer {
            // tonic's own clock says "cancelled" where the hub's would say that the deadline is over.
            Err(status) if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) => {
                match patience {
                    Wait::Never => {}
                    Wait::After(_) => return Err(tonic::Status::deadline_exceeded(status.message())),
                }
            }
            answer => return answer.map(tonic::Response::into_inner),
        }
    }
}

/// A request with a deadline.
fn within<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// A request for an answer that comes at once.
fn call<T>(message: T) -> Request<T> {
    within(message, CALL)
}

/// Asks before what cannot be undone. Where nobody can be asked, `--yes` is needed.
fn confirm(what: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(
            Failure::usage(format!("{what} cannot be undone, and nobody can be asked")).hint("--yes"),
        );
    }
    let mut stderr = io::stderr().lock();
    let mut answer = String::new();
    let asked = write!(stderr, "{what}? It cannot be undone. [y/N] ").and_then(|()| stderr.flush());
    asked
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|error| Failure::usage(format!("cannot ask ({error})")).hint("--yes"))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new("NOT_CONFIRMED", Exit::FAILURE, "nothing was done")),
    }
}

/// Reads a file of at most so many bytes; `-` is standard input.
fn read_file(path: &Path, most: u64) -> Result<String> {
    let wrong =
        |what: &dyn std::fmt::Display| Failure::usage(format!("cannot read {} ({what})", path.display()));
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => io::stdin().lock().take(most + 1).read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(most + 1).read_to_string(&mut text)),
    };
    let length = read.map_err(|error| wrong(&error))?;
    match u64::try_from(length).is_ok_and(|length| length <= most) {
        true => Ok(text),
        false => Err(wrong(&format_args!("it has more than {most} bytes"))),
    }
}

/// A request id of one's own: the same create, sent again, makes one app.
fn request_id() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    let part = || RandomState::new().hash_one((std::process::id(), std::time::SystemTime::now()));
    format!("{:016x}{:016x}", part(), part())
}

fn completion(shell: Shell) -> Result<Exit> {
    let generator = match shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut command(), "pico", &mut script);
    output::write_out(&mut io::stdout().lock(), &script).map(|()| Exit::OK)
}

fn version(output: Output) -> Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    let answer = Answer {
        document: json!({ "version": { "pico": version, "api": "pico.v1" } }),
        text: format!("pico {version}, API pico.v1\n"),
        names: vec![version.to_owned()],
    };
    output.print(&answer).map(|()| Exit::OK)
}

fn show_settings(settings: &Settings, origin: bool, output: Output) -> Result<Exit> {
    let all = settings.all();
    let mut header = vec!["SETTING", "VALUE"];
    if origin {
        header.push("ORIGIN");
    }
    let rows = all.iter().map(|setting| {
        let value = setting.value.clone().unwrap_or_else(|| "-".to_owned());
        let mut row = vec![setting.name.to_owned(), value];
        if origin {
            row.push(setting.origin.clone());
        }
        row
    });
    let entries: serde_json::Map<_, _> = all
        .iter()
        .map(|setting| {
            let entry = json!({ "value": setting.value, "origin": setting.origin });
            (setting.name.to_owned(), entry)
        })
        .collect();
    let answer = Answer {
        document: json!({ "config": entries }),
        text: table(&header, rows),
        names: all.iter().map(|setting| setting.name.to_owned()).collect(),
    };
    output.print(&answer).map(|()| Exit::OK)
}
