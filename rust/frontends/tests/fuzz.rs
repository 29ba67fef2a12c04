//! What strangers send, changed at random: clients of the NBD server, servers of the client, and URIs. `fuzz/README.md`
//! says more.

use blockcow_frontends::nbd::server::fuzzing::{fuzz_negotiation, fuzz_requests};
use blockcow_proof::fuzz;

#[path = "../../../fuzz/checks/answers.rs"]
mod answers;
#[path = "../../../fuzz/checks/handshake.rs"]
mod handshake;
#[path = "../../../fuzz/checks/uri.rs"]
mod uri;

#[test]
fn some_of_all() {
    fuzz("negotiation", 5_000, fuzz_negotiation);
    fuzz("requests", 2_000, fuzz_requests);
    fuzz("handshake", 5_000, handshake::check);
    fuzz("answers", 5_000, answers::check);
    fuzz("uri", 5_000, uri::check);
}

#[test]
#[ignore = "run by make proof"]
fn negotiations() {
    fuzz("negotiation", 500_000, fuzz_negotiation);
}

#[test]
#[ignore = "run by make proof"]
fn requests() {
    fuzz("requests", 150_000, fuzz_requests);
}

#[test]
#[ignore = "run by make proof"]
fn handshakes() {
    fuzz("handshake", 2_000_000, handshake::check);
}

#[test]
#[ignore = "run by make proof"]
fn answers_to_requests() {
    fuzz("answers", 1_000_000, answers::check);
}

#[test]
#[ignore = "run by make proof"]
fn uris() {
    fuzz("uri", 2_000_000, uri::check);
}
