//! The folder of a private server: whose it is, how it is made, how the server reaches it.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::geteuid;

use super::DATABASE;
use super::binaries::{Found, Installation, ServerUser};
use super::error::{PrivateError, file_error};

/// Longest socket path that every system takes: macOS has room for 104 bytes with the final NUL, Linux for 108.
const SOCKET_PATH_BYTES: usize = 103;

/// Takes the folder for this process.
pub(super) fn take_lock(data_dir: &Path) -> Result<File, PrivateError> {
    let path = data_dir.join("lock");
    let open = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let mut lock = open.map_err(file_error("open", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(PrivateError::InUse { dir: data_dir.to_owned(), pid });
        }
        Err(TryLockError::Error(e)) => return Err(file_error("lock", &path)(e)),
    }
    let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    written.map_err(file_error("write", &path))?;
    Ok(lock)
}

/// Who the server is to be: us, unless we are root.
pub(super) fn server_user() -> Result<Option<ServerUser>, PrivateError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    ServerUser::find().map(Some).ok_or(PrivateError::NoServerUser)
}

/// Who the server is to be on a folder that is there: its owner, since it accepts no other.
pub(super) fn owner_of(folder: &Path) -> Result<Option<ServerUser>, PrivateError> {
    let owner = std::fs::metadata(folder).map_err(file_error("look at", folder))?;
    let us = geteuid();
    if us.as_raw() == owner.uid() {
        return server_user();
    }
    if !us.is_root() {
        return Err(PrivateError::ForeignOwner { folder: folder.to_owned(), owner: owner.uid(), us: us.as_raw() });
    }
    Ok(Some(ServerUser { uid: owner.uid(), gid: owner.gid() }))
}

/// The installation of the version that made the folder.
pub(super) fn matching(folder: &Path, found: Found) -> Result<Installation, PrivateError> {
    let path = folder.join("PG_VERSION");
    let version = std::fs::read_to_string(&path).map_err(file_error("read", &path))?;
    let needed = version.trim();
    if found.installations.is_empty() {
        return Err(PrivateError::NotInstalled { looked_at: found.looked_at });
    }
    let matching = found.installations.iter().find(|installation| installation.major.to_string() == needed);
    matching.cloned().ok_or_else(|| PrivateError::WrongVersion {
        folder: folder.to_owned(),
        needed: needed.to_owned(),
        installed: found.installations,
    })
}

/// Makes the data folder under another name and renames it when it is whole.
pub(super) fn make_folder(
    data_dir: &Path,
    folder: &Path,
    installation: &Installation,
    user: Option<ServerUser>,
) -> Result<(), PrivateError> {
    for entry in std::fs::read_dir(data_dir).map_err(file_error("look at", data_dir))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("postgres.new.") {
            // Left by a kill. Its initdb may still be at work, so it is not worth a failure, and its name not reused.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let half = data_dir.join(format!("postgres.new.{:08x}", rand::random::<u32>()));
    make_private_dir(&half, user)?;
    let way = Way::to(&half, user)?;
    let mut initdb = installation.command("initdb", user);
    initdb.arg("-D").arg(&way.path).arg(format!("--username={DATABASE}"));
    // The same order of texts and the same messages everywhere; trust: see the top of this file.
    initdb.args(["--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C", "--data-checksums"]);
    // Ctrl-C must not leave it half made and unnoticed, nor reach it before us.
    let output = initdb.process_group(0).stdin(Stdio::null()).output();
    let output = output.map_err(file_error("run", &installation.bin_dir.join("initdb")))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let output = String::from_utf8_lossy(&said).trim().to_owned();
        return Err(PrivateError::Initdb { folder: folder.to_owned(), output });
    }
    let renamed = std::fs::rename(&half, folder).and_then(|()| File::open(data_dir)?.sync_all());
    renamed.map_err(file_error("make", folder))
}

fn make_private_dir(dir: &Path, user: Option<ServerUser>) -> Result<(), PrivateError> {
    let made = DirBuilder::new().mode(0o700).create(dir);
    let owned = made.and_then(|()| user.map_or(Ok(()), |user| chown(dir, Some(user.uid), Some(user.gid))));
    owned.map_err(file_error("make", dir))
}

/// A path by which the server reaches a folder.
pub(super) struct Way {
    pub(super) path: PathBuf,
    /// Kept open until the server has been started: `path` may go through it.
    _open: Option<OwnedFd>,
}

impl Way {
    /// The plain path, if `user` can walk it. A folder below a home that is closed to others (`/root/project`) is
    /// handed over open instead and named `/proc/self/fd/N`: the server, once in it, uses relative paths.
    pub(super) fn to(folder: &Path, user: Option<ServerUser>) -> Result<Way, PrivateError> {
        let plain = Way { path: folder.to_owned(), _open: None };
        let Some(user) = user else { return Ok(plain) };
        if user.can_enter(folder) {
            return Ok(plain);
        }
        if !Path::new("/proc/self/fd").is_dir() {
            return Err(PrivateError::Unreachable { folder: folder.to_owned(), uid: user.uid });
        }
        let open = File::open(folder).map_err(file_error("open", folder))?;
        // Unlike the original, a duplicate stays open in the programs we start.
        let open = rustix::io::dup(&open).map_err(|e| file_error("open", folder)(e.into()))?;
        Ok(Way { path: PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())), _open: Some(open) })
    }
}

/// Where the socket goes: beside the data; where that path is too long for a socket, or holds a comma (which
/// separates hosts in a connection string), a folder of its own below `XDG_RUNTIME_DIR` or `/tmp`.
pub(super) fn socket_dir(folder: &Path, user: Option<ServerUser>) -> Result<PathBuf, PrivateError> {
    let socket = folder.join(".s.PGSQL.5432");
    let path = socket.as_os_str();
    if path.len() <= SOCKET_PATH_BYTES && path.to_str().is_some_and(|path| !path.contains(',')) {
        return Ok(folder.to_owned());
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    // Root's own is closed to the user the server runs as.
    let runtime = runtime.filter(|dir| user.is_none() && dir.is_dir() && dir.as_os_str().len() < 60);
    let parent = runtime.unwrap_or_else(|| PathBuf::from("/tmp"));
    let dir = parent.join(format!("ebbtide-{:016x}", rand::random::<u64>()));
    make_private_dir(&dir, user)?;
    Ok(dir)
}

/// Removes a folder that [`socket_dir`] made, with the socket in it; leaves any other alone. In the way of nobody if
/// it stays.
pub(super) fn remove_socket_dir(dir: &Path) {
    let name = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("ebbtide-"));
    if name.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit())) {
        let _ = std::fs::remove_file(dir.join(".s.PGSQL.5432"));
        let _ = std::fs::remove_file(dir.join(".s.PGSQL.5432.lock"));
        let _ = std::fs::remove_dir(dir);
    }
}

/// The log of this start; the one before is kept beside it.
pub(super) fn fresh_log(path: &Path) -> Result<File, PrivateError> {
    let mut before = path.as_os_str().to_owned();
    before.push(".1");
    match std::fs::rename(path, &before) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file_error("rename", path)(e)),
        _ => {}
    }
    File::options().create(true).append(true).open(path).map_err(file_error("write", path))
}

/// The last lines of the log from here on.
pub(super) fn tail_of(path: &Path, from: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut text)
    });
    if let Err(e) = read {
        return e.to_string();
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
