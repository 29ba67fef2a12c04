//! The real engine in virtual time: histories that a seed decides, over storages that reorder, delay and fail, against a
//! model of what must come of it.

mod history;
mod load;
mod model;
mod plan;
mod storage;

#[test]
fn a_few() {
    let folder = tempfile::TempDir::new_in("/dev/shm").unwrap();
    let first: u64 = std::env::var("BLOCKCOW_SEED").map_or(0, |text| text.parse().unwrap());
    let count: u64 = std::env::var("BLOCKCOW_COUNT").map_or(1000, |text| text.parse().unwrap());
    let mut total = std::collections::BTreeMap::<&str, u64>::new();
    let begin = std::time::Instant::now();
    let mut failed = 0;
    for seed in first..first + count {
        if std::env::var_os("LOUD").is_some() { println!("seed {seed}"); }
        let outcome = std::panic::catch_unwind(|| history::run(seed, folder.path()));
        match outcome {
            Ok(outcome) => outcome.counts.into_iter().for_each(|(name, n)| *total.entry(name).or_default() += n),
            Err(_) => {
                failed += 1;
                println!("FAILED seed {seed} {:?}", plan::Plan::of(seed));
                if failed > 10 {
                    break;
                }
            }
        }
    }
    println!("{total:?} in {:?}", begin.elapsed());
}
