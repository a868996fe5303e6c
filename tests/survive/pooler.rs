//! Behind a real PgBouncer, where one is installed.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::support::check::World;
use crate::support::{Ebbtide, free_port, pg, skip, wait_until};

const PROGRAM: &str = "/usr/sbin/pgbouncer";

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_found_out_and_one_in_session_mode_serves() {
    if !std::path::Path::new(PROGRAM).exists() {
        skip("pgbouncer is not installed");
        return;
    }
    for mode in ["transaction", "session"] {
        let world = World::new(8).await;
        world.branch("a", 1, 3, "a0").await;
        let config = world.pg.as_ref().unwrap().config();
        let password = String::from_utf8(config.get_password().unwrap_or_default().to_vec()).unwrap();
        let (server, port) = (config.get_ports()[0], free_port());
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("users"), "\"postgres\" \"\"\n").unwrap();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={server} user=postgres password={password}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\nauth_file = {}\npool_mode = {mode}\n",
            dir.path().join("users").display()
        );
        let file = dir.path().join("settings.ini");
        std::fs::write(&file, settings).unwrap();
        // It refuses to run as root.
        let mut command = Command::new("setpriv");
        if rustix::process::geteuid().is_root() {
            command.args(["--reuid=65534", "--clear-groups"]);
        }
        let mut pooler = command.arg(PROGRAM).arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let url = pg::through(&world.url, ([127, 0, 0, 1], port).into());
        wait_until("the pooler answers", async || {
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_ok().then_some(())
        })
        .await;
        let ended = Ebbtide::output(&["process", "--once", "--database-url", &url], &[]);
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        pooler.kill().unwrap();
        pooler.wait().unwrap();
        if mode == "session" {
            assert!(ended.status.success(), "{said}");
            world.check().await;
        } else {
            assert!(!ended.status.success() && said.contains("pooler in session mode"), "{said}");
            assert_eq!(world.one("select count(*) from applied_blocks").await.as_deref(), Some("0"));
        }
    }
}
