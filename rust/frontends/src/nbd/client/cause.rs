//! Why an NBD server cannot be used any further, or would not do what it was asked: words, and always an error number.

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::nbd::protocol::errno;

/// The longest text of a server that is shown to people.
const LONGEST_TEXT: usize = 200;

/// A failure in words, with the error number that stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// What happened.
    pub text: String,
    /// Linux's number for it.
    pub errno: i32,
}

impl Cause {
    /// With a number of its own.
    pub fn new(errno: Errno, text: impl Into<String>) -> Self {
        Self { text: text.into(), errno: errno.raw_os_error() }
    }

    /// The server said or did what the protocol does not allow.
    pub fn breach(what: impl fmt::Display) -> Self {
        Self::new(Errno::PROTO, format!("it breaks the NBD protocol: {what}"))
    }

    /// A system call failed.
    pub fn os(doing: &str, error: Errno) -> Self {
        Self::new(error, format!("{doing}: {error}"))
    }

    /// The server answered a request with an error; numbers that the protocol does not have count as `EINVAL`.
    pub fn answered(error: u32, message: &[u8]) -> Self {
        let known = [
            errno::EPERM,
            errno::EIO,
            errno::ENOMEM,
            errno::EINVAL,
            errno::ENOSPC,
            errno::EOVERFLOW,
            errno::ENOTSUP,
            errno::ESHUTDOWN,
        ];
        let number = if known.contains(&error) { error } else { errno::EINVAL };
        let cause = Errno::from_raw_os_error(number as i32);
        let said = printable(message);
        let text =
            if said.is_empty() { format!("it answers: {cause}") } else { format!("it answers: {cause} ({said})") };
        Self::new(cause, text)
    }

    /// The same, told of the server that `uri` names.
    #[must_use]
    pub fn of(mut self, uri: &str) -> Self {
        self.text = format!("the NBD server of {uri}: {}", self.text);
        self
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A cause inside an `io::Error`, which would show either words or a number, and hides the number behind the words.
#[derive(Debug)]
struct Worded {
    text: String,
    number: io::Error,
}

impl fmt::Display for Worded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Worded {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.number)
    }
}

impl From<Cause> for io::Error {
    fn from(cause: Cause) -> Self {
        let number = Self::from_raw_os_error(cause.errno);
        Self::new(number.kind(), Worded { text: cause.text, number })
    }
}

/// What a server sent for people, fit for a terminal.
pub fn printable(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    text.chars().take(LONGEST_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().into()
}
