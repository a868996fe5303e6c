//! A real EVM node of the test's own, from the npm packages that `make install-deps` installs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::http::Rpc;
use super::{free_port, skip, wait_until};

/// A running node; ended with the test.
pub struct Anvil {
    child: Child,
    rpc: Rpc,
    /// JSON-RPC over HTTP.
    pub url: String,
    /// The same port speaks WebSocket.
    pub ws_url: String,
}

impl Anvil {
    /// A node that mines when told to (`evm_mine`) or, by default, at every transaction. None where it is not
    /// installed, after [`skip`].
    pub async fn start(args: &[&str]) -> Option<Anvil> {
        let Some(program) = program() else {
            skip("no anvil in node_modules (make install-deps, with npm)");
            return None;
        };
        let port = free_port();
        let child = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--quiet"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (url, ws_url) = (format!("http://127.0.0.1:{port}"), format!("ws://127.0.0.1:{port}"));
        let node = Anvil { child, rpc: Rpc::new(&url), url, ws_url };
        wait_until("anvil answers", async || node.rpc.try_call("eth_chainId", json!([])).await.ok()).await;
        Some(node)
    }

    /// Calls a method; fails the test on an error.
    pub async fn rpc(&self, method: &str, params: Value) -> Value {
        self.rpc.call(method, params).await
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A compiled contract of OpenZeppelin 4.9.6, such as `ERC20PresetMinterPauser`: its ABI and creation code (0x hex).
/// None where it is not installed, after [`skip`].
pub fn contract(name: &str) -> Option<(Value, String)> {
    let path = node_modules().join(format!("@openzeppelin/contracts/build/contracts/{name}.json"));
    if !path.is_file() {
        skip(&format!("no {} (make install-deps, with npm)", path.display()));
        return None;
    }
    let mut artifact: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let bytecode = artifact["bytecode"].as_str().unwrap().to_owned();
    Some((artifact["abi"].take(), bytecode))
}

fn node_modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("node_modules")
}

/// The native program: the package's own starter needs a newer node than distributions have.
fn program() -> Option<PathBuf> {
    let os = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    let cpu = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let program = node_modules().join(format!("@foundry-rs/anvil-{os}-{cpu}/bin/anvil"));
    program.is_file().then_some(program)
}
