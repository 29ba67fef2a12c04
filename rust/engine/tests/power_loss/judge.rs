//! What must hold of every disk that is found after a power cut, and whether `verify` says so too. Knows the bytes of each
//! whole backup; reads them with nothing of the code under test.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use blockcow_engine::state::State;
use blockcow_engine::verify::verify;
use tempfile::TempDir;

use crate::disk::{Found, Key};
use crate::rig::folder_in_memory;
use crate::run::{self, Scene, Target, device_in, write_sparse};

/// A whole backup, to the byte.
#[derive(Clone)]
pub struct Whole {
    pub image: Arc<Vec<u8>>,
    pub manifest: Arc<Vec<u8>>,
}

/// How far the backup had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No name had changed: what stood there stands.
    Before,
    Publishing,
    /// It had been reported as complete.
    Reported,
}

/// Judges what one backup leaves.
pub struct Judge {
    pub target: Target,
    /// What stood under the same name before.
    pub older: Option<Whole>,
    pub newer: Whole,
    /// What stands under another name.
    pub beside: Whole,
    place: TempDir,
    /// By contents of image and manifest: whether these are a whole backup, which `verify` has confirmed.
    known: HashMap<Contents, Option<Which>>,
    pub verified: u64,
}

type Contents = (Option<Key>, Option<Key>, bool);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Which {
    Older,
    Newer,
}

type Verdict = Result<(), String>;

fn hold(holds: bool, reason: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(reason()) }
}

impl Judge {
    pub fn new(target: Target, older: Option<Whole>, newer: Whole, beside: Whole) -> Self {
        Self { target, older, newer, beside, place: folder_in_memory(), known: HashMap::new(), verified: 0 }
    }

    /// `Err`: a promise was broken.
    pub fn judge(&mut self, found: &Found<'_>, stage: Stage) -> Verdict {
        self.beside_is_intact(found)?;
        let stray = found.names.keys().find(|name| !KNOWN.contains(&name.as_str()));
        hold(stray.is_none(), || format!("{stray:?} bears a name"))?;
        let which = self.which(found)?;
        hold(which.is_some() || !found.names.contains_key(MANIFEST), || {
            "a manifest bears its name, and what it describes is not whole".into()
        })?;
        if !self.in_place()
            && let Some(&image) = found.names.get(IMAGE)
        {
            let image = found.content(image);
            let whole = self.each().any(|(_, whole)| equal(&image, &whole.image));
            hold(whole, || "an image bears its name and is not whole".into())?;
        }
        match stage {
            Stage::Before => {
                hold(self.older.is_none() || which == Some(Which::Older), || "the older one is gone".into())
            }
            Stage::Publishing => Ok(()),
            Stage::Reported => hold(which == Some(Which::Newer), || "reported complete, and it is not".into()),
        }
    }

    /// The same of a disk that lies: what is not whole is not taken for it.
    pub fn judge_a_liar(&mut self, found: &Found<'_>) -> Verdict {
        self.which(found).map(drop)
    }

    /// Whatever was found, the next backup to the same place is complete.
    pub fn next_works(&self, found: &Found<'_>, contents: &[u8]) -> Verdict {
        let folder = folder_in_memory();
        for place in ["device", "container", "destination"] {
            fs::create_dir(folder.path().join(place)).unwrap();
        }
        write_sparse(&device_in(folder.path()), contents);
        for (name, &file) in &found.names {
            write_sparse(&folder.path().join("destination").join(name), &found.content(file));
        }
        let target = if self.in_place() { Target::InPlaceOlder } else { Target::Older };
        let scene = Scene { inside: false, target, fail_write: false, direct: false };
        let outcome = run::backup(folder.path(), scene, &AtomicBool::new(true));
        let complete = matches!(outcome.end, Ok((State::Complete, _)));
        hold(complete, || format!("the next backup: {:?} after {:?}", outcome.end, found.names))
    }

    fn in_place(&self) -> bool {
        matches!(self.target, Target::InPlace | Target::InPlaceOlder)
    }

    fn each(&self) -> impl Iterator<Item = (Which, &Whole)> {
        self.older.iter().map(|older| (Which::Older, older)).chain([(Which::Newer, &self.newer)])
    }

    fn beside_is_intact(&self, found: &Found<'_>) -> Verdict {
        let content = |name: &str| found.names.get(name).map(|&file| found.content(file));
        let intact = content("earlier").is_some_and(|image| equal(&image, &self.beside.image))
            && content("earlier.manifest").is_some_and(|manifest| equal(&manifest, &self.beside.manifest));
        hold(intact, || "a backup under another name is not what it was".into())
    }

    /// Which whole backup is found under the final names; `verify` must say the same.
    fn which(&mut self, found: &Found<'_>) -> Result<Option<Which>, String> {
        let key = |name: &str| found.names.get(name).map(|&file| found.key(file));
        // Without a manifest it does not matter what is in the image.
        let contents = (key(MANIFEST).and(key(IMAGE)), key(MANIFEST), found.names.contains_key(IMAGE));
        if let Some(&known) = self.known.get(&contents) {
            return Ok(known);
        }
        let content = |name: &str| found.names.get(name).map(|&file| found.content(file));
        let (image, manifest) = (content(IMAGE), content(MANIFEST));
        let whole = |whole: &Whole| {
            image.as_ref().is_some_and(|image| equal(image, &whole.image))
                && manifest.as_ref().is_some_and(|manifest| equal(manifest, &whole.manifest))
        };
        let which = self.each().find(|(_, candidate)| whole(candidate)).map(|(which, _)| which);
        let said = self.verify(image.as_deref(), manifest.as_deref());
        hold(which.is_some() == said, || format!("{which:?} is whole, and verify says {said}"))?;
        self.known.insert(contents, which);
        Ok(which)
    }

    fn verify(&mut self, image: Option<&Vec<u8>>, manifest: Option<&Vec<u8>>) -> bool {
        self.verified += 1;
        let paths = [IMAGE, MANIFEST].map(|name| self.place.path().join(name));
        for (path, bytes) in paths.iter().zip([image, manifest]) {
            match bytes {
                Some(bytes) => write_sparse(path, bytes),
                None => drop(fs::remove_file(path)),
            }
        }
        verify(&paths[0], &paths[1], &|_, _| ControlFlow::Continue(())).is_ok_and(|report| report.damaged.is_empty())
    }
}

const IMAGE: &str = "image";
const MANIFEST: &str = "image.manifest";
/// The names that may be there; what bears another was never to have one.
const KNOWN: [&str; 6] = [IMAGE, MANIFEST, "image.partial", "image.manifest.partial", "earlier", "earlier.manifest"];

fn equal(found: &Arc<Vec<u8>>, expected: &Arc<Vec<u8>>) -> bool {
    Arc::ptr_eq(found, expected) || found == expected
}
