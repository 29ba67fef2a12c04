//! The NBD server over real sockets, in front of real drivers: what a client may say, and what it gets.

mod client;
mod harm;
mod negotiation;
mod requests;
mod rig;
mod suspended;
