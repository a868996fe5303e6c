//! Settings as they come from a person's shell: variables of other programs, files in the folder, faults.

use std::process::Output;

use crate::support::process::ebbtide_command;
use crate::support::{Ebbtide, Pg};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What compose's file and Kubernetes put into the environment of every command.
const FOREIGN: [(&str, &str); 8] = [
    ("EBBTIDE_SOURCE", "evm"),
    ("EBBTIDE_URL", "https://node.example/TOPSECRET"),
    ("EBBTIDE_PORT", "tcp://10.0.0.7:8080"),
    ("EBBTIDE_SERVICE_HOST", "10.0.0.7"),
    ("EBBTIDE_SERVICE_PORT", "8080"),
    ("EBBTIDE_PORT_8080_TCP", "tcp://10.0.0.7:8080"),
    ("EBBTIDE_PORT_8080_TCP_ADDR", "10.0.0.7"),
    ("EBBTIDE_API_SERVICE_PORT_HTTP", "8080"),
];

#[tokio::test]
async fn variables_of_compose_and_kubernetes_do_not_end_a_command() {
    let pg = Pg::new().await;
    let output = Ebbtide::output(&["status", "--database-url", &pg.url], &FOREIGN);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    let warned: Vec<&str> = text.lines().filter(|line| line.contains("is no setting")).collect();
    assert_eq!(warned.len(), 2, "{text}");
    assert!(
        text.contains("EBBTIDE_SOURCE is no setting and is ignored; the nearest one is EBBTIDE_CHAINS__NAME__SOURCE")
    );
    assert!(text.contains("EBBTIDE_CHAINS__NAME__URLS") && !text.contains("TOPSECRET"), "{text}");
    // The check is where they are refused.
    let output = Ebbtide::output(&["config", "--check", "--database-url", &pg.url], &FOREIGN);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(said(&output).lines().count(), 2, "{}", said(&output));
    Ebbtide::succeed(&["config", "--check", "--database-url", &pg.url], &FOREIGN[2..]);
}

#[tokio::test]
async fn a_settings_file_that_is_merged_in_is_named() {
    let pg = Pg::new().await;
    let folder = tempfile::tempdir().unwrap();
    let run = |text: &str, args: &[&str]| {
        std::fs::write(folder.path().join("ebbtide.toml"), text).unwrap();
        ebbtide_command(args, &[]).current_dir(folder.path()).output().unwrap()
    };
    let output = run("workers = 2\n", &["process", "--once", "--database-url", &pg.url]);
    assert!(
        output.status.success() && said(&output).contains("Settings are read from ebbtide.toml"),
        "{}",
        said(&output)
    );
    let output = run("workers = 0\nbatch = 0\nwrokers = 1\n", &["process", "--once", "--database-url", &pg.url]);
    assert_eq!(output.status.code(), Some(2));
    let text = said(&output);
    let words = ["workers is 0", "batch is 0", "ebbtide.toml: wrokers is no setting; the nearest one is workers"];
    assert!(words.iter().all(|words| text.contains(words)), "{text}");
    // Neither a line of the file nor a value is shown that may hold a password.
    let output = run("database_url = 'postgres://u:TOPSECRET@h/d\n", &["status"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("ebbtide.toml, line 1") && !said(&output).contains("TOPSECRET"),
        "{}",
        said(&output)
    );
    let output = run("database_url = 'postgres://u:TOPSECRET@h/d'\n", &["config"]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        shown.contains("workers = 4") && shown.contains("postgres://h/") && !shown.contains("TOPSECRET"),
        "{shown}"
    );
}
