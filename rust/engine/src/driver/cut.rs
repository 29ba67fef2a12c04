//! The cut: new writes are held, those in flight end, the maps are armed, and all goes on.

use std::time::{Duration, SystemTime};

use super::Driver;
use crate::backup::Backup;
use crate::error::{Error, ErrorKind, Result};
use crate::mutant::planted;
use crate::round::Cut;
use crate::state::State;
use crate::sync::{Arc, Instant, MutexGuard, Ordering};
use crate::waiter::{Parker, Waiter, wake_all};

/// New writes wait and none is in flight, until this is dropped.
pub struct Hold<'a> {
    driver: &'a Driver,
    since: Instant,
    _only: MutexGuard<'a, ()>,
}

impl Driver {
    /// Holds new writes and waits until those in flight have ended.
    ///
    /// # Errors
    /// `Timeout` if they have not ended in time; then nothing is held.
    pub fn hold(&self, timeout: Duration) -> Result<Hold<'_>> {
        let only = self.holder.lock();
        let since = Instant::now();
        let parker = Arc::new(Parker::default());
        let quiet = self.flights.hold(|| Waiter::thread(&parker, None));
        let hold = Hold { driver: self, since, _only: only };
        if quiet || parker.park_until(since + timeout).is_some() {
            return Ok(hold);
        }
        let reason = format!("writes in flight did not end within {timeout:?}; is the device hanging?");
        Err(Error::new(ErrorKind::Timeout, "make the cut", reason))
    }

    /// Makes the cut of a prepared backup and starts its sweep. Returns for how long writes were held.
    ///
    /// # Errors
    /// `Timeout` as [`Driver::hold`]; `State` if another backup is under way or this one has ended.
    pub fn cut(&self, backup: &Backup, timeout: Duration) -> Result<Duration> {
        let hold = self.hold(timeout)?;
        hold.arm(backup)?;
        let held = hold.release();
        backup.start(held)?;
        Ok(held)
    }
}

/// One cut for several devices: writes to all of them are held, then every backup is armed, then all goes on. Returns for
/// how long writes were held. Whatever fails, all of the backups are cancelled.
///
/// # Errors
/// As [`Driver::cut`]; `Invalid` if two backups are of one device.
pub fn cut_together(group: &[(&Driver, &Backup)], timeout: Duration) -> Result<Duration> {
    let outcome = hold_arm_start(group, timeout);
    if outcome.is_err() {
        group.iter().for_each(|(_, backup)| backup.cancel());
    }
    outcome
}

fn hold_arm_start(group: &[(&Driver, &Backup)], timeout: Duration) -> Result<Duration> {
    // Two groups that share devices must take their holds in the same order.
    let mut ordered = group.to_vec();
    ordered.sort_by_key(|(driver, _)| std::ptr::from_ref(*driver).addr());
    if ordered.windows(2).any(|pair| std::ptr::eq(pair[0].0, pair[1].0)) {
        let reason = "two backups are of one device; name each device once";
        return Err(Error::new(ErrorKind::Invalid, "make the cut", reason));
    }
    let since = Instant::now();
    let mut holds = Vec::with_capacity(ordered.len());
    for (driver, backup) in &ordered {
        let hold = driver.hold(timeout.saturating_sub(since.elapsed()))?;
        if planted("group-is-cut-one-by-one") {
            hold.arm(backup)?;
            continue;
        }
        holds.push(hold);
    }
    for (hold, (_, backup)) in holds.iter().zip(&ordered) {
        hold.arm(backup)?;
    }
    drop(holds);
    let held = since.elapsed();
    for (_, backup) in group {
        backup.start(held)?;
    }
    Ok(held)
}

impl Hold<'_> {
    /// Makes this instant the cut of `backup`. [`Backup::start`] is due after the release.
    ///
    /// # Errors
    /// `State` if another backup of the device is under way, or this one has ended or was cut before.
    pub fn arm(&self, backup: &Backup) -> Result<()> {
        let Some(round) = &backup.round() else { return Err(Backup::ended("make the cut")) };
        let state = |reason: &str| Err(Error::new(ErrorKind::State, "make the cut", reason));
        if !Arc::ptr_eq(&round.armed, &self.driver.armed) {
            return state("this backup was prepared for another device");
        }
        if self.driver.armed.load().as_ref().is_some_and(|other| !Arc::ptr_eq(other, round)) {
            return state("another backup of this device is under way; wait for it or cancel it");
        }
        if round.life.state() != State::Created {
            return state("this backup was cut before, or has ended; start another");
        }
        *round.cut.lock() = Some(Cut { at: SystemTime::now(), instant: Instant::now(), held: Duration::ZERO });
        *self.driver.newest.lock() = Some(round.life.clone());
        round.watching.store(false, Ordering::Release);
        self.driver.armed.store(Some(round.clone()));
        if !round.activate() {
            self.driver.armed.store(None);
            return Err(Backup::ended("make the cut"));
        }
        Ok(())
    }

    /// Lets the held writes go on. Returns for how long they were held.
    pub fn release(self) -> Duration {
        self.since.elapsed()
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if !planted("hold-stays") {
            wake_all(self.driver.flights.release());
        }
    }
}
