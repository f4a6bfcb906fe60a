//! What may be written on the command line, and its help pages.

use std::path::PathBuf;

use clap::builder::StyledStr;
use clap::{Args, Parser, Subcommand, ValueEnum};
use pico_proto::units::Wait;

use super::exit;
use super::handle::App;
use super::spec::Options;

/// The end of a help page: examples, then exit codes.
fn more(examples: &str) -> StyledStr {
    let lines = examples
        .lines()
        .map(|line| format!("\n  {line}"))
        .collect::<String>();
    format!("Examples:{lines}\n\n{}", exit::help()).into()
}

/// Registers apps that sleep when they are idle, and steers them through the hub.
#[derive(Debug, Parser)]
#[command(
    name = "pico",
    version,
    infer_subcommands = true,
    subcommand_required = true,
    after_help = more("pico app create web --root /srv/web --port 80/tcp -- nginx -g 'daemon off;'\npico app list\npico help app create"),
)]
pub struct Cli {
    /// How to reach the hub, and how to answer.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Print one JSON document ("schema": "pico.v1"), errors included; what follows prints one a line
    #[arg(short, long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Print JSON, indented
    #[arg(short, long, global = true, help_heading = "Output")]
    pub pretty: bool,
    /// Print only names or ids, one a line
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Print in this form
    #[arg(short, long, global = true, value_name = "FORM", help_heading = "Output")]
    pub output: Option<Form>,
    /// The hub: http://HOST:PORT, https://HOST:PORT or unix:PATH [env: PICO_HUB] [default: http://127.0.0.1:7071]
    #[arg(long, global = true, value_name = "ADDRESS", help_heading = "Hub")]
    pub hub: Option<String>,
    /// File with your token [env: PICO_TOKEN_FILE; PICO_TOKEN has the token itself]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Hub")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the authority of the hub's certificate, for https [env: PICO_CA]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Hub")]
    pub ca: Option<PathBuf>,
    /// Whose apps, for administrators [env: PICO_OWNER]
    #[arg(long, global = true, value_name = "OWNER", help_heading = "Hub")]
    pub owner: Option<String>,
    /// File with `hub`, `token_file`, `ca`, `owner` [env: PICO_CONFIG] [default: /etc/pico/pico.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Hub")]
    pub config: Option<PathBuf>,
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// More columns
    Wide,
    /// As --quiet
    Name,
    /// As --json
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Apps
    #[command(infer_subcommands = true, subcommand_required = true, arg_required_else_help = true,
        after_help = more("pico app list\npico app explain web"))]
    App {
        /// What to do.
        #[command(subcommand)]
        command: AppCommand,
    },
    /// Make an app as a file says: register it, or change it, or leave it
    #[command(after_help = more("pico apply -f app.toml\npico apply -f app.toml --dry-run"))]
    Apply {
        /// The app.toml; `-` reads standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Change nothing; say what would be done, and exit with 1 if anything
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// What happens
    #[command(infer_subcommands = true, subcommand_required = true, arg_required_else_help = true,
        after_help = more("pico event follow\npico -j event list"))]
    Event {
        /// What to do.
        #[command(subcommand)]
        command: EventCommand,
    },
    /// Who may call
    #[command(infer_subcommands = true, subcommand_required = true, arg_required_else_help = true,
        after_help = more("pico token whoami\npico token create --owner ann"))]
    Token {
        /// What to do.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Hosts that run apps
    #[command(infer_subcommands = true, subcommand_required = true, arg_required_else_help = true,
        after_help = more("pico agent join-token\npico agent list"))]
    Agent {
        /// What to do.
        #[command(subcommand)]
        command: AgentCommand,
    },
    /// These settings
    #[command(infer_subcommands = true, subcommand_required = true, arg_required_else_help = true,
        after_help = more("pico config show --origin\nPICO_HUB=unix:/run/pico/hub.sock pico config show"))]
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Versions of this program and of the API it speaks
    #[command(after_help = more("pico version\npico -j version"))]
    Version,
    /// Print completions for a shell
    #[command(after_help = more("pico completion bash >/etc/bash_completion.d/pico\npico completion fish"))]
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// A shell with completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// Bash
    Bash,
    /// Zsh
    Zsh,
    /// Fish
    Fish,
}

/// How long a command that changes something waits for it.
#[derive(Debug, Clone, Args)]
pub struct Waiting {
    /// Do not wait: print the operation and leave
    #[arg(long)]
    pub detach: bool,
    /// Wait for so long, or `never` give up; what was begun goes on
    #[arg(long, value_name = "TIME", default_value = "2m")]
    pub wait_timeout: Wait,
}

/// What to do with an app.
#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// Register an app and start it
    #[command(after_help = more("pico app create web --root host --port 80/tcp -- nginx -g 'daemon off;'\npico app create db --root /srv/db --port 6379/tcp --memory 256M --idle 5m -- redis-server"))]
    Create {
        /// Its name: lower-case letters, digits, inner hyphens
        name: String,
        #[command(flatten)]
        options: Box<Options>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// List apps
    #[command(visible_alias = "ls", after_help = more("pico app list\npico app list -o wide"))]
    List,
    /// Show everything about an app
    #[command(after_help = more("pico app show web\npico -j app show id 7c9e"))]
    Show(App),
    /// Tell an app's state; exits with 3 when it is not hot
    #[command(after_help = more("pico app status web\npico app status web -q && echo awake"))]
    Status(App),
    /// Change what is said of an app; the other settings stay
    #[command(after_help = more("pico app update web --memory 512M\npico app update web --idle never"))]
    Update {
        /// Its name
        name: String,
        #[command(flatten)]
        options: Box<Options>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Start a stopped or failed app anew; wake one that sleeps
    #[command(after_help = more("pico app start web\npico app start web --detach"))]
    Start(Change),
    /// End an app; packets do not wake it any more
    #[command(after_help = more("pico app stop web\npico app stop web --wait-timeout 30s"))]
    Stop(Change),
    /// End an app and start it anew, from its files
    #[command(after_help = more("pico app restart web\npico app restart id 7c9e"))]
    Restart(Change),
    /// Put an app to sleep now
    #[command(after_help = more("pico app sleep web\npico app sleep web --to cold"))]
    Sleep {
        #[command(flatten)]
        change: Change,
        /// How deep
        #[arg(long, value_name = "DEPTH", default_value = "warm")]
        to: Depth,
    },
    /// Wake an app now
    #[command(after_help = more("pico app wake web\npico app wake web --wait-timeout 5s"))]
    Wake(Change),
    /// Wait until an app is as asked
    #[command(after_help = more("pico app wait web --state asleep\npico app wait web --wait-timeout never"))]
    Wait {
        #[command(flatten)]
        app: App,
        /// What to wait for
        #[arg(long, value_name = "STATE", default_value = "settled")]
        state: Condition,
        /// Wait for so long, or `never` give up
        #[arg(long, value_name = "TIME", default_value = "2m")]
        wait_timeout: Wait,
    },
    /// Print what an app printed
    #[command(after_help = more("pico app logs web\npico app logs web --lines 20 --follow"))]
    Logs {
        #[command(flatten)]
        app: App,
        /// The last so many lines
        #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 100)]
        lines: u32,
        /// Go on with what comes
        #[arg(short, long)]
        follow: bool,
        /// Only what it printed there
        #[arg(long, value_name = "STREAM", value_parser = ["stdout", "stderr"])]
        stream: Option<String>,
    },
    /// Run a command beside an app, in its sandbox; its output and exit status are passed on
    ///
    /// Through plain pipes: there is no terminal for it.
    #[command(after_help = more("pico app exec web -- ls -l /\necho PING | pico app exec db -- redis-cli"))]
    Exec {
        #[command(flatten)]
        app: App,
        /// Who it runs as
        #[arg(long, value_name = "USER[:GROUP]", default_value = "")]
        user: String,
        /// Where it runs
        #[arg(long, value_name = "DIR", default_value = "")]
        workdir: String,
        /// Command and arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Tell why an app is awake or asleep
    #[command(after_help = more("pico app explain web\npico -j app explain web"))]
    Explain(App),
    /// End an app and remove all that is kept of it, checkpoints included
    #[command(visible_alias = "rm", after_help = more("pico app delete web\npico app delete web --yes"))]
    Delete {
        #[command(flatten)]
        change: Change,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

/// A change of an app, and how long to wait for it.
#[derive(Debug, Args)]
pub struct Change {
    #[command(flatten)]
    pub(super) app: App,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

/// How deep an app sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Depth {
    /// Its process stays, frozen
    Dozing,
    /// A checkpoint on the host's disk
    Warm,
    /// A checkpoint in the object store
    Cold,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Condition {
    /// No change is under way
    Settled,
    /// It runs
    #[value(alias = "running")]
    Hot,
    /// It sleeps, warm or cold
    Asleep,
    /// It sleeps, in the store only
    Cold,
    /// It was ended
    Stopped,
}

/// What to do with events.
#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// Print events as they come
    #[command(after_help = more("pico event follow\npico event follow web"))]
    Follow {
        /// Only this app's
        app: Option<String>,
        /// First those after the event with this number
        #[arg(long, value_name = "NUMBER")]
        after: Option<u64>,
    },
    /// Print the events that are kept
    #[command(visible_alias = "ls", after_help = more("pico event list\npico event list web"))]
    List {
        /// Only this app's
        app: Option<String>,
    },
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; its secret is printed once, and never again
    #[command(after_help = more("pico token create --owner ann\npico token create --admin --lifetime 12h --note laptop"))]
    Create {
        /// For everything, instead of one owner's apps
        #[arg(long)]
        admin: bool,
        /// Ends after this long [default: never]
        #[arg(long, value_name = "TIME")]
        lifetime: Option<Wait>,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
    },
    /// List tokens, without their secrets
    #[command(visible_alias = "ls", after_help = more("pico token list\npico -j token list"))]
    List,
    /// End a token
    #[command(after_help = more("pico token revoke 3f2a\npico token revoke 3f2a --yes"))]
    Revoke {
        /// The token's id
        id: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Tell whose token you have
    #[command(after_help = more("pico token whoami\nPICO_TOKEN=... pico token whoami"))]
    Whoami,
}

/// What to do with agents.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// List agents
    #[command(visible_alias = "ls", after_help = more("pico agent list\npico -j agent list"))]
    List,
    /// Show an agent
    #[command(after_help = more("pico agent show host1\npico -j agent show host1"))]
    Show {
        /// Its name or id
        agent: String,
    },
    /// Make an agent unknown: its credential ends, its apps wait for another
    #[command(visible_alias = "rm", after_help = more("pico agent remove host1\npico agent remove host1 --yes"))]
    Remove {
        /// Its name or id
        agent: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Make a token with which one agent may join
    #[command(after_help = more("pico agent join-token\npico agent join-token --lifetime 10m"))]
    JoinToken {
        /// Ends after this long; an hour at most [default: an hour]
        #[arg(long, value_name = "TIME")]
        lifetime: Option<Wait>,
    },
}

/// What to do with the settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show the settings
    #[command(after_help = more("pico config show\npico config show --origin"))]
    Show {
        /// Say where each comes from
        #[arg(long)]
        origin: bool,
    },
}
