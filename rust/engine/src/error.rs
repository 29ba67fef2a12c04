//! The engine's one error type: what kind of failure, during which operation, at which offset, from which cause.
//!
//! Kinds are stable and callers match on them; the text is for people. Nothing here decides what to do about an error.

use std::fmt;
use std::io;

/// What went wrong, as far as a caller needs to tell cases apart. The names are part of the public interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is outside what the operation accepts.
    Invalid,
    /// The device, container or destination is held by somebody else.
    Busy,
    /// What was to be created exists already.
    Exists,
    /// The thing named does not exist.
    NotFound,
    /// Reading or writing the device failed.
    Device,
    /// Reading or writing the container failed.
    Container,
    /// Reading or writing the destination failed.
    Destination,
    /// The manifest is damaged, truncated, or of a schema that this version does not know.
    Manifest,
    /// The image differs from what its manifest says.
    Mismatch,
    /// A suspended write, or the cut, waited longer than it may.
    Timeout,
    /// A program wrote into the part of the device that holds the container.
    Trespass,
    /// The backup was cancelled.
    Cancelled,
    /// The operation is not possible in the present state.
    State,
}

impl ErrorKind {
    /// The stable name that Python and JSON use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Busy => "busy",
            Self::Exists => "exists",
            Self::NotFound => "not-found",
            Self::Device => "device",
            Self::Container => "container",
            Self::Destination => "destination",
            Self::Manifest => "manifest",
            Self::Mismatch => "mismatch",
            Self::Timeout => "timeout",
            Self::Trespass => "trespass",
            Self::Cancelled => "cancelled",
            Self::State => "state",
        }
    }
}

/// A failure with its context. Cheap to clone, because the first cause of a broken backup is shown to many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The stable kind.
    pub kind: ErrorKind,
    /// What was being done, e.g. `write to the container`.
    pub operation: String,
    /// The byte offset concerned, where there is one.
    pub offset: Option<u64>,
    /// The operating system's error number, where there is one.
    pub errno: Option<i32>,
    /// The reason in words, and what to do next where that is known.
    pub reason: String,
}

/// The engine's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error that does not come from the operating system.
    pub fn new(kind: ErrorKind, operation: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { kind, operation: operation.into(), offset: None, errno: None, reason: reason.into() }
    }

    /// An operating-system error of `kind` during `operation`.
    pub fn io(kind: ErrorKind, operation: impl Into<String>, source: &io::Error) -> Self {
        Self { kind, operation: operation.into(), offset: None, errno: number_of(source), reason: source.to_string() }
    }

    /// The same error, at a byte offset.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The same error, with one more sentence on what to do.
    #[must_use]
    pub fn hint(mut self, advice: &str) -> Self {
        self.reason = format!("{}; {advice}", self.reason);
        self
    }
}

/// The number that the kernel gave, or the one inside an error that a storage put words around, or that of the one kind
/// that callers tell apart and that storages report without the kernel.
fn number_of(error: &io::Error) -> Option<i32> {
    let inside = || {
        let mut cause = error.get_ref().and_then(std::error::Error::source);
        while let Some(found) = cause {
            if let Some(number) = found.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
                return Some(number);
            }
            cause = found.source();
        }
        None
    };
    let by_kind = || (error.kind() == io::ErrorKind::Unsupported).then_some(libc::EOPNOTSUPP);
    error.raw_os_error().or_else(inside).or_else(by_kind)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation)?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for Error {}
