//! The URIs that name an NBD export: `nbd://host[:port]/name` and `nbd+unix:///name?socket=PATH`.
//!
//! As the NBD URI document has them, <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>, less what this
//! version cannot do, which is refused with the reason.

use std::fmt::{self, Write};
use std::path::PathBuf;

use blockcow_engine::error::{Error, ErrorKind, Result};

use crate::nbd::protocol::MAX_STRING;

/// What stands for itself in names and paths.
const IN_A_PATH: &[u8] = b"/:@";
/// NBD's port.
const DEFAULT_PORT: u16 = 10809;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A TCP port of a host, which is a name or an address.
    Tcp(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

/// An export of a server. Shown, it is a URI again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// The server.
    pub place: Place,
    /// The name of the export; empty is the server's default.
    pub export: String,
}

impl Uri {
    /// Whether the text is meant as a URI of NBD, right or wrong, and not as a path.
    pub fn is_meant(text: &str) -> bool {
        let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase()).unwrap_or_default();
        matches!(scheme.as_str(), "nbd" | "nbds") || scheme.starts_with("nbd+") || scheme.starts_with("nbds+")
    }

    /// Reads a URI.
    ///
    /// # Errors
    /// `Invalid` with the reason.
    pub fn parse(text: &str) -> Result<Self> {
        parse(text).map_err(|reason| Error::new(ErrorKind::Invalid, format!("read the NBD URI {text}"), reason))
    }
}

fn parse(text: &str) -> std::result::Result<Uri, String> {
    let forms = "write nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH";
    let (scheme, rest) = text.split_once("://").ok_or(forms)?;
    if rest.contains('#') {
        return Err("it has a fragment (#), which means nothing here; write %23 if it belongs to a name".into());
    }
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(path)?;
    if export.len() > MAX_STRING {
        return Err(format!("the name of the export is longer than {MAX_STRING} bytes"));
    }
    match scheme.to_ascii_lowercase().as_str() {
        "nbd" if query.is_none_or(str::is_empty) => Ok(Uri { place: tcp(authority)?, export }),
        "nbd" => Err("nbd:// takes no options after '?'".into()),
        "nbd+unix" if authority.is_empty() => Ok(Uri { place: unix(query.unwrap_or_default())?, export }),
        "nbd+unix" => {
            Err(format!("nbd+unix has no host: write nbd+unix:///{authority}/...?socket=PATH with three slashes"))
        }
        "nbds" | "nbds+unix" => {
            Err("this version cannot encrypt (TLS); use nbd:// through an SSH tunnel or a VPN".into())
        }
        "nbd+vsock" | "nbds+vsock" => Err("this version cannot use vsock; use TCP or a unix socket".into()),
        _ => Err(forms.into()),
    }
}

fn tcp(authority: &str) -> std::result::Result<Place, String> {
    if authority.contains('@') {
        return Err("it names a user, which NBD does not have".into());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed.split_once(']').ok_or("a '[' without ']'")?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(format!("{rest:?} after the address in brackets is no port")),
            }
        }
        None if authority.matches(':').count() > 1 => {
            return Err("an IPv6 address stands in brackets, as in nbd://[::1]:10809/name".into());
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err("it names no host; write for example nbd://localhost/name".into());
    }
    let host = decode(host)?;
    let Some(port) = port.filter(|port| !port.is_empty()) else { return Ok(Place::Tcp(host, DEFAULT_PORT)) };
    let number = port.bytes().all(|digit| digit.is_ascii_digit()).then(|| port.parse().ok()).flatten();
    match number {
        Some(port) if port > 0 => Ok(Place::Tcp(host, port)),
        _ => Err(format!("{port:?} is no port, which is a number from 1 to 65535")),
    }
}

fn unix(query: &str) -> std::result::Result<Place, String> {
    let mut socket = None;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("socket", path)) if socket.is_none() && !path.is_empty() => socket = Some(decode(path)?),
            Some(("socket", _)) => return Err("it must name one socket".into()),
            _ => return Err(format!("the option {part:?} is not known; only socket=PATH is")),
        }
    }
    match socket {
        Some(path) => Ok(Place::Unix(path.into())),
        None => Err("it does not say which socket; add ?socket=PATH".into()),
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> std::result::Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|c| char::from(c).to_digit(16));
        let code = digit().zip(digit()).map(|(high, low)| (high * 16 + low) as u8);
        bytes.push(code.ok_or_else(|| format!("{text:?} has a '%' without two hexadecimal digits; write %25 for it"))?);
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(format!("{text:?} is not text in UTF-8 without a NUL")),
    }
}

/// Percent-encodes what would be read as something else, less what is `plain` at this place.
fn encode(f: &mut fmt::Formatter<'_>, text: &str, plain: &[u8]) -> fmt::Result {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => f.write_char(byte.into())?,
            _ if plain.contains(&byte) => f.write_char(byte.into())?,
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp(host, port) => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "nbd://{open}")?;
                encode(f, host, b":")?;
                f.write_str(close)?;
                if *port != DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
                f.write_str("/")?;
                encode(f, &self.export, IN_A_PATH)
            }
            Place::Unix(path) => {
                f.write_str("nbd+unix:///")?;
                encode(f, &self.export, IN_A_PATH)?;
                f.write_str("?socket=")?;
                encode(f, &path.to_string_lossy(), IN_A_PATH)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16, export: &str) -> Uri {
        Uri { place: Place::Tcp(host.into(), port), export: export.into() }
    }

    fn unix(path: &str, export: &str) -> Uri {
        Uri { place: Place::Unix(path.into()), export: export.into() }
    }

    #[test]
    fn uris_are_read_as_the_document_says() {
        let cases = [
            ("nbd://host", tcp("host", 10809, "")),
            ("nbd://host/", tcp("host", 10809, "")),
            ("NBD://host:/name", tcp("host", 10809, "name")),
            ("nbd://host:1/a/b//c", tcp("host", 1, "a/b//c")),
            ("nbd://[::1]/x", tcp("::1", 10809, "x")),
            ("nbd://[fe80::1%25eth0]:99//x", tcp("fe80::1%eth0", 99, "/x")),
            ("nbd://10.0.0.1:65535/%20%C3%A4?", tcp("10.0.0.1", 65535, " ä")),
            ("nbd+unix:///?socket=/run/s", unix("/run/s", "")),
            ("nbd+unix://?socket=/run/s", unix("/run/s", "")),
            ("nbd+unix:///disk?socket=relative%3F", unix("relative?", "disk")),
            ("nbd+unix:////a?socket=/x&", unix("/x", "/a")),
        ];
        for (text, expected) in cases {
            assert_eq!(Uri::parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let cases = [
            ("nbd:localhost:10809", "write nbd://"),
            ("http://host/", "write nbd://"),
            ("nbds://host/", "TLS"),
            ("nbds+unix:///?socket=/s", "TLS"),
            ("nbd+vsock://2/", "vsock"),
            ("nbd:///name", "no host"),
            ("nbd://:10809/", "no host"),
            ("nbd://host:0/", "no port"),
            ("nbd://host:65536/", "no port"),
            ("nbd://host:+1/", "no port"),
            ("nbd://::1/", "brackets"),
            ("nbd://[::1/", "without ']'"),
            ("nbd://[::1]x/", "is no port"),
            ("nbd://user@host/", "user"),
            ("nbd://host/?socket=/s", "no options"),
            ("nbd://host/a#b", "fragment"),
            ("nbd://host/%", "'%'"),
            ("nbd://host/%+1", "'%'"),
            ("nbd://host/%FF", "UTF-8"),
            ("nbd://host/%00", "NUL"),
            ("nbd+unix:///name", "which socket"),
            ("nbd+unix:///?socket=", "one socket"),
            ("nbd+unix:///?socket=a&socket=b", "one socket"),
            ("nbd+unix:///?path=a", "not known"),
            ("nbd+unix://host/?socket=a", "no host"),
        ];
        for (text, words) in cases {
            let error = Uri::parse(text).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.reason.contains(words) && error.operation.contains(text), "{error}");
        }
        assert!(Uri::parse(&format!("nbd://host/{}", "x".repeat(4097))).is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_as_the_same(export in "[^\0]{0,20}", path in "/[^\0]{1,20}", host in "[a-z0-9.:%@/\\[\\]ä]{1,9}", port in 1u16..) {
            for uri in [unix(&path, &export), tcp(&host, port, &export)] {
                prop_assert_eq!(&Uri::parse(&uri.to_string()).unwrap(), &uri);
            }
        }

        #[test]
        fn nothing_makes_it_panic(text in "(nbd|nbd\\+unix)://.{0,40}") {
            let _ = Uri::parse(&text);
        }
    }
}
