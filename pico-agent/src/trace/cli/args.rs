//! What may be written on the command line, and its help pages. What follows a command are words in pairs, as `ip` and
//! `bpftool` have them; `words` reads those.

use std::path::PathBuf;

use clap::builder::StyledStr;
use clap::{Parser, Subcommand, ValueEnum};

use crate::cli::exit;

fn more(examples: &str) -> StyledStr {
    let lines = examples
        .lines()
        .map(|line| format!("\n  {line}"))
        .collect::<String>();
    format!("Examples:{lines}\n\n{}", exit::help()).into()
}

/// Shows what apps touch, and what is learned of it.
///
/// An app's trace and sets are named by `app NAME` (the agent tells where they lie) or `file FILE`. Words may be
/// abbreviated as long as they are unique.
#[derive(Debug, Parser)]
#[command(
    name = "pico-trace",
    version,
    infer_subcommands = true,
    subcommand_required = true,
    after_help = more("pico-trace set show app web port 80/tcp\npico-trace predict eval file web.trace"),
)]
pub(super) struct Args {
    /// Print one JSON document ("schema": "pico.v1"), errors included, instead of text
    #[arg(short, long, global = true)]
    pub(super) json: bool,
    /// As -j, indented
    #[arg(short, long, global = true)]
    pub(super) pretty: bool,
    /// The agent's control socket [default: agent.sock in the default state_dir]
    #[arg(long, env = "PICO_AGENT_SOCKET", global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) object: Object,
}

/// What to look at.
#[derive(Debug, Subcommand)]
pub(super) enum Object {
    /// The eBPF programs of the agent that are loaded
    #[command(infer_subcommands = true, subcommand_required = true,
        after_help = more("pico-trace prog list\npico-trace -p prog show"))]
    Prog {
        #[command(subcommand)]
        command: ProgCommand,
    },
    /// The maps of these programs
    #[command(infer_subcommands = true, subcommand_required = true,
        after_help = more("pico-trace map list\npico-trace -p map show"))]
    Map {
        #[command(subcommand)]
        command: MapCommand,
    },
    /// Everything in a trace
    #[command(infer_subcommands = true, subcommand_required = true,
        after_help = more("pico-trace event tracelog app web type recv\npico-trace -j event tracelog file web.trace"))]
    Event {
        #[command(subcommand)]
        command: EventCommand,
    },
    /// The page faults in a trace
    #[command(infer_subcommands = true, subcommand_required = true,
        after_help = more("pico-trace fault top app web vma\npico-trace fault list file web.trace port 80/tcp"))]
    Fault {
        #[command(subcommand)]
        command: FaultCommand,
    },
    /// ActiveSets: which pages the requests of each port need
    #[command(infer_subcommands = true, subcommand_required = true,
        after_help = more("pico-trace set list app web\npico-trace set show app web port 80/tcp -o heatmap"))]
    Set {
        #[command(subcommand)]
        command: SetCommand,
    },
    /// How well predictors do
    #[command(infer_subcommands = true, subcommand_required = true,
        after_help = more("pico-trace predict eval file web.trace\npico-trace -p predict eval app web port 80/tcp"))]
    Predict {
        #[command(subcommand)]
        command: PredictCommand,
    },
    /// What this kernel lets the agent see
    #[command(infer_subcommands = true, subcommand_required = true,
        after_help = more("pico-trace feature probe\npico-trace -j feature probe"))]
    Feature {
        #[command(subcommand)]
        command: FeatureCommand,
    },
}

/// What to do with programs.
#[derive(Debug, Subcommand)]
pub(super) enum ProgCommand {
    /// List them, with how often and how long they ran where the kernel counts that
    #[command(visible_aliases = ["show", "ls", "stats"],
        after_help = more("pico-trace prog list\nsysctl kernel.bpf_stats_enabled=1; pico-trace prog stats"))]
    List,
}

/// What to do with maps.
#[derive(Debug, Subcommand)]
pub(super) enum MapCommand {
    /// List them with type and size
    #[command(visible_aliases = ["show", "ls"], after_help = more("pico-trace map list\npico-trace -j map list"))]
    List,
}

/// What to do with events.
#[derive(Debug, Subcommand)]
pub(super) enum EventCommand {
    /// Print the events, one a line; with -j as JSON lines
    #[command(after_help = more(
        "pico-trace event tracelog app web\npico-trace event tracelog file web.trace type fault port 80/tcp"))]
    Tracelog {
        /// { app NAME | file FILE } [type TYPE] [port N/PROTO]
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
}

/// What to do with faults.
#[derive(Debug, Subcommand)]
pub(super) enum FaultCommand {
    /// List the faults in their order
    #[command(visible_aliases = ["show", "ls"],
        after_help = more("pico-trace fault list app web\npico-trace fault list file web.trace port none since 50ms"))]
    List {
        /// { app NAME | file FILE } [port { N/PROTO | none }] [since TIME]
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Count the faults by page, or by mapping, most first
    #[command(after_help = more("pico-trace fault top app web\npico-trace fault top file web.trace vma"))]
    Top {
        /// { app NAME | file FILE } [port { N/PROTO | none }] [since TIME], and vma to count mappings
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Print everything known of each fault
    #[command(after_help = more("pico-trace fault dump app web\npico-trace -j fault dump file web.trace"))]
    Dump {
        /// { app NAME | file FILE } [port { N/PROTO | none }] [since TIME]
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
}

/// What to do with sets.
#[derive(Debug, Subcommand)]
pub(super) enum SetCommand {
    /// List an app's sets: ports, pages, how well they are known
    #[command(visible_alias = "ls", after_help = more("pico-trace set list app web\npico-trace set list file web.sets"))]
    List {
        /// { app NAME | file FILE }
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Show the pages of a set: of one port, of the work of no port, or of all
    #[command(after_help = more(
        "pico-trace set show app web port 80/tcp\npico-trace set show file web.sets -o heatmap --svg web.svg"))]
    Show {
        /// { app NAME | file FILE } [port { N/PROTO | none | any }] [trace FILE]
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
        /// How
        #[arg(short, long, value_enum, default_value_t = Form::Table)]
        output: Form,
        /// Draw the address space into this file, too
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Compare two sets; exits with 0 when they are the same and with 1 when they differ
    #[command(after_help = more(
        "pico-trace set diff app web port 80/tcp with port 443/tcp\npico-trace set diff file a.sets with file b.sets"))]
    Diff {
        /// { app NAME | file FILE } [port P] with [{ app NAME | file FILE }] [port P]
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Put the sets of two files together into a third; both must be of one life of an app
    #[command(after_help = more(
        "pico-trace set merge file a.sets with file b.sets to c.sets\npico-trace set merge app web with file a.sets to b.sets"))]
    Merge {
        /// { app NAME | file FILE } with { app NAME | file FILE } to FILE
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Copy sets into a file, checked
    #[command(after_help = more("pico-trace set export app web to web.sets\npico-trace set export file a.sets to b.sets"))]
    Export {
        /// { app NAME | file FILE } to FILE
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Replace an app's sets by those of a file; the app must be asleep, and the file of its present life
    #[command(after_help = more("pico-trace set import app web from web.sets\npico-trace set import file a.sets from b.sets"))]
    Import {
        /// { app NAME | file FILE } from FILE
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Forget a port's set, or all; the app must be asleep
    #[command(after_help = more("pico-trace set reset app web port 80/tcp\npico-trace set reset app web"))]
    Reset {
        /// { app NAME | file FILE } [port { N/PROTO | none }]
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
}

/// How a set is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// Ranges of pages
    Table,
    /// The address space, drawn
    Heatmap,
}

/// What to do with predictors.
#[derive(Debug, Subcommand)]
pub(super) enum PredictCommand {
    /// Replay a trace through every predictor: each wake is predicted, then learned from
    #[command(after_help = more(
        "pico-trace predict eval file web.trace\npico-trace predict eval app web port 80/tcp tier warm warmup 4"))]
    Eval {
        /// { app NAME | file FILE } [port N/PROTO] [warmup WINDOWS] [tier { warm | cold }] [miss-us N] [ahead-us N]
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
}

/// What to do with features.
#[derive(Debug, Subcommand)]
pub(super) enum FeatureCommand {
    /// Try what tracing needs: program types, map types, tracepoints
    #[command(after_help = more("pico-trace feature probe\npico-trace -j feature probe"))]
    Probe,
}

impl Object {
    /// The words after the command.
    pub(super) fn words(&self) -> Option<&[String]> {
        Some(match self {
            Object::Event {
                command: EventCommand::Tracelog { words },
            } => words,
            Object::Fault { command } => match command {
                FaultCommand::List { words } | FaultCommand::Top { words } | FaultCommand::Dump { words } => {
                    words
                }
            },
            Object::Set { command } => command.words(),
            Object::Predict {
                command: PredictCommand::Eval { words },
            } => words,
            Object::Prog { .. } | Object::Map { .. } | Object::Feature { .. } => return None,
        })
    }

    /// Object and command in full.
    pub(super) fn path(&self) -> Vec<&'static str> {
        match self {
            Object::Prog { .. } => vec!["prog", "list"],
            Object::Map { .. } => vec!["map", "list"],
            Object::Event { .. } => vec!["event", "tracelog"],
            Object::Fault { command } => match command {
                FaultCommand::List { .. } => vec!["fault", "list"],
                FaultCommand::Top { .. } => vec!["fault", "top"],
                FaultCommand::Dump { .. } => vec!["fault", "dump"],
            },
            Object::Set { command } => vec!["set", command.name()],
            Object::Predict { .. } => vec!["predict", "eval"],
            Object::Feature { .. } => vec!["feature", "probe"],
        }
    }
}

impl SetCommand {
    fn words(&self) -> &[String] {
        match self {
            SetCommand::List { words }
            | SetCommand::Show { words, .. }
            | SetCommand::Diff { words }
            | SetCommand::Merge { words }
            | SetCommand::Export { words }
            | SetCommand::Import { words }
            | SetCommand::Reset { words } => words,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            SetCommand::List { .. } => "list",
            SetCommand::Show { .. } => "show",
            SetCommand::Diff { .. } => "diff",
            SetCommand::Merge { .. } => "merge",
            SetCommand::Export { .. } => "export",
            SetCommand::Import { .. } => "import",
            SetCommand::Reset { .. } => "reset",
        }
    }
}
