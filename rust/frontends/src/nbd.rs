//! NBD: the protocol's vocabulary, a server in front of drivers, and a client that is a storage.

pub mod client;
pub mod protocol;
pub mod server;
