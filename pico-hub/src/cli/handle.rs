//! How an object is called on the command line: `web`, `name web`, `id ID`.

use pico_proto::v1::AppHandle;

use super::failure::{Failure, Result};

/// An app, as its words on the command line: one (its name), or two (`id` or `name`, and that).
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct App {
    /// The app: NAME, or `id ID`
    #[arg(required = true, num_args = 1..=2, value_names = ["APP"])]
    pub app: Vec<String>,
}

impl App {
    /// The handle; `owner` is whose name it is, where the caller may act for others.
    pub(super) fn read(&self, owner: Option<&str>) -> Result<AppHandle> {
        let named = |name: &str| AppHandle {
            id: String::new(),
            owner: owner.unwrap_or_default().to_owned(),
            name: name.to_owned(),
        };
        let words: Vec<&str> = self.app.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["id", id] => Ok(AppHandle {
                id: (*id).to_owned(),
                ..AppHandle::default()
            }),
            ["name", name] | [name] if !name.is_empty() => Ok(named(name)),
            words => Err(Failure::usage(format!(
                "what is '{}'? (an app is NAME or `id ID`)",
                words.join(" ")
            ))
            .hint("pico app list")),
        }
    }

    /// As it was written, for messages.
    pub(super) fn text(&self) -> String {
        self.app.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str], owner: Option<&str>) -> Result<AppHandle> {
        let app = words.iter().map(ToString::to_string).collect();
        App { app }.read(owner)
    }

    fn handle(id: &str, owner: &str, name: &str) -> AppHandle {
        AppHandle {
            id: id.to_owned(),
            owner: owner.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn an_app_is_a_name_or_says_what_it_is_called_by() {
        assert_eq!(read(&["web"], None), Ok(handle("", "", "web")));
        assert_eq!(read(&["name", "id"], None), Ok(handle("", "", "id")));
        assert_eq!(read(&["web"], Some("alice")), Ok(handle("", "alice", "web")));
        assert_eq!(read(&["id", "a1"], Some("alice")), Ok(handle("a1", "", "")));
    }

    #[test]
    fn several_apps_are_refused_where_one_is_needed() {
        for words in [&["web", "db"][..], &[""], &["name", ""]] {
            let failure = read(words, None).unwrap_err();
            assert!(failure.message.starts_with("what is '"), "{failure:?}");
        }
    }
}
