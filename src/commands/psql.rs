//! `ebbtide psql`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};
use ebbtide::config::Settings;
use ebbtide::private_postgres::{self, Search};
use ebbtide::store::Address;

use super::{database_url, open};

/// Becomes psql. Its arguments are everybody's to read, so the password goes by PGPASSWORD.
pub(super) async fn psql(settings: &Settings, args: &[String]) -> Result<ExitCode> {
    // What a person sets there would be left in sessions that others use. Anything else that is wrong psql says itself.
    if let Ok(store) = open(settings, "ebbtide psql").await {
        store.check_sessions()?;
    }
    let (address, password) = Address::parse(&database_url(settings)?)?.for_libpq();
    let private =
        settings.database_url.is_none().then(|| private_postgres::running(&settings.private_dir, &Search::Installed));
    let program = match private.flatten() {
        Some(running) => running.bin_dir.join("psql"),
        None => "psql".into(),
    };
    let path = "-c search_path=ebbtide,public";
    let options = match std::env::var("PGOPTIONS") {
        Ok(theirs) => [&theirs, " ", path].concat(),
        Err(_) => path.to_owned(),
    };
    let mut command = Command::new(&program);
    command.env("PGOPTIONS", options).arg(address).args(args);
    if let Some(password) = password {
        command.env("PGPASSWORD", password);
    }
    let error = command.exec();
    Err(anyhow!("{} cannot be started: {error}; install PostgreSQL's client programs", program.display()))
}
