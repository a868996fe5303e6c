//! docker-compose.yml, without Docker: each service's own command and health check, in the file's own order.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ebbtide::private_postgres::Search;
use serde_yaml_ng::Value;

use crate::support::{self, Ebbtide, OwnPg, free_port, wait_until, wait_within};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Replaces `$$`, `${NAME}`, `${NAME:-default}` and `${NAME:+alternative}` as compose does.
fn interpolate(text: &str, variables: &BTreeMap<&str, &str>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let inner = rest.strip_prefix('{').unwrap_or_else(|| panic!("a lone $ in {text:?}"));
        let end = inner.find('}').unwrap();
        let name_end = inner[..end].find(':').unwrap_or(end);
        let value = variables.get(&inner[..name_end]).copied().filter(|value| !value.is_empty());
        out.push_str(match (&inner[name_end..end], value) {
            ("", value) => value.unwrap_or_else(|| panic!("{} has no default", &inner[..name_end])),
            (or, value) if or.starts_with(":-") => value.unwrap_or(&or[2..]),
            (also, Some(_)) if also.starts_with(":+") => &also[2..],
            (also, None) if also.starts_with(":+") => "",
            (other, _) => panic!("{other:?} is not understood here"),
        });
        rest = &inner[end + 1..];
    }
    out + rest
}

fn interpolate_all(value: &mut Value, variables: &BTreeMap<&str, &str>) {
    match value {
        Value::String(text) => *text = interpolate(text, variables),
        Value::Sequence(items) => items.iter_mut().for_each(|item| interpolate_all(item, variables)),
        Value::Mapping(map) => map.values_mut().for_each(|item| interpolate_all(item, variables)),
        _ => {}
    }
}

/// The file as compose sees it.
fn compose(variables: &[(&str, &str)]) -> Value {
    let text = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let mut file: Value = serde_yaml_ng::from_str(&text).unwrap();
    file.apply_merge().unwrap();
    interpolate_all(&mut file, &variables.iter().copied().collect());
    file
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value:?}"))
}

fn services(file: &Value) -> BTreeMap<String, Value> {
    let services = file["services"].as_mapping().unwrap();
    services.iter().map(|(name, service)| (text(name).to_owned(), service.clone())).collect()
}

/// A command in its one-line form, as words. None of ours needs quotes.
fn words(service: &Value) -> Vec<String> {
    let line = text(&service["command"]);
    assert!(!line.contains(['"', '\'', '\\']), "quotes need a better reader than this: {line}");
    line.split_whitespace().map(str::to_owned).collect()
}

/// What must come before a service, with the condition.
fn needs(service: &Value) -> BTreeMap<String, String> {
    let needs = service["depends_on"].as_mapping().cloned().unwrap_or_default();
    needs.iter().map(|(name, how)| (text(name).to_owned(), text(&how["condition"]).to_owned())).collect()
}

/// Services, each after those it needs.
fn in_order(services: &BTreeMap<String, Value>) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    while order.len() < services.len() {
        let next = services
            .iter()
            .find(|(name, service)| !order.contains(*name) && needs(service).keys().all(|need| order.contains(need)));
        order.push(next.unwrap_or_else(|| panic!("needs go in a circle after {order:?}")).0.clone());
    }
    order
}

/// Each container has its own 127.0.0.1; here they share one, so each service gets ports of its own.
struct Ports(BTreeMap<u16, u16>);

impl Ports {
    fn new(service: &Value) -> Ports {
        let line = text(&service["command"]);
        let ports = [6060, 8080].into_iter().filter(|port| line.contains(&format!(":{port}")));
        Ports(ports.map(|port| (port, free_port())).collect())
    }

    fn here(&self, word: &str) -> String {
        let mut word = word.replace("0.0.0.0:", "127.0.0.1:");
        for (there, here) in &self.0 {
            word = word.replace(&format!("127.0.0.1:{there}"), &format!("127.0.0.1:{here}"));
            word = word.replace(&format!("127.0.0.1/{there}"), &format!("127.0.0.1/{here}"));
        }
        word
    }
}

/// Runs a service's health check as the container engine would, inside that service's ports.
fn healthy(service: &Value, ports: &Ports, env: &[(&str, &str)]) -> bool {
    let test: Vec<&str> = service["healthcheck"]["test"].as_sequence().unwrap().iter().map(text).collect();
    assert_eq!(test[0], "CMD");
    let program = ports.here(test[1]);
    let mut command = Command::new(program);
    command.args(test[2..].iter().map(|word| ports.here(word))).envs(env.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

#[tokio::test]
async fn every_service_starts_in_order_becomes_healthy_and_the_api_shows_the_devnet() {
    let file = compose(&[]);
    let services = services(&file);
    let order = in_order(&services);
    println!("order: {order:?}");
    // In this order, so that a failure ends the services before their database.
    let mut postgres = None;
    let mut running: BTreeMap<String, (Ebbtide, Ports)> = BTreeMap::new();
    for name in &order {
        let service = &services[name];
        if name == "postgres" {
            // Its image needs Docker, but its settings and its health check are tried on a server of ours.
            let words = words(service);
            assert_eq!(words[0], "postgres");
            let mut settings: Vec<&str> = words[1..].chunks(2).map(|pair| pair[1].as_str()).collect();
            // The image is newer than what may be installed here: version 14 has one compression only.
            let installed = Search::Installed.find().installations[0].major;
            settings.retain(|setting| installed >= 15 || !setting.starts_with("wal_compression"));
            let own = OwnPg::start_with(&settings).await;
            let port = own.addr().port().to_string();
            assert!(healthy(service, &Ports(BTreeMap::new()), &[("PGPORT", &port)]));
            assert!(!healthy(service, &Ports(BTreeMap::new()), &[("PGPORT", &free_port().to_string())]));
            postgres = Some(own);
            continue;
        }
        let own = postgres.as_ref().expect("everything needs postgres");
        let url = text(&service["environment"]["DATABASE_URL"]);
        assert_eq!(url, "postgres://ebbtide:ebbtide@postgres:5432/ebbtide");
        let mut environment: Vec<(&str, &str)> = Vec::new();
        let here = own.url();
        for (key, value) in service["environment"].as_mapping().unwrap() {
            environment.push((text(key), if text(key) == "DATABASE_URL" { &here } else { text(value) }));
        }
        for (needed, condition) in needs(service) {
            match condition.as_str() {
                "service_completed_successfully" => {
                    let (process, _) = running.get_mut(&needed).unwrap();
                    let status = process.wait(support::PATIENCE).await;
                    assert!(status.success(), "{needed}: {status}\n{}", process.stderr().join("\n"));
                }
                "service_healthy" => assert!(services[&needed]["healthcheck"]["test"].is_sequence(), "{needed}"),
                other => panic!("{other}"),
            }
        }
        let ports = Ports::new(service);
        let words: Vec<String> = words(service).iter().map(|word| ports.here(word)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut process = Ebbtide::spawn(&words, &environment);
        if service["healthcheck"]["disable"].as_bool() != Some(true) {
            let what = format!("{name} is healthy");
            wait_until(&what, async || {
                assert!(process.is_running(), "{name} ended:\n{}", process.stderr().join("\n"));
                healthy(service, &ports, &[]).then_some(())
            })
            .await;
        }
        running.insert(name.clone(), (process, ports));
    }
    let own = postgres.as_ref().unwrap();
    let client = own.client().await;
    let balances = wait_until("balances are there", async || {
        let rows: i64 = client.query_one("select count(*) from balances", &[]).await.unwrap().get(0);
        (rows > 0).then_some(rows)
    })
    .await;
    println!("{balances} balances");
    let (_, api_ports) = &running["api"];
    let answer = get(api_ports.0[&8080], "/chains").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("main"), "{answer}");

    // A service that hangs is seen as such, and all of them end in time when told to.
    let (process, ports) = &running["process"];
    process.freeze();
    assert!(
        !healthy_within(&services["process"], ports, Duration::from_secs(2)).await,
        "a frozen service is not healthy"
    );
    process.thaw();
    for name in ["api", "process", "sync"] {
        let (process, _) = running.get_mut(name).unwrap();
        process.terminate();
        let status = process.wait(Duration::from_secs(10)).await;
        assert!(status.success(), "{name}: {status}\n{}", process.stderr().join("\n"));
    }
}

/// A health check with the engine's time limit.
async fn healthy_within(service: &Value, ports: &Ports, limit: Duration) -> bool {
    let test: Vec<&str> = service["healthcheck"]["test"].as_sequence().unwrap().iter().map(text).collect();
    let mut command = tokio::process::Command::new(test[1]);
    command.args(test[2..].iter().map(|word| ports.here(word))).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    tokio::time::timeout(limit, command.status()).await.is_ok_and(|status| status.unwrap().success())
}

/// A whole HTTP answer from a port here.
async fn get(port: u16, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    wait_within(support::PATIENCE, "the API answers", async || {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let question = format!("GET {path} HTTP/1.1\r\nHost: ebbtide\r\nConnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        (!answer.is_empty()).then_some(answer)
    })
    .await
}

#[test]
fn one_variable_away_from_a_real_chain() {
    let sync = |variables: &[(&str, &str)]| words(&services(&compose(variables))["sync"]).join(" ");
    assert_eq!(sync(&[]), "sync --source devnet --operator-listen 0.0.0.0:6060");
    assert_eq!(
        sync(&[("EBBTIDE_SOURCE", "evm"), ("EBBTIDE_URL", "http://node:8545")]),
        "sync --source evm --url http://node:8545 --operator-listen 0.0.0.0:6060"
    );
    let all = [
        ("EBBTIDE_SOURCE", "evm"),
        ("EBBTIDE_URL", "http://node:8545"),
        ("EBBTIDE_WS_URL", "ws://node:8546"),
        ("EBBTIDE_TOKEN", "0x01"),
        ("EBBTIDE_START_HEIGHT", "7"),
        ("EBBTIDE_SYNC_ARGS", "--finality-depth 12"),
    ];
    assert_eq!(
        sync(&all),
        "sync --source evm --url http://node:8545 --ws-url ws://node:8546 --token 0x01 --start-height 7 \
         --finality-depth 12 --operator-listen 0.0.0.0:6060"
    );
    // The program knows all of these flags: it fails on the database, not on its arguments (2).
    let words = words(&services(&compose(&all))["sync"]);
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
    assert!(Ebbtide::output(&words, &[]).status.success());
}

#[test]
fn only_this_machine_reaches_the_services_and_only_what_the_images_hold_checks_them() {
    let file = compose(&[("EBBTIDE_DB_PASSWORD", "another")]);
    let mut published = 0;
    let mut checked = 0;
    for (name, service) in services(&file) {
        for port in service["ports"].as_sequence().into_iter().flatten() {
            published += 1;
            assert!(text(port).starts_with("127.0.0.1:"), "{name} publishes {port:?}");
        }
        // The slim image holds bash and coreutils, the Postgres image pg_isready; neither holds curl.
        for word in service["healthcheck"]["test"].as_sequence().into_iter().flatten() {
            checked += 1;
            assert!(!text(word).contains("curl") && !text(word).contains("wget"), "{name}");
        }
        if name != "postgres" {
            assert_eq!(text(&service["build"]), ".");
            let url = text(&service["environment"]["DATABASE_URL"]);
            assert_eq!(url, "postgres://ebbtide:another@postgres:5432/ebbtide", "{name}");
        }
    }
    assert!(published == 1 && checked > 3, "{published} {checked}");
    assert_eq!(text(&services(&file)["postgres"]["environment"]["POSTGRES_PASSWORD"]), "another");
}

#[test]
fn the_image_runs_the_program_as_nobody_in_particular() {
    let dockerfile = std::fs::read_to_string(root().join("Dockerfile")).unwrap();
    let last_stage = dockerfile.rsplit("\nFROM ").next().unwrap();
    assert!(last_stage.contains("ENTRYPOINT [\"ebbtide\"]"));
    let user = last_stage.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert_ne!(user, "root");
    assert!(last_stage.contains("ca-certificates"), "https needs roots of trust");
    // What the build reads must get past .dockerignore.
    let ignore = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    for needed in ["Cargo.toml", "Cargo.lock", "src", "migrations", "sql"] {
        assert!(ignore.lines().any(|line| line == format!("!{needed}")), "{needed}");
    }
}

#[test]
fn variables_are_replaced_as_compose_does() {
    let variables = BTreeMap::from([("A", "1"), ("EMPTY", "")]);
    for (text, expected) in [
        ("${A} ${A:-x} ${A:+y}", "1 1 y"),
        ("${B:-x}|${B:+y}|${EMPTY:-x}|${EMPTY:+y}", "x||x|"),
        ("$$A costs 5", "$A costs 5"),
    ] {
        assert_eq!(interpolate(text, &variables), expected);
    }
}
