//! What must hold after a run, whatever failed in it. Knows the contents, the acknowledged writes and the fault; reads
//! files by the standard library alone.

use std::fs;
use std::path::{Path, PathBuf};

use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::manifest::Manifest;
use blockcow_engine::state::State;

use crate::fault::{Fault, Injector, Lasting, Place, Struck, What};
use crate::kernel::{Kind, open_below};
use crate::run::{BLOCK, EXTENT, Outcome, SECTION, SIZE, Scene, Target, device_in, image_in, listed, model, names};

/// A backup as it must be.
pub struct Whole {
    pub image: Vec<u8>,
    /// Its manifest if that is known to the byte.
    pub manifest: Option<Vec<u8>>,
}

/// One run, and what it is measured by.
pub struct Case<'a> {
    pub folder: &'a Path,
    pub scene: Scene,
    pub fault: Fault,
    /// The device at the cut.
    pub contents: &'a [u8],
    /// What the image must be if it is complete.
    pub expected: &'a Whole,
    /// What stands at the destination before, under the same name or another.
    pub older: &'a Whole,
}

type Verdict = Result<(), String>;

fn hold(holds: bool, reason: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(reason()) }
}

impl Case<'_> {
    /// `Err`: a promise was broken.
    pub fn judge(&self, outcome: &Outcome, seen: &Injector) -> Verdict {
        hold(seen.unknown.is_empty(), || format!("system calls that nobody knows: {:?}", seen.unknown))?;
        let open = open_below(self.folder);
        hold(open.is_empty(), || format!("still open: {open:?}"))?;
        self.device(outcome)?;
        self.programs(outcome, &seen.struck)?;
        let left = self.half_done();
        match &outcome.end {
            Ok((State::Complete, _)) => {
                self.nothing_was_swallowed(outcome, &seen.struck)?;
                self.whole()?;
                self.nothing_but(&["image", "image.manifest"])
            }
            Ok((State::Broken, Some(cause))) => {
                self.named(cause)?;
                self.nothing_published(&seen.struck)?;
                let told = ["left behind", "also:"].iter().any(|words| cause.reason.contains(words));
                hold(left.is_empty() || told, || format!("{cause}, and nothing of {left:?}"))
            }
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => self.named(error).and_then(|()| self.nothing_published(&seen.struck)),
        }
    }

    /// The device holds what was acknowledged and nothing else; where the container lies, what it pleases.
    fn device(&self, outcome: &Outcome) -> Verdict {
        let mut expected = model(self.contents, &outcome.writers);
        let mut found = fs::read(device_in(self.folder)).unwrap();
        if self.scene.inside {
            let place = SECTION.start as usize..SECTION.end as usize;
            expected[place.clone()].fill(0);
            found[place].fill(0);
        }
        same(&found, &expected, "the device")
    }

    /// Writes fail that the device itself failed, and no others but under the policy that says so; each tries to copy once.
    fn programs(&self, outcome: &Outcome, struck: &[Struck]) -> Verdict {
        let errors = matches!(self.fault.what, What::Errno(_));
        for writer in &outcome.writers {
            let own = || struck.iter().filter(|call| call.thread == writer.thread);
            let by_the_device = own().filter(|call| errors && changes_the_device(call)).count();
            let failed: Vec<&Error> = writer.writes.iter().filter_map(|write| write.outcome.as_ref().err()).collect();
            for error in &failed {
                self.named(error)?;
            }
            let by_policy = errors && self.scene.fail_write;
            hold(failed.len() == by_the_device || by_policy && failed.len() > by_the_device, || {
                format!("{} writes failed, {by_the_device} by the device: {failed:?}", failed.len())
            })?;
            let mut copies: Vec<usize> =
                own().filter(|call| call.kind == Kind::Read).map(|call| call.changes_before).collect();
            let tried = copies.len();
            copies.dedup();
            hold(tried == copies.len() || by_policy || !errors, || "a write tried to copy again".into())?;
        }
        Ok(())
    }

    /// An error bears the number of the fault, and the kind of its place.
    fn named(&self, error: &Error) -> Verdict {
        let kind = match self.fault.place {
            Place::Device => error.kind == ErrorKind::Device || self.scene.inside && error.kind == ErrorKind::Container,
            Place::Container => error.kind == ErrorKind::Container,
            Place::Destination => error.kind == ErrorKind::Destination,
        };
        let number = matches!(self.fault.what, What::Errno(errno) if error.errno == Some(errno));
        hold(kind && number && !error.operation.is_empty(), || format!("{:?} {error}", error.kind))
    }

    /// No error was overlooked, if it is complete.
    fn nothing_was_swallowed(&self, outcome: &Outcome, struck: &[Struck]) -> Verdict {
        let by_writer = |call: &Struck| outcome.writers.iter().any(|writer| writer.thread == call.thread);
        let harmless = |call: &Struck| {
            // Unlocking what is closed next; and a name is looked at twice, lest it be a link that leads nowhere.
            call.number == libc::SYS_fcntl
                || call.before_the_cut && call.number == libc::SYS_statx && self.fault.lasting == Lasting::Once
                || by_writer(call) && (changes_the_device(call) || self.scene.fail_write)
                || self.scene.fail_write && self.fault.place == Place::Container && call.kind == Kind::Write
        };
        match struck.iter().find(|call| !harmless(call)) {
            Some(call) if self.fault.what != What::Short => Err(format!("complete in spite of {call}")),
            _ => Ok(()),
        }
    }

    fn whole(&self) -> Verdict {
        let image = image_in(self.folder);
        same(&fs::read(&image).unwrap(), &self.expected.image, "the image")?;
        let manifest = Manifest::load(&manifest_in(self.folder)).map_err(|error| error.to_string())?;
        let header = manifest.header();
        hold((header.size, header.block_size, header.extent_size) == (SIZE, BLOCK, EXTENT), || format!("{header:?}"))?;
        hold(header.digest == digest(&self.expected.image), || "the manifest's digest is another image's".into())?;
        let blocks = listed().into_iter().flat_map(|range| range.start / BLOCK..range.end.div_ceil(BLOCK));
        hold(manifest.list().iter().map(u64::from).eq(blocks), || "the manifest's list is another".into())
    }

    /// What was there before is there, no manifest stands beside what it does not describe, and nothing half is left
    /// that could be removed.
    fn nothing_published(&self, struck: &[Struck]) -> Verdict {
        let (image, manifest) = (image_in(self.folder), manifest_in(self.folder));
        let publishing = struck.last().is_some_and(|call| call.publishing);
        if self.scene.target == Target::Older {
            hold(publishing || manifest.exists() && image.exists(), || "the older backup is gone".into())?;
        }
        if self.fault.place == Place::Destination && self.may_leave(struck) {
            // What cannot be removed is right at least, if it calls itself complete.
            return if manifest.exists() { self.older_is_there().or_else(|_| self.whole()) } else { Ok(()) };
        }
        if manifest.exists() {
            let older = matches!(self.scene.target, Target::Older | Target::InPlaceOlder);
            hold(older, || "a manifest, and no complete backup".into())?;
            self.older_is_there()?;
        }
        if image.exists() && self.scene.target == Target::Older {
            same(&fs::read(&image).unwrap(), &self.older.image, "the older image")?;
        }
        self.nothing_but(match self.scene.target {
            Target::Fresh => &[],
            Target::Older | Target::InPlaceOlder => &["image", "image.manifest"],
            Target::InPlace => &["image"],
        })
    }

    fn older_is_there(&self) -> Verdict {
        same(
            &fs::read(manifest_in(self.folder)).unwrap(),
            self.older.manifest.as_ref().unwrap(),
            "the older manifest",
        )?;
        same(&fs::read(image_in(self.folder)).unwrap(), &self.older.image, "the older image")
    }

    /// Whether what was made could not be removed: it cannot be looked at or removed any more.
    fn may_leave(&self, struck: &[Struck]) -> bool {
        match self.fault.lasting {
            Lasting::Once => false,
            Lasting::Kind => struck.iter().any(|call| matches!(call.kind, Kind::Remove | Kind::Look)),
            Lasting::All => true,
        }
    }

    /// No other names than these, and those of a backup that stands beside it.
    fn nothing_but(&self, expected: &[&str]) -> Verdict {
        let found = names(&self.folder.join(Place::Destination.folder()));
        let beside = ["earlier", "earlier.manifest"];
        let stray = found.iter().any(|name| !expected.contains(&&**name) && !beside.contains(&&**name));
        let kept = beside.iter().all(|name| found.iter().any(|found| found == name));
        let container = names(&self.folder.join(Place::Container.folder()));
        hold(!stray && kept && container.is_empty(), || format!("{found:?} {container:?} instead of {expected:?}"))
    }

    fn half_done(&self) -> Vec<String> {
        let found = names(&self.folder.join(Place::Destination.folder()));
        found.into_iter().filter(|name| name.ends_with(".partial")).collect()
    }
}

pub fn manifest_in(folder: &Path) -> PathBuf {
    folder.join("destination/image.manifest")
}

fn changes_the_device(call: &Struck) -> bool {
    matches!(call.kind, Kind::Write | Kind::Shape)
}

fn same(found: &[u8], expected: &[u8], what: &str) -> Verdict {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b);
    Err(format!("{what} has {} of {} bytes and differs first at {at:?}", found.len(), expected.len()))
}

/// The digest of a backup, as `docs/formats.md` says.
pub fn digest(image: &[u8]) -> String {
    let extent = |bytes: &[u8]| match bytes.iter().all(|&byte| byte == 0) {
        true => [0; 32],
        false => *blake3::hash(bytes).as_bytes(),
    };
    let digests: Vec<u8> = image.chunks(EXTENT as usize).flat_map(extent).collect();
    blake3::hash(&digests).to_hex().to_string()
}
