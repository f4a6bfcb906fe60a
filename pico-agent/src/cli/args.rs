//! What may be written on the command line, and its help pages.

use std::path::PathBuf;

use clap::builder::StyledStr;
use clap::{Parser, Subcommand, ValueEnum};

use super::exit;
use crate::lifecycle::state::Tier;
use crate::logs::Stream;
use crate::units::Wait;

/// The end of a help page: examples, then exit codes.
fn more(examples: &str) -> StyledStr {
    let lines = examples
        .lines()
        .map(|line| format!("\n  {line}"))
        .collect::<String>();
    format!("Examples:{lines}\n\n{}", exit::help()).into()
}

/// Runs apps that sleep when they are idle, and wakes them by their first packet.
#[derive(Debug, Parser)]
#[command(
    name = "pico-agent",
    version,
    infer_subcommands = true,
    subcommand_required = true,
    after_help = more("pico-agent doctor\npico-agent run --config agent.toml\npico-agent app list"),
)]
pub struct Args {
    /// Print one JSON document ("schema": "pico.v1"), errors included, instead of text
    #[arg(short, long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an agent in the foreground, until SIGTERM or Ctrl-C, with the apps of a configuration
    #[command(after_help = more(
        "pico-agent run --config agent.toml\npico-agent run --config agent.toml -v --log-format json"
    ))]
    Run {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        logging: Logging,
    },
    /// See and steer the apps of a running agent
    #[command(
        infer_subcommands = true,
        subcommand_required = true,
        after_help = more("pico-agent app list\npico-agent app show web\npico-agent app sleep web --to cold")
    )]
    App {
        #[command(flatten)]
        agent: Agent,
        /// What to do.
        #[command(subcommand)]
        command: AppCommand,
    },
    /// Show the running agent itself: its version, and how many apps are in which state
    #[command(after_help = more("pico-agent status\npico-agent -j status --socket /srv/pico/agent.sock"))]
    Status {
        #[command(flatten)]
        agent: Agent,
    },
    /// Examine this host: what the agent needs, what is there, and the command that mends what is not
    #[command(after_help = more("pico-agent doctor\npico-agent doctor --config agent.toml --strict"))]
    Doctor {
        #[command(flatten)]
        config: ConfigFile,
        /// Exit with 1 for a warning too
        #[arg(long)]
        strict: bool,
    },
    /// Make this host's agent known to the hub that its configuration names, by a token from the hub
    ///
    /// Once is enough: the agent keeps what the hub gives it. `join_token_file` in `[hub]` does the same at its start.
    #[command(after_help = more(
        "pico-agent join --token-file token\npico-agent -j join --config agent.toml --token-file token"
    ))]
    Join {
        #[command(flatten)]
        config: ConfigFile,
        /// A file with the token, as `pico agent join-token` prints it
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
    },
    /// Take away what a stopped agent left: processes, namespaces, devices, routes, mounts, cgroups
    ///
    /// Checkpoints, logs and the files of apps are kept: the next `run` goes on with them.
    #[command(after_help = more(
        "pico-agent cleanup --config agent.toml\npico-agent -j cleanup --config /etc/pico/agent.toml"
    ))]
    Cleanup {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        logging: Logging,
    },
    /// Look at a configuration
    #[command(
        infer_subcommands = true,
        subcommand_required = true,
        after_help = more("pico-agent config check agent.toml\npico-agent -j config check agent.toml")
    )]
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Show the versions of the agent, its protocol, the kernel and CRIU
    #[command(after_help = more("pico-agent version\npico-agent -j version"))]
    Version,
}

/// What to do with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration without running it, and tell all that is wrong with it
    #[command(after_help = more("pico-agent config check agent.toml\npico-agent config check"))]
    Check {
        /// The file [default: /etc/pico/agent.toml]
        #[arg(env = "PICO_AGENT_CONFIG")]
        file: Option<PathBuf>,
    },
}

/// What to do with an app.
#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// List all apps
    #[command(visible_alias = "ls", after_help = more("pico-agent app list\npico-agent -j app list"))]
    List,
    /// Show everything about an app: why it is awake or asleep, its checkpoint, its last wake and failure
    #[command(after_help = more("pico-agent app show web\npico-agent -j app show web"))]
    Show {
        /// The app
        name: String,
    },
    /// Tell why an app is awake or asleep: last packet, connections, what was filtered, its last wake phase by phase
    #[command(after_help = more("pico-agent app explain web\npico-agent -j app explain web"))]
    Explain {
        /// The app
        name: String,
    },
    /// Start a stopped or failed app anew, from its files; what it had in memory is given up
    #[command(after_help = more("pico-agent app start web\npico-agent -j app start web"))]
    Start {
        /// The app
        name: String,
    },
    /// End an app; packets do not wake it any more
    #[command(after_help = more("pico-agent app stop web\npico-agent app stop web --timeout 30s"))]
    Stop {
        /// The app
        name: String,
    },
    /// End an app and start it anew, from its files
    #[command(after_help = more("pico-agent app restart web\npico-agent -j app restart web"))]
    Restart {
        /// The app
        name: String,
    },
    /// Put an app to sleep now; its next packet wakes it
    #[command(after_help = more("pico-agent app sleep web\npico-agent app sleep web --to cold --timeout 2m"))]
    Sleep {
        /// The app
        name: String,
        /// How far
        #[arg(long, value_enum, default_value_t = To::Warm)]
        to: To,
        /// Return when it has begun, not when it is done
        #[arg(long)]
        detach: bool,
    },
    /// Wake a sleeping app now, without a packet; a failed one that has a checkpoint tries again
    #[command(after_help = more("pico-agent app wake web\npico-agent app wake web --timeout 10s"))]
    Wake {
        /// The app
        name: String,
    },
    /// Print what an app printed; works while it sleeps
    #[command(after_help = more("pico-agent app logs web\npico-agent app logs web -f -n 10 --stream stderr"))]
    Logs(Logs),
}

/// Which lines of a log, and how.
#[derive(Debug, clap::Args)]
pub struct Logs {
    /// The app
    pub name: String,
    /// How many of the last lines
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
    pub lines: usize,
    /// Go on as lines come
    #[arg(short, long)]
    pub follow: bool,
    /// Only this stream
    #[arg(long, value_enum)]
    pub stream: Option<StreamName>,
    /// Put the time and the stream before each line
    #[arg(short, long)]
    pub timestamps: bool,
}

/// How far an app sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum To {
    /// Its checkpoint stays on this host
    Warm,
    /// Its checkpoint is in object storage only
    Cold,
}

impl From<To> for Tier {
    fn from(to: To) -> Self {
        match to {
            To::Warm => Tier::Warm,
            To::Cold => Tier::Cold,
        }
    }
}

/// A stream of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StreamName {
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
}

impl From<StreamName> for Stream {
    fn from(name: StreamName) -> Self {
        match name {
            StreamName::Stdout => Stream::Stdout,
            StreamName::Stderr => Stream::Stderr,
        }
    }
}

/// The configuration of an agent.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigFile {
    /// The configuration [default: /etc/pico/agent.toml]
    #[arg(short, long, env = "PICO_AGENT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How a running agent is found.
#[derive(Debug, Clone, clap::Args)]
pub struct Agent {
    /// The agent's control socket [default: agent.sock in the state_dir of the configuration]
    #[arg(long, env = "PICO_AGENT_SOCKET", global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    #[command(flatten)]
    pub config: AgentConfig,
    /// How long to wait for the answer: 30s, 5m, "never"
    #[arg(long, global = true, default_value = "5m", value_name = "TIME")]
    pub timeout: Wait,
}

/// The configuration of the agent that is asked.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentConfig {
    /// The configuration that the agent runs with [default: /etc/pico/agent.toml]
    #[arg(short, long, env = "PICO_AGENT_CONFIG", global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What the agent tells of what it does, on standard error; PICO_LOG refines it.
#[derive(Debug, Clone, clap::Args)]
pub struct Logging {
    /// Tell more (-vv: everything)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// How each line is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    fn pages(command: &mut clap::Command, found: &mut Vec<String>) {
        found.push(command.render_long_help().to_string());
        for sub in command
            .get_subcommands_mut()
            .filter(|sub| sub.get_name() != "help")
        {
            pages(sub, found);
        }
    }

    #[test]
    fn every_help_page_has_examples_and_exit_codes() {
        let mut found = Vec::new();
        pages(&mut Args::command(), &mut found);
        assert!(found.len() > 15);
        for page in found {
            let (_, examples) = page.split_once("Examples:").unwrap_or_else(|| panic!("{page}"));
            assert!(
                examples
                    .lines()
                    .filter(|line| line.starts_with("  pico-agent "))
                    .count()
                    >= 2,
                "{page}"
            );
            assert!(examples.contains("Exit codes:"), "{page}");
        }
    }

    #[test]
    fn every_example_of_the_help_pages_parses() {
        let mut found = Vec::new();
        pages(&mut Args::command(), &mut found);
        for example in found.iter().flat_map(|page| page.lines()).filter_map(|line| {
            line.strip_prefix("  ")
                .filter(|line| line.starts_with("pico-agent ") && !line.contains('['))
        }) {
            Args::try_parse_from(example.split_whitespace())
                .unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }

    #[test]
    fn unique_prefixes_of_commands_are_understood_and_ambiguous_ones_refused() {
        let parse = |line: &str| Args::try_parse_from(line.split_whitespace()).map(|args| args.command);
        assert!(matches!(parse("pico-agent doc"), Ok(Command::Doctor { .. })));
        assert!(matches!(
            parse("pico-agent a li"),
            Ok(Command::App {
                command: AppCommand::List,
                ..
            })
        ));
        let ambiguous = parse("pico-agent app st web").unwrap_err().to_string();
        assert!(
            ambiguous.contains("start") && ambiguous.contains("stop"),
            "{ambiguous}"
        );
    }
}
