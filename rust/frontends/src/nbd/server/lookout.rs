//! Waiting for a client that will be back in a moment: looks again for a while before the thread sleeps.
//!
//! It takes the kernel longer to wake a thread on an idle processor than to write 4 KiB. Where looking was in vain, the next
//! waits sleep at once.

use std::hint;
use std::io;
use std::time::{Duration, Instant};

/// For how long it is looked, at most.
const MOMENT: Duration = Duration::from_micros(50);
/// So many waits sleep at once after one was looked at in vain.
const DISTRUST: u32 = 16;

/// Remembers whether looking is worth while.
#[derive(Default)]
pub(super) struct Lookout {
    distrust: u32,
}

impl Lookout {
    /// What `look` finds within a moment. `None`: it is time to sleep.
    pub(super) fn watch<T>(&mut self, mut look: impl FnMut() -> io::Result<Option<T>>) -> io::Result<Option<T>> {
        if self.distrust > 0 {
            self.distrust -= 1;
            return Ok(None);
        }
        let end = Instant::now() + MOMENT;
        loop {
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            if Instant::now() > end {
                self.distrust = DISTRUST;
                return Ok(None);
            }
            hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Watches once: how often it looked, and whether the client, who is there at the `nth` look, was found.
    fn watched(lookout: &mut Lookout, nth: u32) -> (u32, bool) {
        let mut looks = 0;
        let look = || {
            looks += 1;
            Ok((looks == nth).then_some(()))
        };
        let found = lookout.watch(look).unwrap().is_some();
        (looks, found)
    }

    #[test]
    fn who_is_back_in_a_moment_is_not_slept_for() {
        let mut lookout = Lookout::default();
        for _ in 0..100 {
            assert_eq!(watched(&mut lookout, 1), (1, true));
        }
    }

    #[test]
    fn after_looking_in_vain_it_sleeps_for_a_while_at_once() {
        let mut lookout = Lookout::default();
        let (looks, found) = watched(&mut lookout, u32::MAX);
        assert!(looks > 0 && !found);
        for _ in 0..DISTRUST {
            assert_eq!(watched(&mut lookout, 1), (0, false));
        }
        assert_eq!(watched(&mut lookout, 1), (1, true));
    }

    #[test]
    fn an_error_ends_it() {
        let look = || Err::<Option<()>, _>(io::ErrorKind::ConnectionReset.into());
        let error = Lookout::default().watch(look).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
