//! What went wrong, in the owner's words: what, why, what to try. From the hub's rich errors, from operations that
//! failed, and from this side.

use pico_proto::v1::OperationError;
use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::exit::Exit;
use crate::problem::code_name;

/// Set by the hub on each answer, so that its logs can be searched for a call.
pub(super) const REQUEST_ID_HEADER: &str = "x-request-id";

/// Why a command failed. As JSON, the object below `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Failure {
    /// Stable: `NOT_FOUND`, `RESTORE_FAILED`.
    pub(super) code: String,
    pub(super) message: String,
    /// A command or an action; empty when there is none.
    pub(super) hint: String,
    /// Whether the same may succeed later.
    pub(super) retryable: bool,
    /// Of the call, for the hub's logs; empty when it did not come so far.
    pub(super) request_id: String,
    #[serde(skip)]
    pub(super) exit: Exit,
}

/// What a command gives back.
pub(super) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(super) fn new(code: &str, exit: Exit, message: impl Into<String>) -> Self {
        Failure {
            code: code.to_owned(),
            message: message.into(),
            hint: String::new(),
            retryable: false,
            request_id: String::new(),
            exit,
        }
    }

    /// Something on the command line or in a file is wrong.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Failure::new("USAGE", Exit::USAGE, message)
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Failure {
            hint: hint.into(),
            ..self
        }
    }

    pub(super) fn interrupted() -> Self {
        Failure::new("INTERRUPTED", Exit::INTERRUPTED, "interrupted")
    }

    /// An operation that failed.
    pub(super) fn operation(error: OperationError) -> Self {
        Failure {
            exit: Exit::of(&error.reason, Code::Unknown),
            code: match error.reason.is_empty() {
                true => "FAILED".to_owned(),
                false => error.reason,
            },
            message: error.message,
            hint: error.hint,
            retryable: error.retryable,
            request_id: String::new(),
        }
    }

    /// The line for people.
    pub(super) fn line(&self) -> String {
        let try_this = match self.hint.is_empty() {
            true => String::new(),
            false => format!("; try: {}", self.hint),
        };
        format!("Error: {}{try_this}\n", self.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone());
        // All that is wrong with a spec, each with the field it is about.
        let fields = details.bad_request().map(|bad| {
            // Those that the message does not tell already.
            let told = |description: &str| status.message().contains(description);
            let each = bad
                .field_violations
                .iter()
                .filter(|violation| !told(&violation.description));
            let lines = each.map(|violation| format!("\n  {}: {}", violation.field, violation.description));
            lines.collect::<String>()
        });
        let hint = details
            .localized_message()
            .map(|hint| hint.message.clone())
            .or_else(|| {
                let links = &details.help()?.links;
                links.first().map(|link| link.description.clone())
            });
        let request_id = status
            .metadata()
            .get(REQUEST_ID_HEADER)
            .and_then(|id| id.to_str().ok())
            .or_else(|| details.request_info().map(|info| info.request_id.as_str()))
            .unwrap_or_default();
        let code = reason.unwrap_or_else(|| code_name(status.code()).to_owned());
        Failure {
            exit: Exit::of(&code, status.code()),
            code,
            message: format!("{}{}", status.message(), fields.unwrap_or_default()),
            hint: hint.unwrap_or_default(),
            retryable: details.retry_info().is_some() || status.code() == Code::Unavailable,
            request_id: request_id.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_rich_error_keeps_its_reason_hint_fields_and_request_id() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("INVALID_SPEC", "pico.v1", [] as [(String, String); 0])
            .add_bad_request_violation("spec.ports[0]", "'80' is not a port")
            .set_localized_message("en", "write it as 80/tcp")
            .set_retry_info(Some(Duration::from_secs(1)));
        let mut status = Status::with_error_details(Code::InvalidArgument, "the spec is wrong", details);
        status
            .metadata_mut()
            .insert(REQUEST_ID_HEADER, "r-1".parse().unwrap());
        let failure = Failure::from(status);
        assert_eq!(
            failure,
            Failure {
                code: "INVALID_SPEC".to_owned(),
                message: "the spec is wrong\n  spec.ports[0]: '80' is not a port".to_owned(),
                hint: "write it as 80/tcp".to_owned(),
                retryable: true,
                request_id: "r-1".to_owned(),
                exit: Exit::USAGE,
            }
        );
        assert!(
            failure
                .line()
                .ends_with("'80' is not a port; try: write it as 80/tcp\n")
        );
    }

    #[test]
    fn a_bare_status_has_its_code_as_reason() {
        let failure = Failure::from(Status::not_found("there is no app 'web'"));
        assert_eq!(
            (failure.code.as_str(), failure.exit),
            ("NOT_FOUND", Exit::NOT_FOUND)
        );
        assert_eq!(failure.line(), "Error: there is no app 'web'\n");
    }

    #[test]
    fn a_failed_operation_exits_by_its_reason() {
        let failure = Failure::operation(OperationError {
            reason: "RESTORE_FAILED".to_owned(),
            message: "CRIU: no".to_owned(),
            hint: "pico app logs web".to_owned(),
            retryable: true,
        });
        assert_eq!(failure.exit, Exit::RESTORE_FAILED);
        assert_eq!(failure.line(), "Error: CRIU: no; try: pico app logs web\n");
        assert_eq!(Failure::operation(OperationError::default()).exit, Exit::FAILURE);
    }
}
