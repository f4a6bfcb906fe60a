//! `pico-trace`: the command line of traces and ActiveSets. Parses (`args`, `words`), reads files or asks the agent where
//! an app's are (`source`), and prints. Changes nothing but by `set merge`, `export`, `import` and `reset`.

mod args;
mod event;
mod fault;
mod feature;
mod heatmap;
mod kernel;
mod predict;
mod set;
mod source;
mod svg;
#[cfg(test)]
mod tests;
mod words;

use std::ffi::OsString;
use std::io::IsTerminal;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::cli::exit::Exit;
use crate::cli::output::Output;
use crate::control::protocol::{ErrorCode, Failure};
use args::{Args, EventCommand, FaultCommand, MapCommand, Object, PredictCommand, ProgCommand};

/// The command line as a whole, for help pages, man pages and completions.
pub fn command() -> clap::Command {
    Args::command()
}

/// Parses a command line, does what it says, prints the answer, and tells the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let args = match Args::try_parse_from(&arguments) {
        Ok(args) => args,
        Err(error) => return refuse(&error, &arguments),
    };
    // `help` after a command is its help page, as `help` before it is.
    if args
        .object
        .words()
        .and_then(<[String]>::last)
        .is_some_and(|word| word == "help")
    {
        return help(&args.object.path());
    }
    let output = match (args.json, args.pretty) {
        (_, true) => Output::pretty(),
        (json, false) => Output::new(json),
    };
    match execute(args, &output) {
        Ok(exit) => exit,
        Err(failure) => {
            output.failure(&failure);
            Exit::from(failure.code)
        }
    }
}

fn refuse(error: &clap::Error, arguments: &[OsString]) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return Exit::OK;
    }
    let json = ["-j", "-p", "--json", "--pretty"];
    if arguments.iter().any(|word| json.iter().any(|json| word == json)) {
        let text = error.to_string();
        let message = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        Output::new(true).failure(&Failure::new(ErrorCode::Usage, message).hint("pico-trace help"));
    } else {
        let _ = error.print();
    }
    Exit::USAGE
}

fn help(path: &[&str]) -> Exit {
    let mut command = Args::command();
    command.build();
    let mut found = &mut command;
    for word in path {
        match found.find_subcommand_mut(word) {
            Some(sub) => found = sub,
            None => return Exit::USAGE,
        }
    }
    match found.print_long_help() {
        Ok(()) => Exit::OK,
        Err(_) => Exit::FAILURE,
    }
}

fn execute(args: Args, output: &Output) -> Result<Exit, Failure> {
    let agent = source::Agent { socket: args.socket };
    match args.object {
        Object::Prog { command } => match command {
            ProgCommand::List => kernel::programs(output),
        },
        Object::Map { command } => match command {
            MapCommand::List => kernel::maps(output),
        },
        Object::Event { command } => match command {
            EventCommand::Tracelog { words } => event::tracelog(&agent, &words, output),
        },
        Object::Fault { command } => match command {
            FaultCommand::List { words } => fault::list(&agent, &words, output),
            FaultCommand::Top { words } => fault::top(&agent, &words, output),
            FaultCommand::Dump { words } => fault::dump(&agent, &words, output),
        },
        Object::Set { command } => {
            let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            set::execute(&agent, command, colour, output)
        }
        Object::Predict { command } => match command {
            PredictCommand::Eval { words } => predict::eval(&agent, &words, output),
        },
        Object::Feature { .. } => feature::probe(output),
    }
}
