//! An owner at a command line: `pico` against a hub.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};

use super::process::output;
use super::{AppConfig, bin};

/// Somebody with a token.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The configuration of their `pico`.
    pub config: PathBuf,
}

impl Owner {
    /// Writes the configuration of somebody's `pico`; an empty `owner` is the token's own.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(config: &Path, hub: &str, token: &Path, owner: &str) -> Result<Self> {
        let owner = if owner.is_empty() {
            String::new()
        } else {
            format!("owner = \"{owner}\"\n")
        };
        let text = format!("hub = \"{hub}\"\ntoken_file = \"{}\"\n{owner}", token.display());
        std::fs::write(config, text).with_context(|| format!("cannot write {}", config.display()))?;
        Ok(Owner {
            config: config.to_owned(),
        })
    }

    /// `pico ARGS`, not yet run.
    ///
    /// # Errors
    /// When the program is not built.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(bin::find("pico")?);
        command.args(args).env("PICO_CONFIG", &self.config);
        for variable in [
            "PICO_HUB",
            "PICO_TOKEN",
            "PICO_TOKEN_FILE",
            "PICO_CA",
            "PICO_OWNER",
        ] {
            command.env_remove(variable);
        }
        Ok(command)
    }

    /// Runs `pico ARGS` and gives what it prints.
    ///
    /// # Errors
    /// When it fails: with its message.
    pub fn pico(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args)?)
    }

    /// The same where a failure is what is looked for.
    ///
    /// # Errors
    /// Only when it cannot be started.
    pub fn try_pico(&self, args: &[&str]) -> Result<Output> {
        self.command(args)?.output().context("cannot start pico")
    }

    /// Registers an app and waits until it is started.
    ///
    /// # Errors
    /// When the hub or its agent refuses it.
    pub fn create(&self, app: &AppConfig) -> Result<()> {
        let words = create_words(app);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.pico(&words).map(drop)
    }
}

/// The words of `pico app create` for an app.
pub fn create_words(app: &AppConfig) -> Vec<String> {
    let mut words: Vec<String> = ["app", "create", &app.name, "--root", &app.root]
        .map(str::to_owned)
        .to_vec();
    let mut option = |name: &str, value: &str| words.extend([name.to_owned(), value.to_owned()]);
    for port in &app.ports {
        option("--port", port);
    }
    for (key, value) in &app.env {
        option("--env", &format!("{key}={value}"));
    }
    let seed = app.seed.as_ref().map(|seed| seed.display().to_string());
    for (name, value) in [
        ("--seed", &seed),
        ("--user", &app.user),
        ("--workdir", &app.workdir),
        ("--memory", &app.memory),
    ] {
        if let Some(value) = value {
            option(name, value);
        }
    }
    for (name, value) in [("--idle", &app.idle), ("--cold-after", &app.cold_after)] {
        if !value.is_empty() {
            option(name, value);
        }
    }
    words.push("--".to_owned());
    words.extend(app.command.iter().cloned());
    words
}

/// Words as a line that a shell reads as the same words.
pub fn shell_line(words: &[String]) -> String {
    let plain = |word: &&String| {
        !word.is_empty()
            && word
                .chars()
                .all(|char| char.is_ascii_alphanumeric() || "-_./:=,@%+".contains(char))
    };
    let quoted = words.iter().map(|word| match Some(word).filter(plain) {
        Some(word) => word.clone(),
        None => format!("'{}'", word.replace('\'', "'\\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_a_line_as_the_words_it_was_made_of() -> Result<()> {
        let words = ["printf", "%s|", "a b", "", "it's", "$HOME", "/x.y:=1"].map(str::to_owned);
        let printed = output(Command::new("sh").args(["-c", &shell_line(&words)]))?;
        assert_eq!(printed, "a b||it's|$HOME|/x.y:=1|");
        Ok(())
    }
}
