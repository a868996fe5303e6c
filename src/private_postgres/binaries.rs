//! Finds the installed Postgres programs and the user they may run as.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest version that the schema and its functions work with.
pub const OLDEST_MAJOR: u32 = 14;

/// One installed Postgres: the folder of its programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The folder that holds `postgres`, `initdb` and, nearly always, `psql`.
    pub bin_dir: PathBuf,
    /// The major version, 14 or more.
    pub major: u32,
}

impl Installation {
    /// A command for one of its programs, run as `user`, out of reach of the environment of the caller.
    pub fn command(&self, program: &str, user: Option<ServerUser>) -> Command {
        let mut command = Command::new(self.bin_dir.join(program));
        // PGDATA, PGPORT and the like belong to somebody else's server; LC_ALL=C keeps messages and dates in one form.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG") || name.starts_with("LC_")) {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").current_dir("/");
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }
}

impl fmt::Display for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.major, self.bin_dir.display())
    }
}

/// What a search found, and where it looked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Usable installations, newest first.
    pub installations: Vec<Installation>,
    /// Every place that was looked at, for the message when nothing fits.
    pub looked_at: Vec<String>,
}

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Search {
    /// `EBBTIDE_PG_BIN` if it is set, else `PATH`, `pg_config --bindir` and the places the packages use.
    Installed,
    /// Here only.
    Only(Vec<PathBuf>),
}

impl Search {
    /// Looks for programs; each place counts only if both `postgres` and `initdb` answer from it.
    pub fn find(&self) -> Found {
        let mut found = Found::default();
        let mut seen = BTreeSet::new();
        for place in self.places(&mut found.looked_at) {
            // A link in /usr/local/bin stands for the folder it points into: initdb looks for its files from there.
            let Ok(postgres) = place.join("postgres").canonicalize() else { continue };
            let Some(bin_dir) = postgres.parent().map(Path::to_path_buf) else { continue };
            if !bin_dir.join("initdb").is_file() || !seen.insert(bin_dir.clone()) {
                continue;
            }
            if let Some(major) = major_of(&postgres).filter(|major| *major >= OLDEST_MAJOR) {
                found.installations.push(Installation { bin_dir, major });
            }
        }
        // Stable: of equal versions the one found first wins, so PATH comes before the packages' places.
        found.installations.sort_by_key(|installation| std::cmp::Reverse(installation.major));
        found
    }

    fn places(&self, looked_at: &mut Vec<String>) -> Vec<PathBuf> {
        let mut places = Vec::new();
        match self {
            Search::Only(dirs) => {
                looked_at.extend(dirs.iter().map(|dir| dir.display().to_string()));
                places.extend(dirs.iter().cloned());
            }
            Search::Installed => {
                if let Some(dir) = std::env::var_os("EBBTIDE_PG_BIN").filter(|dir| !dir.is_empty()) {
                    looked_at.push(format!("EBBTIDE_PG_BIN={}", dir.display()));
                    return vec![PathBuf::from(dir)];
                }
                looked_at.push("PATH".to_owned());
                places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
                looked_at.push("pg_config --bindir".to_owned());
                places.extend(output_of(Command::new("pg_config").arg("--bindir")).map(PathBuf::from));
                for (parent, prefix) in [
                    ("/usr/lib/postgresql", ""),
                    ("/usr", "pgsql-"),
                    ("/opt/homebrew/opt", "postgresql"),
                    ("/usr/local/opt", "postgresql"),
                ] {
                    looked_at.push(format!("{parent}/{prefix}*/bin"));
                    places.extend(
                        std::fs::read_dir(parent)
                            .into_iter()
                            .flatten()
                            .flatten()
                            .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
                            .map(|entry| entry.path().join("bin")),
                    );
                }
            }
        }
        places
    }
}

/// `postgres (PostgreSQL) 17.2 (Debian 17.2-1)` → 17.
fn major_of(postgres: &Path) -> Option<u32> {
    let line = output_of(Command::new(postgres).arg("--version"))?;
    let version = line.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits = version.find(|c: char| !c.is_ascii_digit()).map_or(version, |end| &version[..end]);
    digits.parse().ok()
}

/// The user the server runs as where we are root, which it refuses to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerUser {
    /// Number of the user.
    pub uid: u32,
    /// Number of its main group.
    pub gid: u32,
}

impl ServerUser {
    /// The user `postgres` (macOS: `_postgres`), as the name service knows it.
    pub fn find() -> Option<ServerUser> {
        ["postgres", "_postgres"].into_iter().find_map(|name| {
            let number = |what: &str| output_of(Command::new("id").args([what, name]))?.parse().ok();
            Some(ServerUser { uid: number("-u")?, gid: number("-g")? }).filter(|user| user.uid != 0)
        })
    }

    /// Whether this user can walk to `dir` and into it.
    pub fn can_enter(self, dir: &Path) -> bool {
        // Asked as that user, so that access lists and group rights count as the kernel counts them.
        Command::new("/bin/sh")
            .args([OsStr::new("-c"), OsStr::new("cd -- \"$0\" 2>/dev/null"), dir.as_os_str()])
            .current_dir("/")
            .uid(self.uid)
            .gid(self.gid)
            .status()
            .is_ok_and(|status| status.success())
    }
}

fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(std::process::Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
