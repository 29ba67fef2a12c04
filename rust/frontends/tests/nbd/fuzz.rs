//! The fuzz targets on their committed corpus, and on mutations of it. Longer runs: `fuzz/README.md`.

use blockcow_frontends::nbd::server::fuzzing::{fuzz_negotiation, fuzz_requests};
use blockcow_proof::corpus;
use proptest::prelude::*;
use proptest::sample::Index;

/// Numbers at which something changes.
const EDGES: [u32; 9] = [0, 1, 4096, 4097, 64 << 10, (64 << 10) + 512, 32 << 20, i32::MAX as u32, u32::MAX];

#[derive(Debug, Clone)]
enum Mutation {
    Flip(Index, u8),
    /// A number, at a multiple of two bytes.
    Number(Index, u32),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    /// The rest comes from another seed.
    Cross(Index, Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 1_u8..).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        (at(), prop::sample::select(&EDGES[..])).prop_map(|(at, number)| Mutation::Number(at, number)),
        at().prop_map(Mutation::Cut),
        (at(), 1_usize..64).prop_map(|(at, count)| Mutation::Remove(at, count)),
        (at(), prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (at(), at()).prop_map(|(seed, at)| Mutation::Cross(seed, at)),
    ]
}

fn mutate(seed: &mut Vec<u8>, mutation: &Mutation, corpus: &[Vec<u8>]) {
    // Most of a long seed are the data of writes; what matters comes early.
    let near = |at: &Index, length: usize| at.index(length.min(1024) + 1).min(length);
    match mutation {
        Mutation::Flip(at, bits) => {
            let at = near(at, seed.len());
            seed.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bits);
        }
        Mutation::Number(at, number) => {
            let at = near(at, seed.len()) & !1;
            seed.iter_mut().skip(at).zip(number.to_be_bytes()).for_each(|(byte, new)| *byte = new);
        }
        Mutation::Cut(at) => seed.truncate(near(at, seed.len())),
        Mutation::Remove(at, count) => {
            let at = near(at, seed.len());
            seed.drain(at..(at + count).min(seed.len()));
        }
        Mutation::Insert(at, bytes) => {
            let at = near(at, seed.len());
            seed.splice(at..at, bytes.iter().copied());
        }
        Mutation::Cross(other, at) => {
            let other = other.get(corpus);
            seed.truncate(near(at, seed.len()));
            seed.extend_from_slice(&other[near(at, other.len())..]);
        }
    }
}

fn run(target: &str, fuzz: fn(&[u8])) {
    let corpus = corpus(target);
    assert!(corpus.len() >= 10, "the corpus is there");
    corpus.iter().for_each(|seed| fuzz(seed));
    let strategy = (any::<Index>(), prop::collection::vec(mutation(), 1..6));
    let config = ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() };
    let tried = proptest::test_runner::TestRunner::new(config).run(&strategy, |(seed, mutations)| {
        let mut seed = seed.get(&corpus).clone();
        mutations.iter().for_each(|mutation| mutate(&mut seed, mutation, &corpus));
        fuzz(&seed);
        Ok(())
    });
    tried.unwrap();
}

#[test]
fn negotiations() {
    run("negotiation", fuzz_negotiation);
}

#[test]
fn requests() {
    run("requests", fuzz_requests);
}
