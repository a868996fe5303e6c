//! Runs the built program as a person would.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::own_pg::halt;
use super::{PATIENCE, wait_within};

/// One process of `ebbtide`; killed with the test.
pub struct Ebbtide {
    child: Child,
    stdout: Arc<Mutex<Vec<String>>>,
    stderr: Arc<Mutex<Vec<String>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

/// A command for the built program, without the settings of the person who runs the tests.
pub fn ebbtide_command(args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebbtide"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let setting = name.starts_with("EBBTIDE_") && name != "EBBTIDE_PG_BIN";
        if setting || matches!(name.as_str(), "DATABASE_URL" | "DB_URL" | "RUST_LOG") {
            command.env_remove(name);
        }
    }
    command.args(args).envs(env.iter().copied()).stdin(Stdio::null());
    command
}

impl Ebbtide {
    /// Starts it; its output is kept line by line and shown if the test fails.
    pub fn spawn(args: &[&str], env: &[(&str, &str)]) -> Ebbtide {
        Ebbtide::spawn_command(ebbtide_command(args, env))
    }

    /// Starts a prepared command, for a working directory or an input of its own.
    pub fn spawn_command(mut command: Command) -> Ebbtide {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers =
            vec![keep_lines(child.stdout.take().unwrap(), &stdout), keep_lines(child.stderr.take().unwrap(), &stderr)];
        Ebbtide { child, stdout, stderr, readers }
    }

    /// Runs it to its end.
    pub fn output(args: &[&str], env: &[(&str, &str)]) -> Output {
        ebbtide_command(args, env).output().unwrap()
    }

    /// Runs it to its end, which must be a good one; returns what it printed.
    pub fn succeed(args: &[&str], env: &[(&str, &str)]) -> String {
        let output = Ebbtide::output(args, env);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ebbtide {args:?} ended with {}:\n{stderr}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// The other end of its input, where the command was given one (`Stdio::piped()`).
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("its input is a pipe, taken once")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lock().unwrap().clone()
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lock().unwrap().clone()
    }

    /// The first line of its log that holds `text`; fails when it ends, or takes too long, without one.
    pub async fn wait_for_line(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let ended = self.child.try_wait().unwrap();
            if let Some(line) = self.stderr().into_iter().find(|line| line.contains(text)) {
                return line;
            }
            if let Some(status) = ended {
                // Its last lines may still be on their way.
                self.join_readers();
                let lines = self.stderr();
                return lines
                    .iter()
                    .find(|line| line.contains(text))
                    .unwrap_or_else(|| panic!("ended with {status} before {text:?}:\n{}", lines.join("\n")))
                    .clone();
            }
            assert!(begun.elapsed() < PATIENCE, "no line with {text:?} in:\n{}", self.stderr().join("\n"));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended.
    pub async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let child = &mut self.child;
        let status = wait_within(deadline, "the process ends", async || child.try_wait().unwrap()).await;
        self.join_readers();
        status
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Asks it to stop, as a service manager does.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// As Ctrl-C does.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Halts it in mid-step.
    pub fn freeze(&self) {
        halt(self.child.id());
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it without a word (`kill -9`) and waits until it is gone.
    pub fn kill(&mut self) {
        // Gone already: nothing to do.
        let _ = self.child.kill();
        self.child.wait().unwrap();
        self.join_readers();
    }

    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
    }
}

impl Drop for Ebbtide {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- log of ebbtide ---\n{}\n---", self.stderr().join("\n"));
        }
    }
}

fn keep_lines(from: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) -> std::thread::JoinHandle<()> {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { break };
            lines.lock().unwrap().push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    })
}

/// Processes whose working folder this is, as a Postgres server's is its data.
pub fn processes_in(folder: &Path) -> Vec<u32> {
    let Ok(folder) = std::fs::metadata(folder) else { return Vec::new() };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let here = |pid: &u32| {
        std::fs::metadata(format!("/proc/{pid}/cwd"))
            .is_ok_and(|cwd| (cwd.dev(), cwd.ino()) == (folder.dev(), folder.ino()))
    };
    pids.filter(here).collect()
}
