//! What can go wrong with a private server, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::binaries::{Installation, OLDEST_MAJOR};

/// Why there is no private server. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateError {
    /// A file or folder could not be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another ebbtide owns the folder.
    #[error("{} is in use by another ebbtide{}: stop it, or name another folder", dir.display(), pid_text(*pid))]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// The other process, if it could be read.
        pid: Option<u32>,
    },
    /// No server is installed.
    #[error(
        "no PostgreSQL server of version {OLDEST_MAJOR} or newer is installed (looked at {}): {}, or set \
         EBBTIDE_PG_BIN to the folder of its programs, or name a database of your own with --database-url",
        looked_at.join(", "), remedy(None)
    )]
    NotInstalled {
        /// Where it was looked for.
        looked_at: Vec<String>,
    },
    /// The data folder was made by a version that is not installed.
    #[error(
        "the data in {} was made by PostgreSQL {needed}, and only {} is installed: {}, or move the folder away to \
         begin again",
        folder.display(), list(installed), remedy(Some(needed))
    )]
    WrongVersion {
        /// The data folder.
        folder: PathBuf,
        /// What its `PG_VERSION` says.
        needed: String,
        /// What there is.
        installed: Vec<Installation>,
    },
    /// We are root, the server refuses to be, and there is nobody to be instead.
    #[error(
        "PostgreSQL does not run as root and there is no user `postgres` to run it as: \
         run ebbtide as another user, or `useradd --system postgres`"
    )]
    NoServerUser,
    /// We are root, and the user the server runs as cannot get to the data.
    #[error(
        "{} cannot be reached by the user (number {uid}) that the server runs as: \
         use a folder that others may walk to (chmod o+x), or run ebbtide as another user",
        folder.display()
    )]
    Unreachable {
        /// The data folder.
        folder: PathBuf,
        /// The user.
        uid: u32,
    },
    /// The data belongs to somebody else.
    #[error(
        "{} belongs to the user number {owner}, and this is user number {us}: \
         run ebbtide as that user or as root, or name another folder",
        folder.display()
    )]
    ForeignOwner {
        /// The data folder.
        folder: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// `initdb` failed.
    #[error("initdb could not make {}: {output}", folder.display())]
    Initdb {
        /// The data folder.
        folder: PathBuf,
        /// What it said.
        output: String,
    },
    /// The server ended instead of starting, or was not ready in time.
    #[error("the private PostgreSQL did not start ({how}); the end of {}:\n{tail}", log.display())]
    NotStarted {
        /// How it ended.
        how: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// Processes of an earlier server do not end.
    #[error("an earlier server on {} does not end (processes {pids:?}): end it by hand", folder.display())]
    Leftover {
        /// The data folder.
        folder: PathBuf,
        /// The processes.
        pids: Vec<u32>,
    },
    /// The server runs, but its database could not be prepared.
    #[error("the private PostgreSQL refused to prepare its database")]
    Database(#[from] tokio_postgres::Error),
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

fn list(installed: &[Installation]) -> String {
    let words: Vec<String> = installed.iter().map(ToString::to_string).collect();
    words.join(", ")
}

fn remedy(major: Option<&str>) -> String {
    match (cfg!(target_os = "macos"), major) {
        (true, major) => format!("`brew install postgresql@{}`", major.unwrap_or("17")),
        (false, None) => "`apt-get install postgresql`".to_owned(),
        (false, Some(major)) => format!("`apt-get install postgresql-{major}`"),
    }
}

pub(super) fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrivateError {
    let path = path.to_owned();
    move |source| PrivateError::File { what, path, source }
}
