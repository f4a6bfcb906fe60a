//! Why a call was refused, in words and in a form that programs can read: `google.rpc.Status` with ErrorInfo (reason,
//! domain `pico.v1`), what to do in LocalizedMessage, wrong fields in BadRequest, and RetryInfo where the same call may
//! succeed later.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::registry::RegistryError;

/// The domain of every reason here.
pub const DOMAIN: &str = "pico.v1";

/// A refusal.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    code: Code,
    reason: &'static str,
    message: String,
    hint: String,
    fields: Vec<(String, String)>,
    retry: Option<Duration>,
}

impl Problem {
    /// What is wrong; `reason` is a constant in capitals that does not change between releases.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Problem {
            code,
            reason,
            message: message.into(),
            hint: String::new(),
            fields: Vec::new(),
            retry: None,
        }
    }

    /// Fields that are wrong, each with what is.
    pub fn fields(fields: Vec<(String, String)>) -> Self {
        let told: Vec<String> = fields
            .iter()
            .map(|(field, what)| format!("{field}: {what}"))
            .collect();
        let mut problem = Problem::new(Code::InvalidArgument, "BAD_REQUEST", told.join("; "));
        problem.fields = fields;
        problem
    }

    /// One field that is wrong.
    pub fn field(field: &str, what: impl Into<String>) -> Self {
        Problem::fields(vec![(field.to_owned(), what.into())])
    }

    /// There is no such thing, or the caller may not know of it: both look the same.
    pub fn not_found(what: &str, called: impl std::fmt::Display) -> Self {
        Problem::new(
            Code::NotFound,
            "NOT_FOUND",
            format!("there is no {what} '{called}'"),
        )
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same call may succeed after this long.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry = Some(after);
        self
    }

    /// Its reason.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        let problem = Problem::new(Code::Unavailable, "REGISTRY_FAILED", error.to_string());
        problem.retry_after(Duration::from_secs(1))
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(problem.reason, DOMAIN, HashMap::new());
        if !problem.hint.is_empty() {
            details.set_localized_message("en", problem.hint);
        }
        for (field, what) in problem.fields {
            details.add_bad_request_violation(field, what);
        }
        if problem.retry.is_some() {
            details.set_retry_info(problem.retry);
        }
        Status::with_error_details(problem.code, problem.message, details)
    }
}

/// The name that gRPC gives a code.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
