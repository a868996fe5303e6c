//! What strangers wrote, as it reaches a terminal: names of tokens, errors of functions.

use std::process::Output;

use crate::support::check::World;
use crate::support::{Ebbtide, free_addr, wait_until};

/// ESC, which paints and moves; a mark that turns the direction of writing; a line of its own.
const HOSTILE: &str = "\u{1b}[31m\u{202e}red";
const SHOWN: &str = r"\u001b[31m\u202ered";

fn printed(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

fn is_harmless(text: &str) -> bool {
    text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}')
}

#[tokio::test]
async fn names_of_tokens_do_not_speak_to_the_terminal() {
    let world = World::new(64).await;
    world.put(1, "a1", "a0", &[&format!("gold{HOSTILE} - alice 5")]).await;
    world.settle().await;
    world.sql("update balances set amount = 6").await;
    let output = Ebbtide::output(&["verify", "--database-url", &world.url], &[]);
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    assert!(printed(&output).contains(&format!("gold{SHOWN}")), "{}", printed(&output));
    assert!(is_harmless(&printed(&output)), "{:?}", printed(&output));
}

#[tokio::test]
async fn errors_of_functions_stay_on_one_line_of_log_and_table() {
    let world = World::new(64).await;
    world
        .sql(&format!(
            "create table public.kept (n int primary key);
             create function public.fails(bigint, bigint) returns void language plpgsql as $$
             begin raise exception using message = '{HOSTILE}' || chr(10) || 'INFO all is well'; end $$;
             select create_projection('fails', 'public.fails(bigint,bigint)', '{{public.kept}}')"
        ))
        .await;
    world.put(1, "a1", "a0", &["gold - alice 5"]).await;
    let output = Ebbtide::output(&["process", "--once", "--database-url", &world.url], &[]);
    let log = printed(&output);
    assert!(log.contains(SHOWN) && is_harmless(&log), "{log:?}");
    let output = Ebbtide::output(&["status", "--database-url", &world.url], &[]);
    let table = printed(&output);
    assert!(table.contains(SHOWN) && is_harmless(&table), "{table:?}");
    // What programs read stays JSON, and says what was said.
    let output = Ebbtide::output(&["status", "--json", "--database-url", &world.url], &[]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json.to_string().contains("fails"), "{json}");
    for text in [log, table] {
        assert!(!text.lines().any(|line| line.trim_start().starts_with("INFO all is well")), "{text}");
    }
}

#[tokio::test]
async fn pages_of_others_read_the_interface_and_not_the_operators_port() {
    let world = World::new(64).await;
    let (listen, operator) = (free_addr().to_string(), free_addr().to_string());
    let args = ["serve", "--database-url", &world.url, "--listen", &listen, "--operator-listen", &operator];
    let _serve = Ebbtide::spawn(&args, &[]);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let open_to = async |url: String| {
        let answer = wait_until("it answers", async || http.get(&url).send().await.ok()).await;
        answer.headers().get("access-control-allow-origin").map(|origin| origin.to_str().unwrap().to_owned())
    };
    assert_eq!(open_to(format!("http://{listen}/chains")).await.as_deref(), Some("*"));
    for path in ["health", "ready", "metrics", "nothing"] {
        assert_eq!(open_to(format!("http://{operator}/{path}")).await, None, "{path}");
    }
}
