//! The part of the keeper: starts workers, holds what must not close, kills at chosen moments, and judges the end.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use blockcow_engine::destination::manifest_path_for;
use blockcow_engine::verify::verify;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::Value;

use crate::rig::{PATIENCE, assert_same};
use crate::worker::{Orders, PART};

/// A running worker.
pub struct Worker {
    process: Child,
    lines: Receiver<String>,
}

/// How a worker ended.
#[derive(Debug)]
pub enum End {
    Killed,
    /// The figures of the backup at its end.
    Ended(Value),
    /// It could not go on, for this reason.
    Refused(String),
}

/// One backup, however many workers it takes.
pub struct Case {
    pub orders: Orders,
    kept: Vec<(String, OwnedFd)>,
    /// A worker said that the cut has been made.
    pub armed: bool,
    pub killed: u64,
}

impl Case {
    pub fn new(orders: Orders) -> Self {
        Self { orders, kept: Vec::new(), armed: false, killed: 0 }
    }

    /// Starts the first worker, takes what must be kept, and lets it make the cut.
    pub fn begin(&mut self, wrapper: &[&str]) -> Worker {
        let mut worker = self.start(wrapper);
        let line = worker.line(PATIENCE).expect("the worker says what must be kept");
        let names = line.strip_prefix("kept ").unwrap_or_else(|| panic!("{line}"));
        let pid = if wrapper.is_empty() { worker.process.id() } else { child_of(worker.process.id()) };
        let pidfd = pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap();
        let take = |pair: &str| {
            let (name, fd) = pair.split_once('=').unwrap();
            (name.to_owned(), pidfd_getfd(&pidfd, fd.parse().unwrap(), PidfdGetfdFlags::empty()).unwrap())
        };
        self.kept = names.split(' ').map(take).collect();
        worker.process.stdin.take().unwrap().write_all(b"go\n").unwrap();
        worker
    }

    /// Starts another worker in the place of the dead one.
    pub fn go_on(&mut self, wrapper: &[&str]) -> Worker {
        self.start(wrapper)
    }

    fn start(&self, wrapper: &[&str]) -> Worker {
        let program = env::current_exe().unwrap().into_os_string().into_string().unwrap();
        let line: Vec<&str> = wrapper
            .iter()
            .copied()
            .chain([&*program, "--exact", "worker::part_of_the_worker", "--nocapture"])
            .collect();
        let raw: Vec<i32> = self.kept.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let kept = self.kept.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd())).collect();
        let orders = Orders { kept, ..self.orders.clone() };
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).env(PART, serde_json::to_string(&orders).unwrap());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: only makes system calls that are safe after a fork; the descriptors outlive the call to `spawn`.
        unsafe {
            command.pre_exec(move || {
                for &fd in &raw {
                    if libc::fcntl(fd, libc::F_SETFD, 0) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let mut process = command.spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || {
            let said = output.lines().map_while(Result::ok);
            // What the test harness says before may stand on the same line.
            let own = said.filter_map(|line| line.split_once('@').map(|(_, own)| own.to_owned()));
            own.for_each(|line| drop(sender.send(line)));
        });
        Worker { process, lines }
    }

    /// Watches a worker for so long, then kills it, unless it ends before.
    pub fn watch(&mut self, mut worker: Worker, mercy: Duration) -> End {
        let deadline = std::time::Instant::now() + mercy;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            match worker.line(left) {
                Ok(line) if line == "armed" || line == "resumed" => self.armed = true,
                Ok(line) if line.starts_with("refused ") => {
                    worker.process.wait().unwrap();
                    return End::Refused(line);
                }
                Ok(line) => {
                    worker.process.wait().unwrap();
                    let figures = line.strip_prefix("end ").unwrap_or_else(|| panic!("{line}"));
                    return End::Ended(serde_json::from_str(figures).unwrap());
                }
                Err(RecvTimeoutError::Timeout) if mercy >= PATIENCE => panic!("the worker hangs"),
                Err(_) => {
                    worker.process.kill().unwrap();
                    let status = worker.process.wait().unwrap();
                    assert!(!status.success() || mercy < PATIENCE, "the worker left without a word: {status}");
                    self.killed += 1;
                    // What it said before it died counts.
                    while let Ok(line) = worker.lines.recv() {
                        self.armed |= line == "armed" || line == "resumed";
                    }
                    return End::Killed;
                }
            }
        }
    }

    /// The image is complete, one cut, and `verify` agrees.
    pub fn assert_complete(&mut self, figures: &Value) {
        // With the descriptors the lock on the image is kept.
        self.kept.clear();
        let Orders { seed, .. } = self.orders;
        assert_eq!(figures["status"], "complete", "seed {seed}: {figures}");
        let (image, expected) = (self.image(), fs::read(self.orders.expected()).unwrap());
        assert_same(&fs::read(&image).unwrap(), &expected, &format!("{:?}: the image", self.orders));
        let report = verify(&image, &manifest_path_for(&image), &|_, _| std::ops::ControlFlow::Continue(())).unwrap();
        assert!(report.damaged.is_empty(), "seed {seed}");
        assert_eq!(report.digest, figures["digest"].as_str().unwrap(), "seed {seed}");
        self.assert_names(&["image", "image.manifest"]);
    }

    pub fn image(&self) -> PathBuf {
        self.orders.folder.join("image")
    }

    /// These are the names at the destination, and no others.
    pub fn assert_names(&self, expected: &[&str]) {
        let names = fs::read_dir(&self.orders.folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> =
            names.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with("image")).collect();
        names.sort();
        assert_eq!(names, expected, "seed {}", self.orders.seed);
    }
}

impl Worker {
    fn line(&mut self, timeout: Duration) -> Result<String, RecvTimeoutError> {
        self.lines.recv_timeout(timeout)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The one child of a process.
fn child_of(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}
