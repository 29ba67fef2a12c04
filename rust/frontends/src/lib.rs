//! How programs reach a device: front-ends over the engine's driver, and storages that lie behind a wire protocol.

pub mod fuse;
pub mod nbd;
