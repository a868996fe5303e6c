//! Databases as people name them: by whatever URL they have at hand, behind TLS, down, or not there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use ebbtide::private_postgres::ServerUser;
use ebbtide::store::{Store, StoreSettings};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::support::process::ebbtide_command;
use crate::support::{Ebbtide, OwnPg, Pg, free_addr, free_port, http, pg, wait_until};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn urls_of_other_programs_reach_the_database() {
    let pg = Pg::new().await;
    let (_, rest) = pg.url.split_once("://").unwrap();
    let (user, place) = rest.split_once('@').unwrap();
    let (name, password) = user.split_once(':').unwrap();
    for url in [
        format!(" '{}'\n", pg.url),
        format!("postgresql+psycopg://{rest}"),
        format!("{}?schema=public", pg.url),
        format!("jdbc:postgresql://{place}?user={name}&password={password}"),
    ] {
        Ebbtide::succeed(&["status"], &[("DATABASE_URL", &url)]);
    }
    for (url, words) in [
        ("mysql://u:TOPSECRET@h/d", "must begin with postgres://"),
        ("postgres://u:TOPSECRET@h/d?pgbouncer=true", "its option pgbouncer is not known here: leave it out"),
    ] {
        let output = Ebbtide::output(&["status"], &[("DATABASE_URL", url)]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        let text = said(&output);
        assert!(text.contains("DATABASE_URL") && text.contains(words) && !text.contains("TOPSECRET"), "{text}");
    }
}

#[tokio::test]
async fn what_keeps_from_connecting_is_said_once_and_with_the_place() {
    let pg = Pg::empty().await;
    let (place, _) = pg.url.rsplit_once('/').unwrap();
    let output = Ebbtide::output(&["run", "--source", "devnet", "--database-url", &format!("{place}/nope")], &[]);
    let text = said(&output);
    let last = text.lines().last().unwrap();
    let (_, addr) = place.rsplit_once('@').unwrap();
    assert_eq!(
        last,
        format!(
            "ebbtide: the database cannot be reached: there is no connection to Postgres at {addr}: database \"nope\" does \
             not exist"
        )
    );
    let nobody = format!("127.0.0.1:{}", free_port());
    let output = Ebbtide::output(&["status", "--database-url", &format!("postgres://u:TOPSECRET@{nobody}/d")], &[]);
    let text = said(&output);
    assert!(text.contains(&nobody) && text.contains("refused") && !text.contains("TOPSECRET"), "{text}");
}

/// A file that the server's user may read as its own.
fn put(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    if rustix::process::geteuid().is_root() {
        let user = ServerUser::find().unwrap();
        std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)).unwrap();
    }
    path
}

/// A certificate and its key, signed by an authority; for a server of this name, or for a client.
fn signed(authority: &Issuer<'_, KeyPair>, name: &str, purpose: ExtendedKeyUsagePurpose) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.extended_key_usages = vec![purpose];
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), Issuer::new(params, key))
}

#[tokio::test]
async fn a_private_authority_is_believed_where_it_is_named_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str, text: &str| put(folder.path(), name, text).display().to_string();
    let (ours, issuer) = authority();
    let (others, _) = authority();
    let (server, server_key) = signed(&issuer, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let (client, client_key) = signed(&issuer, "postgres", ExtendedKeyUsagePurpose::ClientAuth);
    let (ours, others) = (path("ours.pem", &ours), path("others.pem", &others));
    let settings = [
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", path("server.pem", &server)),
        format!("ssl_key_file={}", path("server.key", &server_key)),
        format!("ssl_ca_file={ours}"),
    ];
    let pg = OwnPg::start_with(&settings.each_ref().map(String::as_str)).await;
    let port = pg.addr().port();
    let connects = async |host: &str, query: &str| {
        let url = format!("postgres://postgres@{host}:{port}/ebbtide?{query}");
        let store = Store::open(&url, StoreSettings::default()).map_err(|error| error.to_string())?;
        store.ping().await.map_err(|error| error.to_string())
    };
    let (cert, key) = (path("client.pem", &client), path("client.key", &client_key));
    // Its name is localhost, so an address of numbers is another name.
    for (host, query) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={ours}")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ours}")),
        ("127.0.0.1", format!("sslrootcert={ours}")),
        ("127.0.0.1", "sslmode=no-verify".to_owned()),
        ("localhost", format!("sslmode=verify-full&sslrootcert={ours}&sslcert={cert}&sslkey={key}")),
    ] {
        connects(host, &query).await.unwrap_or_else(|error| panic!("{host} {query}: {error}"));
    }
    for (host, query, words) in [
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ours}"), "certificate"),
        ("localhost", format!("sslmode=verify-full&sslrootcert={others}"), "certificate"),
        ("localhost", format!("sslrootcert={others}"), "certificate"),
        (
            "localhost",
            "sslmode=verify-full".to_owned(),
            "name the authority that signed its certificate by sslrootcert",
        ),
        ("localhost", "sslrootcert=/no/such.pem".to_owned(), "its sslrootcert /no/such.pem cannot be used"),
        ("localhost", format!("sslrootcert={key}"), "it holds no certificate"),
    ] {
        let error = connects(host, &query).await.expect_err(&query);
        assert!(error.contains(words), "{host} {query}: {error}");
    }
    // The client's own certificate is what lets it in.
    let asked = pg.client().await;
    let hba: String = asked.query_one("select current_setting('hba_file')", &[]).await.unwrap().get(0);
    std::fs::write(&hba, "hostssl all all all cert clientcert=verify-full\n").unwrap();
    asked.batch_execute("select pg_reload_conf()").await.unwrap();
    wait_until("only certificates let in", async || {
        let error = connects("localhost", &format!("sslrootcert={ours}")).await.err()?;
        error.contains("certificate").then_some(())
    })
    .await;
    let query = format!("sslmode=verify-full&sslrootcert={ours}&sslcert={cert}&sslkey={key}");
    connects("localhost", &query).await.unwrap();
}

#[tokio::test]
async fn psql_is_given_the_password_where_nobody_else_reads_it() {
    let pg = Pg::new().await;
    let password = String::from_utf8(pg.config().get_password().unwrap().to_vec()).unwrap();
    let mut command = ebbtide_command(&["psql", "-X", "-A", "-t"], &[("DATABASE_URL", &pg.url)]);
    command.stdin(Stdio::piped());
    let mut psql = Ebbtide::spawn_command(command);
    let arguments = || std::fs::read_to_string(format!("/proc/{}/cmdline", psql.pid())).unwrap_or_default();
    let as_psql = wait_until("it became psql", async || {
        Some(arguments()).filter(|arguments| arguments.starts_with("psql") || arguments.contains("/psql"))
    })
    .await;
    assert!(as_psql.contains("host=") && !as_psql.contains(&password), "{as_psql}");
    use std::io::Write;
    writeln!(psql.stdin(), "select current_database(), current_schema();").unwrap();
    let name = pg.config().get_dbname().unwrap().to_owned();
    wait_until("psql answers", async || {
        psql.stdout().iter().any(|line| *line == format!("{name}|ebbtide")).then_some(())
    })
    .await;
    drop(pg::connect(&pg.url).await);
}

#[tokio::test]
async fn what_the_administrator_set_a_role_to_is_the_one_that_reads() {
    let pg = Pg::new().await;
    let admin = pg.client().await;
    let (app, owner) = (format!("app_{}", std::process::id()), format!("owner_{}", std::process::id()));
    admin
        .batch_execute(&format!(
            "create role {owner}; grant usage on schema ebbtide to {owner};
             grant select on all tables in schema ebbtide to {owner};
             create role {app} login noinherit password 'app' in role {owner}; alter role {app} set role = {owner}"
        ))
        .await
        .unwrap();
    let (place, password) = (pg.url.split_once('@').unwrap().1, "app");
    let output = Ebbtide::output(&["status", "--database-url", &format!("postgres://{app}:{password}@{place}")], &[]);
    let clean = format!("drop owned by {app}, {owner}; drop role {app}, {owner}");
    admin.batch_execute(&clean).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[tokio::test]
async fn a_standby_is_read_and_says_when_it_is_not_fed() {
    let primary = OwnPg::start().await;
    let url = primary.url();
    Ebbtide::succeed(&["migrate", "--database-url", &url], &[]);
    let db = primary.client().await;
    db.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
    let put = async |height: i64| {
        let gold =
            serde_json::json!([{"tx_index": 0, "event_index": 0, "token": "gold", "to_address": "alice", "amount": 5}]);
        let parent = height - 1;
        db.batch_execute(&format!(
            "select put_block('main', {height}, 'a{height}', 'a{parent}', token_events => '{gold}')"
        ))
        .await
        .unwrap();
    };
    put(1).await;
    let _process = Ebbtide::spawn(&["process", "--database-url", &url], &[]);
    let standby = primary.standby().await;
    let standby_url = standby.url();
    let (api, operator) = (free_addr(), free_addr());
    let (listen, operator_listen) = (api.to_string(), operator.to_string());
    let args = ["serve", "--database-url", &standby_url, "--listen", &listen, "--operator-listen", &operator_listen];
    let _serve = Ebbtide::spawn(&args, &[]);
    let status = || Ebbtide::output(&["status", "--database-url", &standby_url], &[]);
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned() + &said(output);
    put(2).await;
    wait_until("it shows what the primary has", async || {
        let balances = http::get(api, "/tokens/balances").await;
        (http::ready(operator).await.0 && balances.contains(r#""amount":"10""#)).then_some(())
    })
    .await;
    wait_until("status says that all is well", async || (status().status.code() == Some(0)).then_some(())).await;
    // A lock is replayed too.
    db.batch_execute("begin; lock table blocks").await.unwrap();
    wait_until("it names the primary", async || {
        let (is_ready, words) = http::ready(operator).await;
        (!is_ready && words.contains("(replay of a transaction of the primary)")).then_some(())
    })
    .await;
    db.batch_execute("rollback").await.unwrap();
    wait_until("it is let go", async || http::ready(operator).await.0.then_some(())).await;
    let mut primary = primary;
    drop(db);
    primary.stop().await;
    wait_until("it says so", async || {
        let (is_ready, words) = http::ready(operator).await;
        (!is_ready && words.contains("silent: the processor has given no sign of life")).then_some(())
    })
    .await;
    let output = status();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("see to the replication of this standby"), "{}", text(&output));
    assert!(http::get(api, "/tokens/balances").await.contains(r#""amount":"10""#), "it is read all the same");
}

/// The kernel takes connections for a server that is frozen.
#[tokio::test]
async fn a_server_that_takes_connections_and_answers_nothing_is_said() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://someone@{}/some?sslmode=disable", listener.local_addr().unwrap());
    let mut status = Ebbtide::spawn(&["status", "--database-url", &url], &[]);
    let ended = status.wait(Duration::from_secs(20)).await;
    let said = status.stderr().join("\n");
    assert!(!ended.success() && said.contains("has not answered within 10s"), "{said}");
}
