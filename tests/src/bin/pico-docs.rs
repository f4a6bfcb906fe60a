//! `pico-docs`: man pages and shell completions of all programs, made from their command lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Command, Parser};
use clap_complete::Shell;

/// Write man pages and shell completions of pico, pico-hub, pico-agent and pico-trace
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  pico-docs target/docs\n  man target/docs/man/pico-app-create.1"
)]
struct Options {
    /// Where `man` and `completions` are made anew
    dir: PathBuf,
}

fn main() -> ExitCode {
    match write(&Options::parse().dir) {
        Ok((pages, completions)) => {
            println!("{pages} man pages, {completions} completions");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Every program that people call, by what it may be called with.
fn programs() -> [Command; 4] {
    [
        pico_hub::cli::command(),
        pico_hub::args::command(),
        pico_agent::cli::command(),
        pico_agent::trace::cli::command(),
    ]
}

/// How many pages and completions there are now.
fn write(dir: &Path) -> Result<(usize, usize)> {
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    for dir in [&man, &completions] {
        // A command that is gone must not leave its page.
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", dir.display()));
            }
            _ => {}
        }
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    for mut program in programs() {
        let name = program.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut program, &name, &completions)?;
        }
        clap_mangen::generate_to(program, &man)?;
    }
    Ok((fs::read_dir(&man)?.count(), fs::read_dir(&completions)?.count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(command: &Command) -> usize {
        let below = command.get_subcommands().filter(|below| !below.is_hide_set());
        1 + below.map(commands).sum::<usize>()
    }

    #[test]
    fn every_command_has_a_page_with_its_options_and_examples() -> Result<()> {
        let dir = tempfile::tempdir()?;
        write(dir.path())?;
        // As an earlier version left it.
        fs::write(dir.path().join("man/pico-gone.1"), "")?;
        let (pages, completions) = write(dir.path())?;
        let mut programs = programs();
        programs.iter_mut().for_each(Command::build);
        // clap adds a command `help`, which mangen leaves out, to those that have others below them.
        let least = programs
            .iter()
            .map(|program| program.get_subcommands().count())
            .sum::<usize>();
        let most = programs.iter().map(commands).sum::<usize>();
        assert!(
            (least..=most).contains(&pages),
            "{pages} pages of {least} to {most}"
        );
        assert_eq!(completions, 12);
        let page = fs::read_to_string(dir.path().join("man/pico-app-create.1"))?;
        assert!(
            page.contains("pico app create ") && page.contains("wake\\-on\\-dns"),
            "{page}"
        );
        assert!(!dir.path().join("man/pico-gone.1").exists());
        let bash = fs::read_to_string(dir.path().join("completions/pico.bash"))?;
        assert!(bash.contains("wake-on-dns"));
        Ok(())
    }
}
