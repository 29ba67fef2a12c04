//! What must hold of any text that is given as the URI of an NBD export.

use blockcow_engine::error::ErrorKind;
use blockcow_frontends::nbd::client::Uri;
use blockcow_frontends::nbd::client::uri::Place;

/// It is refused with a reason, or means an export, and what is shown of that means the same.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Uri::parse(text) {
        Err(error) => assert!(error.kind == ErrorKind::Invalid && !error.reason.is_empty(), "{error}"),
        Ok(uri) => {
            assert!(Uri::is_meant(text), "{text}");
            assert!(uri.export.len() <= 4096 && !uri.export.contains('\0'));
            match &uri.place {
                Place::Tcp(host, port) => assert!(!host.is_empty() && !host.contains('\0') && *port > 0),
                Place::Unix(path) => assert!(!path.as_os_str().is_empty()),
            }
            let shown = uri.to_string();
            assert!(Uri::is_meant(&shown), "{shown}");
            assert_eq!(Uri::parse(&shown).unwrap_or_else(|error| panic!("{text}: {error}")), uri, "{text}");
        }
    }
}
