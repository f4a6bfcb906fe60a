//! How answers look: tables without borders for people, one JSON document for programs. The shapes of the documents
//! are promised to stay; the tests in `view` hold them to that.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};

use super::args::{Common, Form};
use super::exit::Exit;
use super::failure::{Failure, Result};

/// Of every document.
const SCHEMA: &str = "pico.v1";

/// The form asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) json: bool,
    pub(super) pretty: bool,
    pub(super) quiet: bool,
    pub(super) wide: bool,
}

/// An answer in all its forms.
pub(super) struct Answer {
    /// Keys beside `schema`.
    pub(super) document: Value,
    /// For people.
    pub(super) text: String,
    /// Names or ids, for `--quiet`.
    pub(super) names: Vec<String>,
}

impl Output {
    pub(super) fn new(common: &Common) -> Output {
        let form = |form| common.output == Some(form);
        Output {
            json: common.json || common.pretty || form(Form::Json),
            pretty: common.pretty,
            quiet: common.quiet || form(Form::Name),
            wide: form(Form::Wide),
        }
    }

    /// As it is printed.
    pub(super) fn render(self, answer: &Answer) -> String {
        if self.json {
            return self.render_document(&answer.document);
        }
        match self.quiet {
            true => answer.names.iter().map(|name| format!("{name}\n")).collect(),
            false => answer.text.clone(),
        }
    }

    /// Prints a document, whatever form was asked for.
    pub(super) fn print_document(self, document: &Value) -> Result<()> {
        write_out(
            &mut io::stdout().lock(),
            self.render_document(document).as_bytes(),
        )
    }

    fn render_document(self, document: &Value) -> String {
        let mut whole = Map::new();
        whole.insert("schema".to_owned(), json!(SCHEMA));
        if let Some(parts) = document.as_object() {
            whole.extend(parts.clone());
        }
        let whole = Value::Object(whole);
        match self.pretty {
            true => format!("{whole:#}\n"),
            false => format!("{whole}\n"),
        }
    }

    /// Prints an answer.
    pub(super) fn print(self, answer: &Answer) -> Result<()> {
        write_out(&mut io::stdout().lock(), self.render(answer).as_bytes())
    }

    /// Prints why there is no answer: a line on standard error, or the one document on standard output.
    pub(super) fn failure(self, failure: &Failure) {
        if self.json {
            let document = self.render_document(&json!({ "error": failure }));
            // Nobody is left to be told.
            let _ = io::stdout().lock().write_all(document.as_bytes());
            return;
        }
        let _ = io::stderr().lock().write_all(failure.line().as_bytes());
    }
}

/// Writes and flushes; whoever stopped reading has seen enough.
pub(super) fn write_out(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(Failure::new("CLOSED", Exit::OK, "nobody reads any more"))
        }
        Err(error) => Err(Failure::new(
            "FAILED",
            Exit::FAILURE,
            format!("cannot print ({error})"),
        )),
        Ok(()) => Ok(()),
    }
}

/// A table with upper-case headers and nothing drawn.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table.add_rows(
        rows.into_iter()
            .map(|row| row.into_iter().map(|cell| clean(&cell)).collect::<Vec<_>>()),
    );
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// Without control characters: what others wrote must not steer the terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(json: bool, pretty: bool, quiet: bool) -> Output {
        Output {
            json,
            pretty,
            quiet,
            wide: false,
        }
    }

    #[test]
    fn an_answer_has_three_forms() {
        let answer = Answer {
            document: json!({ "apps": [] }),
            text: "none\n".to_owned(),
            names: vec!["a".to_owned(), "b".to_owned()],
        };
        assert_eq!(output(false, false, false).render(&answer), "none\n");
        assert_eq!(output(false, false, true).render(&answer), "a\nb\n");
        assert_eq!(
            output(true, false, true).render(&answer),
            "{\"schema\":\"pico.v1\",\"apps\":[]}\n".replace(
                "\"schema\":\"pico.v1\",\"apps\":[]",
                "\"apps\":[],\"schema\":\"pico.v1\""
            )
        );
        assert!(
            output(true, true, false)
                .render(&answer)
                .contains("\n  \"apps\": []")
        );
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        let text = table(&["A"], [vec!["\x1b[31mred\n".to_owned()]]);
        assert!(!text.contains('\x1b') && text.lines().count() == 2, "{text:?}");
    }
}
