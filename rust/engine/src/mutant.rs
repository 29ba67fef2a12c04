//! Faults planted on purpose, one of which may be chosen, to see that some test finds it. There are none in what is built
//! without the feature `mutants`.

/// Whether this fault is the one that the environment variable `BLOCKCOW_MUTANT` names.
#[inline(always)]
pub fn planted(name: &str) -> bool {
    cfg!(feature = "mutants") && chosen().is_some_and(|chosen| chosen == name)
}

fn chosen() -> Option<&'static str> {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("BLOCKCOW_MUTANT").ok()).as_deref()
}
