//! Where the hub is and what proves who asks: from flags, environment, a file, or built in, in this order.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::args::Common;
use super::exit::Exit;
use super::failure::{Failure, Result};

const FILE: &str = "/etc/pico/pico.toml";
const HUB: &str = "http://127.0.0.1:7071";

/// A setting and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) value: Option<String>,
    pub(super) origin: String,
}

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) hub: Setting,
    pub(super) token_file: Setting,
    pub(super) ca: Setting,
    pub(super) owner: Setting,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    hub: Option<String>,
    token_file: Option<String>,
    ca: Option<String>,
    owner: Option<String>,
}

impl Settings {
    /// Puts them together; `env` gives variables, as the environment does.
    pub(super) fn read(common: &Common, env: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let named = common
            .config
            .clone()
            .or_else(|| env("PICO_CONFIG").map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| PathBuf::from(FILE));
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                Failure::usage(format!(
                    "{} is wrong ({})",
                    path.display(),
                    error.to_string().trim_end()
                ))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => File::default(),
            Err(error) => return Err(unreadable(&path, &error)),
        };
        let pick =
            |name: &'static str, flag: Option<String>, variable: &str, in_file, built_in: Option<&str>| {
                let flag = flag.map(|value| (value, format!("--{}", name.replace('_', "-"))));
                let set = || env(variable).filter(|value| !value.is_empty());
                let (value, origin) = flag
                    .or_else(|| set().map(|value| (value, variable.to_owned())))
                    .or_else(|| Option::map(in_file, |value| (value, path.display().to_string())))
                    .or_else(|| built_in.map(|value| (value.to_owned(), "built in".to_owned())))
                    .map_or((None, "not set".to_owned()), |(value, origin)| {
                        (Some(value), origin)
                    });
                Setting { name, value, origin }
            };
        let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        Ok(Settings {
            hub: pick("hub", common.hub.clone(), "PICO_HUB", file.hub, Some(HUB)),
            token_file: pick(
                "token_file",
                text(&common.token_file),
                "PICO_TOKEN_FILE",
                file.token_file,
                None,
            ),
            ca: pick("ca", text(&common.ca), "PICO_CA", file.ca, None),
            owner: pick("owner", common.owner.clone(), "PICO_OWNER", file.owner, None),
        })
    }

    pub(super) fn all(&self) -> [&Setting; 4] {
        [&self.hub, &self.token_file, &self.ca, &self.owner]
    }

    /// The token: of a file that the command line names, else of PICO_TOKEN, else of the file elsewhere named.
    pub(super) fn token(&self, env: impl Fn(&str) -> Option<String>) -> Result<String> {
        let named_here = self.token_file.origin.starts_with("--");
        let token = match (
            &self.token_file.value,
            env("PICO_TOKEN").filter(|t| !t.is_empty()),
        ) {
            (Some(path), token) if named_here || token.is_none() => {
                let path = Path::new(path);
                std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?
            }
            (_, Some(token)) => token,
            (_, None) => {
                return Err(Failure::new("NO_TOKEN", Exit::DENIED, "you have no token")
                    .hint("--token-file FILE, or PICO_TOKEN (the hub wrote the first one to admin.token)"));
            }
        };
        Ok(token.trim().to_owned())
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let exit = match error.kind() {
        std::io::ErrorKind::PermissionDenied => Exit::DENIED,
        _ => Exit::USAGE,
    };
    Failure::new(
        "CONFIG",
        exit,
        format!("cannot read {} ({error})", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::args::Cli;
    use super::*;

    fn common(line: &str) -> Common {
        Cli::try_parse_from(line.split_whitespace()).unwrap().common
    }

    #[test]
    fn a_flag_wins_over_a_variable_over_a_file_over_what_is_built_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pico.toml");
        std::fs::write(&path, "hub = \"http://file\"\nowner = \"file\"\nca = \"file\"\n").unwrap();
        let line = format!("pico version --config {} --hub http://flag", path.display());
        let settings = Settings::read(&common(&line), |name| match name {
            "PICO_HUB" | "PICO_OWNER" => Some("variable".to_owned()),
            _ => None,
        })
        .unwrap();
        let told = settings
            .all()
            .map(|s| (s.value.as_deref().unwrap_or("-"), s.origin.as_str()));
        let file = path.display().to_string();
        assert_eq!(
            told,
            [
                ("http://flag", "--hub"),
                ("-", "not set"),
                ("file", file.as_str()),
                ("variable", "PICO_OWNER")
            ]
        );
        let line = format!("pico version --config {}", dir.path().join("none").display());
        assert_eq!(
            Settings::read(&common(&line), |_| None).unwrap_err().exit,
            Exit::USAGE
        );
    }

    #[test]
    fn a_token_is_found_or_its_absence_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "of-file\n").unwrap();
        let variable = |name: &str| (name == "PICO_TOKEN").then(|| "of-variable".to_owned());
        let line = format!("pico version --token-file {}", path.display());
        let named = Settings::read(&common(&line), |_| None).unwrap();
        assert_eq!(named.token(variable).unwrap(), "of-file");
        let bare = Settings::read(&common("pico version"), |_| None).unwrap();
        assert_eq!(bare.token(variable).unwrap(), "of-variable");
        assert_eq!(bare.token(|_| None).unwrap_err().exit, Exit::DENIED);
    }
}
