//! What must hold whatever a server says before an export is agreed on.

use blockcow_frontends::nbd::client::Cause;
use blockcow_frontends::nbd::client::answer::Source;
use blockcow_frontends::nbd::client::handshake::{Wire, negotiate};
use rustix::io::Errno;

/// Far more than the client ever says.
const MOST_SAID: usize = 16 << 10;

/// A server that has its say whatever it is asked.
struct Script<'a> {
    says: &'a [u8],
    heard: usize,
}

impl Source for Script<'_> {
    fn fill(&mut self, buf: &mut [u8]) -> Result<(), Cause> {
        let Some((now, later)) = self.says.split_at_checked(buf.len()) else {
            return Err(Cause::new(Errno::CONNRESET, "the end"));
        };
        buf.copy_from_slice(now);
        self.says = later;
        Ok(())
    }
}

impl Wire for Script<'_> {
    fn say(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        self.heard += bytes.len();
        Ok(())
    }
}

/// The client ends with an export that can be used, or with a reason that can be shown; it has said little.
pub fn check(data: &[u8]) {
    let mut script = Script { says: data, heard: 0 };
    let agreed = negotiate(&mut script, "disk");
    assert!(script.heard <= MOST_SAID, "the client said {} bytes", script.heard);
    match agreed {
        Err(cause) => {
            assert!(cause.errno > 0 && !cause.text.is_empty() && cause.text.len() < 1000, "{cause}");
            assert!(!cause.text.chars().any(char::is_control), "{cause:?}");
        }
        Ok(agreed) => {
            let minimum = u64::from(agreed.minimum);
            assert!(minimum.is_power_of_two() && minimum <= 64 << 10);
            assert!(agreed.size <= i64::MAX as u64 && agreed.size.is_multiple_of(minimum));
            assert!(agreed.maximum > 0 && agreed.maximum <= 32 << 20 && agreed.maximum.is_multiple_of(agreed.minimum));
            assert!(agreed.can(1), "a server tells its flags");
            assert!(agreed.structured || agreed.allocation.is_none());
            assert!(agreed.name.is_none_or(|name| !name.chars().any(char::is_control)));
        }
    }
}
