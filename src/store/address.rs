//! Addresses of databases as people write them: for libpq, JDBC, SQLAlchemy, Prisma or node.

use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::StoreError;

/// Options of other programs that say nothing to this one: `schema` and `currentSchema` name where *their* tables are.
const WITHOUT_MEANING: [&str; 6] =
    ["schema", "currentSchema", "gssencmode", "sslsni", "sslcompression", "fallback_application_name"];

/// What libpq calls the authorities that the machine trusts.
pub(super) const SYSTEM: &str = "system";

/// Whose certificate is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Asked {
    /// Anybody's: it is encrypted, and that is all.
    #[default]
    Nothing,
    /// One that a trusted authority signed, for whatever name.
    Authority,
    /// One that a trusted authority signed for the host's name.
    Name,
}

/// What TLS is to do, as files that are not read yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct TlsWishes {
    pub(super) asked: Asked,
    /// Certificates of the authorities that are trusted (PEM). None, and [`SYSTEM`], mean those of this machine.
    pub(super) authorities: Option<PathBuf>,
    /// Our own certificate and its key (PEM).
    pub(super) own: Option<(PathBuf, PathBuf)>,
}

/// An address that was read.
#[derive(Debug, Clone)]
pub struct Address {
    pub(super) config: Config,
    pub(super) tls: TlsWishes,
}

/// What an address says, by libpq's words.
struct Said {
    /// Without options that only we read.
    config: String,
    ssl_mode: Option<String>,
    root: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl Address {
    /// Reads an address, `postgres://…` or `key=value …`, with what other programs add to it. Reads no file and asks nobody.
    ///
    /// # Errors
    /// [`StoreError::Address`], which says what to write instead and repeats nothing of the address but names of options.
    pub fn parse(text: &str) -> Result<Address, StoreError> {
        Address::read(text).map_err(|reason| StoreError::Address { reason })
    }

    fn read(text: &str) -> Result<Address, String> {
        let said = said(text)?;
        let mut config: Config = said.config.parse().map_err(|error: tokio_postgres::Error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            format!("{why}; in a password, write @ : / ? # and % as %40 %3A %2F %3F %23 and %25")
        })?;
        if config.get_hosts().is_empty() {
            return Err("it names no host: write postgres://USER:PASSWORD@HOST:5432/DATABASE".to_owned());
        }
        // Of a password with such a sign the rest would be taken for the host, and be shown.
        if config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(name) if name.contains(['@', '/', '#']))) {
            return Err("its host is none; in a password, write @ as %40".to_owned());
        }
        let (mode, asked) = match said.ssl_mode.as_deref() {
            // A file of authorities is named to be used.
            None if said.root.is_some() => (SslMode::Require, Asked::Authority),
            None if config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) => {
                (SslMode::Disable, Asked::Nothing)
            }
            None | Some("prefer" | "allow") if said.root.is_none() => (SslMode::Prefer, Asked::Nothing),
            None | Some("prefer" | "allow") => (SslMode::Prefer, Asked::Authority),
            Some("disable" | "false") => (SslMode::Disable, Asked::Nothing),
            // libpq: with a file of authorities, `require` asks for one of them.
            Some("require") if said.root.is_some() => (SslMode::Require, Asked::Authority),
            Some("require" | "no-verify") => (SslMode::Require, Asked::Nothing),
            Some("verify-ca") if said.root.is_some() => (SslMode::Require, Asked::Authority),
            // Anybody can have some name signed by an authority of this machine.
            Some("verify-ca" | "verify-full" | "true") => (SslMode::Require, Asked::Name),
            Some(_) => {
                return Err(
                    "its sslmode must be disable, prefer, require, no-verify, verify-ca or verify-full".to_owned()
                );
            }
        };
        config.ssl_mode(mode);
        let asked = if said.root.as_deref() == Some(SYSTEM) { Asked::Name } else { asked };
        let authorities = said.root.map(PathBuf::from);
        let own = match (said.cert, said.key) {
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            (None, None) => None,
            _ => return Err("sslcert and sslkey belong together: name both, or none".to_owned()),
        };
        Ok(Address { config, tls: TlsWishes { asked, authorities, own } })
    }

    /// Where the server is, for people: `host:port`, or a socket's folder.
    pub fn place(&self) -> String {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate().map(|(n, host)| {
            let port = ports.get(n).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(host) => format!("{host}:{port}"),
                Host::Unix(folder) => format!("{}/.s.PGSQL.{port}", folder.display()),
            }
        });
        hosts.collect::<Vec<_>>().join(", ")
    }

    /// The address in libpq's `key=value` form without the password, and the password: programs are given the first in
    /// their arguments, which everybody can read.
    pub fn for_libpq(&self) -> (String, Option<String>) {
        let config = &self.config;
        let listed = |all: Vec<String>| (!all.is_empty()).then(|| all.join(","));
        let hosts = config.get_hosts().iter().map(|host| match host {
            Host::Tcp(host) => host.clone(),
            Host::Unix(folder) => folder.display().to_string(),
        });
        let path = |path: &PathBuf| path.display().to_string();
        let mode = match (config.get_ssl_mode(), self.tls.asked) {
            (SslMode::Disable, _) => "disable",
            (SslMode::Prefer, _) => "prefer",
            (_, Asked::Nothing) => "require",
            (_, Asked::Authority) => "verify-ca",
            (_, Asked::Name) => "verify-full",
        };
        let all = [
            ("host", listed(hosts.collect())),
            ("hostaddr", listed(config.get_hostaddrs().iter().map(ToString::to_string).collect())),
            ("port", listed(config.get_ports().iter().map(ToString::to_string).collect())),
            ("user", config.get_user().map(str::to_owned)),
            ("dbname", config.get_dbname().map(str::to_owned)),
            ("options", config.get_options().map(str::to_owned)),
            ("sslmode", Some(mode.to_owned())),
            ("sslrootcert", self.tls.authorities.as_ref().map(path)),
            ("sslcert", self.tls.own.as_ref().map(|(cert, _)| path(cert))),
            ("sslkey", self.tls.own.as_ref().map(|(_, key)| path(key))),
        ];
        let written = all.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", quoted(&value?))));
        let password = config.get_password().map(|password| String::from_utf8_lossy(password).into_owned());
        (written.collect::<Vec<_>>().join(" "), password)
    }
}

/// A value of libpq's `key=value` form.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn said(text: &str) -> Result<Said, String> {
    let mut text = text.trim();
    for quote in ['"', '\''] {
        // A shell or an env file would have taken them off.
        if let Some(inner) = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            text = inner.trim();
        }
    }
    let text = text.strip_prefix("jdbc:").unwrap_or(text);
    let is_word = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    match text.split_once("://").filter(|(scheme, _)| !scheme.is_empty() && scheme.chars().all(is_word)) {
        // `postgresql+psycopg`: the driver that another program takes.
        Some((scheme, rest)) => match scheme.split('+').next() {
            Some("postgres" | "postgresql") => of_url(rest),
            _ => Err("it is the URL of something else than a Postgres: it must begin with postgres://".to_owned()),
        },
        None => of_pairs(text),
    }
}

impl Said {
    /// Takes an option that tokio-postgres does not know, or knows less of; otherwise false.
    fn take(&mut self, name: &str, value: String) -> bool {
        let place = match name {
            "sslmode" | "ssl" => &mut self.ssl_mode,
            "sslrootcert" => &mut self.root,
            "sslcert" => &mut self.cert,
            "sslkey" => &mut self.key,
            _ => return WITHOUT_MEANING.contains(&name),
        };
        *place = Some(value);
        true
    }

    fn empty() -> Said {
        Said { config: String::new(), ssl_mode: None, root: None, cert: None, key: None }
    }
}

/// Whether tokio-postgres reads this option; an error that names it where nobody does.
fn known(name: &str) -> Result<(), String> {
    const KNOWN: [&str; 18] = [
        "user",
        "password",
        "dbname",
        "options",
        "application_name",
        "sslnegotiation",
        "host",
        "hostaddr",
        "port",
        "connect_timeout",
        "tcp_user_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_retries",
        "target_session_attrs",
        "channel_binding",
        "load_balance_hosts",
    ];
    if KNOWN.contains(&name) {
        return Ok(());
    }
    // Something longer, or with other signs, is a piece of a password rather than an option.
    let is_option = name.len() <= 32 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    Err(match is_option {
        true => format!("its option {name} is not known here: leave it out"),
        false => "something in it is no option: in a password, write ? as %3F, & as %26 and = as %3D".to_owned(),
    })
}

fn of_url(rest: &str) -> Result<Said, String> {
    let mut said = Said::empty();
    let (server, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut kept = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if !said.take(name, decoded(value)) {
            known(name)?;
            kept.push(option);
        }
    }
    said.config = format!("postgres://{server}");
    if !kept.is_empty() {
        said.config.push('?');
        said.config.push_str(&kept.join("&"));
    }
    Ok(said)
}

/// A text with `%2F` and the like as what they stand for.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// libpq's `key=value key='quoted \' value'`.
fn of_pairs(text: &str) -> Result<Said, String> {
    let neither = || "it is neither postgres://USER:PASSWORD@HOST:5432/DATABASE nor key=value pairs".to_owned();
    let mut said = Said::empty();
    let mut signs = text.chars().peekable();
    loop {
        while signs.next_if(|c| c.is_whitespace()).is_some() {}
        if signs.peek().is_none() {
            return Ok(said);
        }
        let mut name = String::new();
        while let Some(c) = signs.next_if(|c| *c != '=') {
            name.push(c);
        }
        signs.next().ok_or_else(neither)?;
        while signs.next_if(|c| c.is_whitespace()).is_some() {}
        let quote = signs.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        while let Some(c) = signs.next_if(|c| quote && *c != '\'' || !quote && !c.is_whitespace()) {
            value.push(if c == '\\' { signs.next().ok_or_else(neither)? } else { c });
        }
        if quote {
            signs.next().ok_or_else(neither)?;
        }
        let name = name.trim();
        if !said.take(name, value.clone()) {
            known(name)?;
            said.config.push_str(&format!("{name}={} ", quoted(&value)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Address {
        Address::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn addresses_of_other_programs_are_understood() {
        let plain = parse("postgres://me:pw@db.example:5433/app");
        assert_eq!(plain.place(), "db.example:5433");
        for text in [
            "  postgres://me:pw@db.example:5433/app\n",
            "\"postgres://me:pw@db.example:5433/app\"",
            "'postgresql://me:pw@db.example:5433/app'",
            "jdbc:postgresql://db.example:5433/app?user=me&password=pw",
            "jdbc:postgresql://me:pw@db.example:5433/app?currentSchema=public",
            "postgresql+psycopg://me:pw@db.example:5433/app",
            "postgresql+asyncpg://me:pw@db.example:5433/app",
            "postgres://me:pw@db.example:5433/app?schema=public",
            "host=db.example port=5433 user=me password='pw' dbname=app",
            "host = db.example port = 5433 user=me password=pw dbname=app gssencmode=disable",
        ] {
            let read = parse(text);
            assert_eq!(read.for_libpq(), plain.for_libpq(), "{text}");
            assert_eq!(read.config.get_password(), Some(&b"pw"[..]), "{text}");
        }
        let odd = parse(r"host='/var/run/it\'s' user=me password='a b\\c'");
        assert_eq!(odd.config.get_password(), Some(&br"a b\c"[..]));
        assert_eq!(odd.place(), "/var/run/it's/.s.PGSQL.5432");
    }

    #[test]
    fn what_tls_is_to_do_is_read_from_every_spelling() {
        let wishes = |query: &str| {
            let read = parse(&format!("postgres://me@h/d?{query}"));
            let files = read.tls.authorities.map(|file| file.display().to_string());
            (read.config.get_ssl_mode(), read.tls.asked, files, read.tls.own.is_some())
        };
        let ca = || Some("/etc/ca.pem".to_owned());
        for (query, wanted) in [
            ("", (SslMode::Prefer, Asked::Nothing, None, false)),
            ("sslmode=disable", (SslMode::Disable, Asked::Nothing, None, false)),
            ("sslmode=require", (SslMode::Require, Asked::Nothing, None, false)),
            ("sslmode=no-verify", (SslMode::Require, Asked::Nothing, None, false)),
            ("sslmode=verify-full", (SslMode::Require, Asked::Name, None, false)),
            ("sslmode=verify-ca", (SslMode::Require, Asked::Name, None, false)),
            ("ssl=true", (SslMode::Require, Asked::Name, None, false)),
            ("sslrootcert=/etc/ca.pem", (SslMode::Require, Asked::Authority, ca(), false)),
            ("sslmode=require&sslrootcert=%2Fetc%2Fca.pem", (SslMode::Require, Asked::Authority, ca(), false)),
            ("sslmode=verify-ca&sslrootcert=/etc/ca.pem", (SslMode::Require, Asked::Authority, ca(), false)),
            ("sslmode=verify-full&sslrootcert=/etc/ca.pem", (SslMode::Require, Asked::Name, ca(), false)),
            ("sslmode=require&sslrootcert=system", (SslMode::Require, Asked::Name, Some("system".to_owned()), false)),
            ("sslmode=require&sslcert=/a&sslkey=/b", (SslMode::Require, Asked::Nothing, None, true)),
        ] {
            assert_eq!(wishes(query), wanted, "{query}");
        }
    }

    #[test]
    fn what_is_refused_names_the_remedy_and_no_password() {
        for (text, words) in [
            ("", "names no host"),
            ("localhost:5432/SECRET", "neither postgres://"),
            ("mysql://me:SECRET@h/d", "must begin with postgres://"),
            ("postgres://me:SECRET@h/d?sslmode=SECRET", "must be disable, prefer"),
            ("postgres://me:SECRET@h/d?pgbouncer=true", "its option pgbouncer is not known here: leave it out"),
            ("postgres://me:pw?SECRET@h/d", "in a password, write ? as %3F"),
            ("postgres://me:pw@SECRET@h/d", "in a password, write @ as %40"),
            ("postgres://me:SECRET", "in a password, write @ : / ?"),
            ("postgres://me:SECRET@h/d?sslcert=/a", "sslcert and sslkey belong together"),
            ("host=h password='SECRET", "neither postgres://"),
        ] {
            let error = Address::parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn libpq_gets_the_same_address_and_the_password_apart() {
        let (written, password) =
            parse("postgres://me:p%20w@db.example/app?sslrootcert=/c.pem&sslmode=verify-full&sslcert=/a&sslkey=/b")
                .for_libpq();
        assert_eq!(
            written,
            "host='db.example' port='5432' user='me' dbname='app' sslmode='verify-full' sslrootcert='/c.pem' sslcert='/a' \
             sslkey='/b'"
        );
        assert_eq!(password.as_deref(), Some("p w"));
    }
}
