//! Server processes of a data folder: finds them, ends them, clears what they left.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a fast shutdown may take: it writes what is not written yet. After that the server is ended without.
pub(super) const FAST_STOP: Duration = Duration::from_secs(6);
/// How long the processes of a server may take to notice that they are to end at once.
pub(super) const IMMEDIATE_STOP: Duration = Duration::from_secs(3);
/// How often a process is looked at while it starts or ends.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What `postmaster.pid` says (Postgres, `src/include/utils/pidfile.h`): one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PidFile {
    /// Line 1; a server in single-user mode writes it negative.
    pub(super) pid: u32,
    /// Line 5: the first socket folder; relative ones start at the data folder.
    pub(super) socket_dir: PathBuf,
    /// Line 8: `ready` once connections are taken.
    pub(super) ready: bool,
}

impl PidFile {
    /// None where there is none, or none that is whole.
    pub(super) fn read(folder: &Path) -> Option<PidFile> {
        let text = std::fs::read_to_string(folder.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse::<i64>().ok()?.unsigned_abs().try_into().ok()?;
        let socket_dir = folder.join(lines.nth(3).unwrap_or_default().trim());
        let ready = lines.nth(2).is_some_and(|status| status.trim() == "ready");
        Some(PidFile { pid, socket_dir, ready })
    }
}

/// The processes of a server that runs on `folder`, whoever started it.
///
/// A process id in a file proves nothing: it may have been given to another program since, or belong to a dead
/// process that nobody has waited for. A Postgres process works in its data folder, so that is what is looked at.
pub(super) fn running_in(folder: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return asked_of_ps(folder) };
    let Ok(folder) = std::fs::metadata(folder) else { return Vec::new() };
    let works_here = |pid: &u32| {
        let named = std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("postgres"));
        named
            && std::fs::metadata(format!("/proc/{pid}/cwd"))
                .is_ok_and(|dir| (dir.dev(), dir.ino()) == (folder.dev(), folder.ino()))
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(works_here).collect()
}

/// Without /proc (macOS): the process that the file names, if it is a Postgres on this folder.
fn asked_of_ps(folder: &Path) -> Vec<u32> {
    let Some(file) = PidFile::read(folder) else { return Vec::new() };
    let output = Command::new("ps").args(["-o", "command=", "-p", &file.pid.to_string()]).output();
    let command = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let ours = command.contains("postgres") && command.contains(&*folder.to_string_lossy());
    ours.then_some(file.pid).into_iter().collect()
}

/// Ends every server process on `folder`: in order first, then at once, then by force.
///
/// # Errors
/// The processes that are still there.
pub(super) async fn end_all(folder: &Path) -> Result<(), Vec<u32>> {
    let postmaster = |pids: &[u32]| PidFile::read(folder).map(|file| file.pid).filter(|pid| pids.contains(pid));
    for (signal_, patience) in
        [(Signal::INT, FAST_STOP), (Signal::QUIT, IMMEDIATE_STOP), (Signal::KILL, IMMEDIATE_STOP)]
    {
        let begun = Instant::now();
        let pids = running_in(folder);
        match postmaster(&pids) {
            // It tells its children.
            Some(pid) if signal_ != Signal::KILL => signal(pid, signal_),
            // Left alone, they end by themselves after the statement in hand; what they do is lost either way.
            _ => pids.iter().for_each(|pid| signal(*pid, if signal_ == Signal::INT { Signal::TERM } else { signal_ })),
        }
        while begun.elapsed() < patience {
            if running_in(folder).is_empty() {
                return Ok(());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
    let left = running_in(folder);
    if left.is_empty() { Ok(()) } else { Err(left) }
}

/// Removes the files by which a server that no longer runs would keep the next from starting: their process id may
/// have been given to another program. Only to be called once [`running_in`] found nobody.
pub(super) fn clear_locks(folder: &Path) -> io::Result<()> {
    let mut stale = vec![folder.join("postmaster.pid")];
    stale.extend([".s.PGSQL.5432", ".s.PGSQL.5432.lock"].map(|name| folder.join(name)));
    for path in stale {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Sends a signal. A process that has just ended needs none.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // One that is halted (SIGSTOP) would never hear of it.
        let _ = kill_process(pid, signal).and_then(|()| kill_process(pid, Signal::CONT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_file_is_read_line_by_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let read = |text: &str| {
            std::fs::write(dir.path().join("postmaster.pid"), text).expect("written");
            PidFile::read(dir.path())
        };
        let whole = "4242\n/data\n1795266296\n5432\n/tmp/s\n\n 10330202        50\nready   \n";
        let expected = PidFile { pid: 4242, socket_dir: PathBuf::from("/tmp/s"), ready: true };
        assert_eq!(read(whole), Some(expected.clone()));
        assert_eq!(read(&whole.replace("ready   ", "starting")), Some(PidFile { ready: false, ..expected }));
        assert_eq!(read(&whole.replace("/tmp/s", ".")).map(|f| f.socket_dir), Some(dir.path().join(".")));
        assert_eq!(read("4242\n/data\n").map(|f| (f.pid, f.ready)), Some((4242, false)));
        assert_eq!(read(""), None);
        assert_eq!(read("what"), None);
    }

    #[test]
    fn a_process_that_is_no_server_is_not_taken_for_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let text = format!("{}\n{}\n1\n5432\n.\n\n 1 1\nready\n", std::process::id(), dir.path().display());
        std::fs::write(dir.path().join("postmaster.pid"), text).expect("written");
        assert_eq!(running_in(dir.path()), [0_u32; 0]);
    }
}
