//! Fuzzing without a fuzzer: seeds that are changed at random, by a known sequence, as often as the budget says.
//!
//! Not guided by coverage; `fuzz/` has targets for that.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::{Tally, corpus};

/// Numbers at which something changes.
const EDGES: [u32; 9] = [0, 1, 4096, 4097, 64 << 10, (64 << 10) + 512, 32 << 20, i32::MAX as u32, u32::MAX];
/// What changes the meaning of text.
const WORDS: [&str; 14] =
    ["0", "-1", "9", "18446744073709551615", "1e9", "\"", "\\", "[", "]", "{", "}", ",", "null", "\n"];
/// Most of a long seed are data; what matters comes early.
const NEAR: usize = 2048;

#[derive(Debug, Clone)]
enum Mutation {
    Flip(Index, u8),
    /// A number, at a multiple of two bytes.
    Number(Index, u32),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Word(Index, &'static str),
    /// A piece comes again.
    Repeat(Index, usize, usize),
    /// The rest comes from another seed.
    Cross(Index, Index, Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 1_u8..).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        (at(), prop::sample::select(&EDGES[..])).prop_map(|(at, number)| Mutation::Number(at, number)),
        at().prop_map(Mutation::Cut),
        (at(), 1_usize..64).prop_map(|(at, count)| Mutation::Remove(at, count)),
        (at(), prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (at(), prop::sample::select(&WORDS[..])).prop_map(|(at, word)| Mutation::Word(at, word)),
        (at(), 1_usize..64, 1_usize..20).prop_map(|(at, count, times)| Mutation::Repeat(at, count, times)),
        (at(), at(), at()).prop_map(|(at, seed, from)| Mutation::Cross(at, seed, from)),
    ]
}

fn mutate(seed: &mut Vec<u8>, mutation: &Mutation, corpus: &[Vec<u8>]) {
    let near = |at: &Index, length: usize| at.index(length.min(NEAR) + 1).min(length);
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
        Mutation::Word(at, word) => {
            let at = near(at, seed.len());
            seed.splice(at..at, word.bytes());
        }
        Mutation::Repeat(at, count, times) => {
            let at = near(at, seed.len());
            let piece = seed[at..(at + count).min(seed.len())].repeat(*times);
            seed.splice(at..at, piece);
        }
        Mutation::Cross(at, other, from) => {
            let other = other.get(corpus);
            seed.truncate(near(at, seed.len()));
            seed.extend_from_slice(&other[near(from, other.len())..]);
        }
    }
}

/// Shows `check` the seeds of `fuzz/corpus/<target>` and mutations of them, `budget` inputs in all; it panics at what must
/// not be. The input that it is shown last, and that makes the test fail, is the smallest that was found.
///
/// # Panics
/// If `check` does, or there is no corpus.
pub fn fuzz(target: &'static str, budget: u32, check: impl Fn(&[u8])) {
    let tally = Tally::new("fuzzing", target, budget.into());
    let corpus = corpus(target);
    let seeds = corpus.len() as u32;
    assert!((1..budget).contains(&seeds), "{seeds} seeds of {target}");
    corpus.iter().for_each(|seed| check(seed));
    tally.executed(seeds.into());
    let strategy = (any::<Index>(), prop::collection::vec(mutation(), 1..6));
    let config = Config { cases: budget - seeds, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let tried = runner.run(&strategy, |(seed, mutations)| {
        let mut seed = seed.get(&corpus).clone();
        mutations.iter().for_each(|mutation| mutate(&mut seed, mutation, &corpus));
        tally.executed(1);
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&seed)));
        said.map_err(|_| TestCaseError::fail(format!("the input {}", seed.escape_ascii())))
    });
    assert!(tried.is_ok(), "{target}: {}", tried.unwrap_err());
}
